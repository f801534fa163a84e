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
  Gathered keys, values;  // sparse: to gather from; values also where a dense layer selects
  bool one_region = true;

  bool sparse() const { return in.index.data != nullptr; }
  int64_t row(int64_t i) const { return number * s.queries + i; }
  // This window-head's rows of an operand or a result.
  ConstRows rows(const Matrices<const void>& of) const { return item_rows(of, in.element, window, head); }
  Rows rows(const Matrices<void>& of) const { return item_rows(of, in.element, window, head); }
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
  pack_rows(from_row(item.rows(item.in.q), first), rows, item.s.dim_qk, item.buffers.q, ld);
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

// Prepares what is gathered from.
inline void prepare_gathers(Item* item) {
  const AttentionShape& s = item->s;
  if (item->sparse()) item->keys = gatherable(item->rows(item->in.k), s.keys, s.dim_qk, item->buffers.k);
  item->values = gatherable(item->rows(item->in.v), s.keys, s.dim_v, item->buffers.v);
}

// Rows of the block's candidates, as gathers want them.
inline Entries candidates_of(const Item& item, int64_t rows) {
  return {item.buffers.positions, ld_candidates(item.s), rows, item.s.candidates};
}

// z of block row r, query i, becomes z + earlier logits + bias. The entry of key (y, x) in the row's bias is
// at y (2w - 1) + x = position + y (w - 1). Adding a half before the division by w makes float arithmetic
// exact.
inline void add_earlier_and_bias(const Item& item, int64_t i, int64_t r) {
  const AttentionShape& s = item.s;
  const int64_t count = s.candidates;
  float* z = item.buffers.z + r * ld_candidates(s);
  const int32_t* positions = item.buffers.positions + r * ld_candidates(s);
  const float* earlier = item.in.logits + item.row(i) * count;
  const float* entries = item.in.bias ? bias_of_row(item, i) : nullptr;
  const F half = set1(0.5f), per_row = set1(entries ? 1.0f / static_cast<float>(s.window_size) : 0.0f);
  const int32_t step = static_cast<int32_t>(s.window_size) - 1;
  for (int64_t t = 0; t < count; t += kLanes) {
    const int64_t left = count - t;
    F x = load(z + t) + (left < kLanes ? load_n(earlier + t, static_cast<int>(left)) : load(earlier + t));
    if (entries) {
      const I position = load_int(positions + t);
      const I y = __builtin_convertvector((__builtin_convertvector(position, F) + half) * per_row, I);
      x = x + gather(entries, position + y * step);
    }
    store(z + t, x);
  }
  pad_row(z, count);
}

inline void sparse_logits(const Item& item, int64_t first, int64_t rows) {
  const AttentionShape& s = item.s;
  const int64_t ldz = ld_candidates(s), ldq = padded(s.dim_qk), count = s.candidates;
  stage_q(item, first, rows);
  for (int64_t r = 0; r < rows; ++r) {
    int32_t* positions = item.buffers.positions + r * ldz;
    stage_positions(item.in.index, item.row(first + r) * count, count, positions);
    // Wanted once the products are done; asked for now, so that the way from memory is covered by them.
    const float* earlier = item.in.logits + item.row(first + r) * count;
    for (int64_t t = 0; t < count; t += kPadFloats) __builtin_prefetch(earlier + t);
    for (int64_t t = count; t < vectors(count) * kLanes; ++t) positions[t] = 0;
  }
  gather_dot_rows(s.dim_qk, candidates_of(item, rows), item.buffers.q, ldq, item.keys, item.buffers.z, ldz);
  for (int64_t r = 0; r < rows; ++r) add_earlier_and_bias(item, first + r, r);
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
