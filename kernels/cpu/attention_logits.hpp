// What forward and backward of the fused attention share: a window-head's preparation, and the logits
// z = scale q.k + bias - region penalty + earlier logits of a block of rows.
#pragma once
#include <stdint.h>

#include "attention_workspace.hpp"
#include "gemm.hpp"
#include "math.hpp"
#include "rows.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

// One window-head of one call.
struct Item {
  Item(const AttentionInputs& inputs, int64_t item)
      : in(inputs), s(inputs.shape), number(item), window(item / s.heads), head(item % s.heads) {}

  const AttentionInputs& in;
  const AttentionShape& s;
  int64_t number, window, head;
  AttentionBuffers buffers;
  bool one_region = true;

  bool sparse() const { return in.index.data != nullptr; }
  int64_t row(int64_t i) const { return number * s.queries + i; }
};

inline void prepare_bias(const Item& item) {
  const AttentionShape& s = item.s;
  if (!item.in.bias) return;
  const int64_t last = table_size(s) - 1, w = s.window_size;
  for (int64_t u = 0; u <= last; ++u) item.buffers.bias[u] = item.in.bias[(last - u) * s.heads + item.head];
  for (int64_t y = 0; y < w; ++y)
    for (int64_t x = 0; x < w; ++x)
      item.buffers.key_offset[y * w + x] = static_cast<int32_t>(y * (2 * w - 1) + x);
}

inline void prepare_region(Item* item) {
  if (!item->in.region) return;
  const uint8_t* region = item->in.region + item->window % item->s.patterns * item->s.queries;
  for (int64_t j = 0; j < item->s.queries; ++j) {
    item->buffers.region[j] = region[j];
    item->one_region = item->one_region && region[j] == region[0];
  }
}

// Where query row i's entries of the reversed bias table begin: entry of key j is at [key_offset[j]].
inline const float* bias_of_row(const Item& item, int64_t i) {
  const int64_t w = item.s.window_size;
  return item.buffers.bias + (w - 1 - i / w) * (2 * w - 1) + (w - 1 - i % w);
}

inline void add_bias_dense(const Item& item, int64_t i, float* z) {
  const int64_t w = item.s.window_size;
  const float* entries = bias_of_row(item, i);
  for (int64_t y = 0; y < w; ++y, z += w, entries += 2 * w - 1) {
    int64_t x = 0;
    for (; x + kLanes <= w; x += kLanes) store(z + x, load(z + x) + load(entries + x));
    if (x < w) {
      const int tail = static_cast<int>(w - x);
      store_n(z + x, load_n(z + x, tail) + load_n(entries + x, tail), tail);
    }
  }
}

inline void add_region(const Item& item, int64_t i, float* z) {
  const float* region = item.buffers.region;
  const F own = set1(region[i]), penalty = set1(item.s.region_penalty), none = set1(0.0f);
  for (int64_t c = 0; c < vectors(item.s.keys); ++c) {
    const F x = load(z + c * kLanes);
    store(z + c * kLanes, x - (load(region + c * kLanes) != own ? penalty : none));
  }
}

// Rows [first, first + rows) of q, scaled.
inline void stage_q(const Item& item, int64_t first, int64_t rows) {
  const int64_t ld = padded(item.s.dim_qk);
  const float* q = item_rows(item.in.q, item.window, item.head) + first * item.in.q.stride_row;
  pack_rows(q, item.in.q.stride_row, rows, item.s.dim_qk, item.buffers.q, ld);
  const F scale = set1(item.s.scale);
  for (int64_t c = 0; c < rows * ld; c += kLanes) store(item.buffers.q + c, load(item.buffers.q + c) * scale);
}

inline void dense_logits(const Item& item, int64_t first, int64_t rows) {
  const AttentionShape& s = item.s;
  const int64_t ldz = ld_candidates(s);
  stage_q(item, first, rows);
  gemm(rows, s.keys, s.dim_qk, item.buffers.q, padded(s.dim_qk), 1, item.buffers.k, item.buffers.z, ldz,
       false);
  for (int64_t r = 0; r < rows; ++r) {
    float* z = item.buffers.z + r * ldz;
    if (item.in.bias) add_bias_dense(item, first + r, z);
    if (!item.one_region) add_region(item, first + r, z);
    pad_row(z, s.keys);
  }
}

// Rows of the block's candidates, as gathers want them.
inline Entries candidates_of(const Item& item, int64_t rows) {
  return {item.buffers.positions, ld_candidates(item.s), rows, item.s.candidates};
}

inline void sparse_logits(const Item& item, int64_t first, int64_t rows) {
  const AttentionShape& s = item.s;
  const int64_t ldz = ld_candidates(s), ldq = padded(s.dim_qk), count = s.candidates;
  stage_q(item, first, rows);
  for (int64_t r = 0; r < rows; ++r)
    stage_positions(item.in.index, item.row(first + r) * count, count, item.buffers.positions + r * ldz);
  gather_dot_rows(s.dim_qk, candidates_of(item, rows), item.buffers.q, ldq, item.buffers.k, item.buffers.z, ldz);
  for (int64_t r = 0; r < rows; ++r) {
    float* z = item.buffers.z + r * ldz;
    const float* earlier = item.in.logits + item.row(first + r) * count;
    for (int64_t t = 0; t < count; ++t) z[t] += earlier[t];
    if (item.in.bias) {
      const int32_t* positions = item.buffers.positions + r * ldz;
      const float* entries = bias_of_row(item, first + r);
      for (int64_t t = 0; t < count; ++t) z[t] += entries[item.buffers.key_offset[positions[t]]];
    }
    pad_row(z, count);
  }
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
