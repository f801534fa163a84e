// Work on a block of rows of the index: gather-dot (SDDMM), gather-add (SpMM), scatter-add (its transpose).
//
// A packed matrix has rows of row_stride(dim) floats, aligned to a row vector, zero behind the last column. A
// window-head's is 160 KB at the published shape: it fits L2, not L1. So a block is worked through in chunks
// of a few entries, and each chunk for all rows of the block before the next one. Where the positions of a
// row ascend, chunk c of all rows lies in about the same part of the keys, and that part stays in L1. Any
// other order is as right, only slower. The order of a sum depends on the shape alone.
//
// NV is the number of vectors per row, or 0 for any number (longer rows than kMaxVectors vectors).
#pragma once
#include <stdint.h>

#include "index_rows.hpp"
#include "pft/cpu.h"
#include "simd.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

constexpr int kMaxVectors = 5;

// Measured on 1024 keys: the chunk whose keys fit L1 at K = 64 and 256. Sums are held in memory between
// chunks, so theirs are longer where rows are.
constexpr int64_t kDotChunk = 16;
constexpr int64_t kScatterChunk = 16;
inline int64_t add_chunk(int64_t count) { return count < 128 ? 16 : count < 256 ? 32 : 64; }

inline int64_t row_vectors(int64_t n) { return (n + row::kLanes - 1) / row::kLanes; }
inline int64_t row_stride(int64_t dim) { return row_vectors(dim) * row::kLanes; }
// Columns in use in the last vector: 1 to row::kLanes.
inline int row_tail(int64_t dim) { return static_cast<int>(dim - (row_vectors(dim) - 1) * row::kLanes); }

// `count` entries of each of `rows` rows; entry t of row r is key at[r * ld + t]. `next`, unless null, is as
// many entries again of `next_bytes` each, which will be read once these are done with.
struct Entries {
  const int32_t* at;
  int64_t ld, rows, count;
  const char* next = nullptr;
  int64_t next_bytes = 0;
};

// dst[rows, ld] = src[rows, dim], zero-padded; ld is a whole number of row vectors.
template <typename T>
void pack_rows(const T* src, int64_t stride, int64_t rows, int64_t dim, float* dst, int64_t ld) {
  const int64_t nv = row_vectors(dim);
  const int tail = row_tail(dim);
  for (int64_t j = 0; j < rows; ++j, src += stride, dst += ld) {
    // Rows of a projection lie pages apart, which hardware prefetchers do not follow.
    for (int64_t e = 0; e < dim; e += kPadFloats) __builtin_prefetch(src + 8 * stride + e);
    for (int64_t c = 0; c + 1 < nv; ++c) row::store(dst + c * row::kLanes, row::load(src + c * row::kLanes));
    row::store(dst + (nv - 1) * row::kLanes, row::load_n(src + (nv - 1) * row::kLanes, tail));
    for (int64_t e = nv * row::kLanes; e < ld; ++e) dst[e] = 0.0f;
  }
}

inline void pack_rows(const ConstRows& src, int64_t rows, int64_t dim, float* dst, int64_t ld) {
  as_elements(src, [&](auto from) { pack_rows(from, src.stride, rows, dim, dst, ld); });
}

// Rows of float32.
struct Gathered {
  const float* rows = nullptr;
  int64_t ld = 0;
};

// A matrix to gather from: the rows themselves where they are float32, lie side by side and end with a
// vector, else a packed copy.
inline Gathered gatherable(const ConstRows& src, int64_t rows, int64_t dim, float* packed) {
  if (src.type == Element::kFloat32 && dim % row::kLanes == 0 && src.stride == dim)
    return {static_cast<const float*>(src.data), src.stride};
  pack_rows(src, rows, dim, packed, row_stride(dim));
  return {packed, row_stride(dim)};
}

// Rows to read one after another: themselves where they are float32, else a packed copy.
inline Gathered readable(const ConstRows& src, int64_t rows, int64_t dim, float* packed) {
  if (src.type == Element::kFloat32) return {static_cast<const float*>(src.data), src.stride};
  pack_rows(src, rows, dim, packed, row_stride(dim));
  return {packed, row_stride(dim)};
}

template <typename T>
void copy_row(const float* src, int64_t n, T* dst) {
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) store(dst + c, load(src + c));
  if (whole < n) {
    const int tail = static_cast<int>(n - whole);
    store_n(dst + whole, load_n(src + whole, tail), tail);
  }
}

// dst[n] = factor * src, whose row vectors are whole.
template <typename T>
void copy_scaled(const float* src, int64_t n, float factor, T* dst) {
  const int64_t whole = n / row::kLanes * row::kLanes;
  const row::F by = row::set1(factor);
  for (int64_t c = 0; c < whole; c += row::kLanes) row::store(dst + c, row::load(src + c) * by);
  if (whole < n) row::store_n(dst + whole, row::load(src + whole) * by, static_cast<int>(n - whole));
}

// Row `row` of `dst`.
inline void write_row(const float* src, int64_t n, const Rows& dst, int64_t row) {
  as_elements(from_row(dst, row), [&](auto to) { copy_row(src, n, to); });
}
inline void write_scaled(const float* src, int64_t n, float factor, const Rows& dst, int64_t row) {
  as_elements(from_row(dst, row), [&](auto to) { copy_scaled(src, n, factor, to); });
}

// positions[t] = index[first + t], over the whole array.
inline void stage_positions(const ConstIndex& index, int64_t first, int64_t count, int32_t* positions) {
  if (index.type == IndexType::kInt16) {
    const int16_t* src = static_cast<const int16_t*>(index.data) + first;
    for (int64_t t = 0; t < count; ++t) positions[t] = src[t];
  } else {
    const int32_t* src = static_cast<const int32_t*>(index.data) + first;
    for (int64_t t = 0; t < count; ++t) positions[t] = src[t];
  }
}

// The same for rows [row, row + rows) of an index that nobody has checked yet. Where they are bad, key 0
// stands for all entries, so that work goes on in bounds, and args.bad_index says that it was for nothing.
[[gnu::noinline]] void stage_unchecked(const SparseArgs& args, int64_t row, int64_t rows,
                                       const SparseBuffers& buffers) {
  const SparseShape& s = args.shape;
  if (s.kept < 1) return;
  const auto good = [&](auto* index) {
    return rows_good(index + row * s.kept, rows, s.kept, s.keys, buffers.positions, buffers.last_row);
  };
  const void* data = args.index.data;
  const bool all = args.index.type == IndexType::kInt16   ? good(static_cast<const int16_t*>(data))
                   : args.index.type == IndexType::kInt32 ? good(static_cast<const int32_t*>(data))
                                                          : good(static_cast<const int64_t*>(data));
  if (all) return;
  for (int64_t t = 0; t < rows * s.kept; ++t) buffers.positions[t] = 0;
  __atomic_store_n(args.bad_index, 1, __ATOMIC_RELAXED);
}

// Up to kSparseBlockRows rows of a window-head's index, from row `first` on.
inline Entries stage_block(const SparseArgs& args, int64_t item, int64_t first,
                           const SparseBuffers& buffers) {
  const SparseShape& s = args.shape;
  const int64_t rows = s.queries - first < kSparseBlockRows ? s.queries - first : kSparseBlockRows;
  const int64_t row = item * s.queries + first, bytes = static_cast<int64_t>(args.index.type);
  if (args.bad_index)
    stage_unchecked(args, row, rows, buffers);
  else
    stage_positions(args.index, row * s.kept, rows * s.kept, buffers.positions);
  const char* next = nullptr;
  if (args.bad_index && bytes > 2 && first + 2 * rows <= s.queries)
    next = static_cast<const char*>(args.index.data) + (row + rows) * s.kept * bytes;
  return {buffers.positions, s.kept, rows, s.kept, next, bytes};
}

// Chunk by chunk, a block's own rows of weights or results are read at a stride that no hardware prefetcher
// follows. So while the first chunk of a row is worked on, the lines of the others are asked for.
constexpr int64_t kRowsAhead = 4;
constexpr int64_t kLineBytes = kPadFloats * static_cast<int64_t>(sizeof(float));
inline void prefetch_row(const float* entries, int64_t ld, int64_t count) {
  __builtin_prefetch(entries + kRowsAhead * ld);
  for (int64_t t = kPadFloats; t < count; t += kPadFloats) __builtin_prefetch(entries + t);
}

// An unchecked index may have four times the bytes of a checked one. So while `rows` rows of a block are
// worked on, entries [chunk, end) of each, the same share of the block that comes next is asked for, in its
// own order.
[[gnu::noinline, gnu::cold]] void ask_ahead(const Entries& entries, int64_t r, int64_t chunk, int64_t end) {
  const char* from = entries.next + (chunk * entries.rows + r * (end - chunk)) * entries.next_bytes;
  const char* to = from + (end - chunk) * entries.next_bytes;
  for (; from < to; from += kLineBytes) __builtin_prefetch(from, 0, 2);
  asm volatile("");  // or the compiler takes the call for one without effect, and leaves it out
}

// out[r, t] = sum_e q[r, e] keys[at[r, t], e], e < dim.
using GatherDot = void (*)(const Entries& entries, const float* q, int64_t ldq, int64_t dim,
                           const float* keys, int64_t ld_keys, float* out, int64_t ld_out);

template <int NV>
row::F dots(const row::F* qv, const float* q, int64_t dim, const float* keys, int64_t ld, const int32_t* at) {
  const int64_t nv = NV ? NV : row_vectors(dim);
  row::F acc[row::kLanes];
#pragma GCC unroll 8
  for (int u = 0; u < row::kLanes; ++u) {
    const float* key = keys + at[u] * ld;
    acc[u] = qv[0] * row::load(key);
#pragma GCC unroll 8
    for (int c = 1; c < NV; ++c) acc[u] = row::fma(qv[c], row::load(key + c * row::kLanes), acc[u]);
  }
  for (int64_t c = 1; NV == 0 && c < nv; ++c) {
    const float* from = q + c * row::kLanes;
    const row::F qc = c + 1 < nv ? row::load(from) : row::load_n(from, row_tail(dim));
#pragma GCC unroll 8
    for (int u = 0; u < row::kLanes; ++u)
      acc[u] = row::fma(qc, row::load(keys + at[u] * ld + c * row::kLanes), acc[u]);
  }
  return row::sums(acc);
}

template <int NV>
void gather_dot(const Entries& entries, const float* q, int64_t ldq, int64_t dim, const float* keys,
                int64_t ld_keys, float* out, int64_t ld_out) {
  constexpr int kHeld = NV ? NV : 1;
  const int tail = row_vectors(dim) > kHeld ? row::kLanes : row_tail(dim);
  for (int64_t chunk = 0; chunk < entries.count; chunk += kDotChunk) {
    const int64_t end = entries.count < chunk + kDotChunk ? entries.count : chunk + kDotChunk;
    for (int64_t r = 0; r < entries.rows; ++r) {
      if (entries.next) ask_ahead(entries, r, chunk, end);
      const float* qr = q + r * ldq;
      row::F qv[kHeld];
      for (int c = 0; c + 1 < kHeld; ++c) qv[c] = row::load(qr + c * row::kLanes);
      qv[kHeld - 1] = row::load_n(qr + (kHeld - 1) * row::kLanes, tail);
      const int32_t* at = entries.at + r * entries.ld;
      float* to = out + r * ld_out;
      if (chunk == 0) prefetch_row(to, ld_out, entries.count);
      int64_t t = chunk;
      for (; t + row::kLanes <= end; t += row::kLanes)
        row::store(to + t, dots<NV>(qv, qr, dim, keys, ld_keys, at + t));
      if (t < end) {  // repeat the last entry; the masked store drops the copies
        const int left = static_cast<int>(end - t);
        int32_t last[row::kLanes];
        for (int u = 0; u < row::kLanes; ++u) last[u] = at[t + (u < left ? u : left - 1)];
        row::store_n(to + t, dots<NV>(qv, qr, dim, keys, ld_keys, last), left);
      }
    }
  }
}

// out[r, e] = sum_t a[r, t] values[at[r, t], e]; rows of `out` are whole row vectors, and so is ld_out.
using GatherAdd = void (*)(const Entries& entries, const float* a, int64_t lda, const float* values,
                           int64_t ld_values, float* out, int64_t ld_out);

template <int NV>
void gather_add(const Entries& entries, const float* a, int64_t lda, const float* values, int64_t ld_values,
                float* out, int64_t ld_out) {
  constexpr int kSets = NV == 1 ? 8 : NV == 2 ? 4 : 2;  // enough independent sums to hide an FMA's latency
  const int64_t step = add_chunk(entries.count);
  for (int64_t chunk = 0; chunk == 0 || chunk < entries.count; chunk += step) {
    const int64_t end = entries.count < chunk + step ? entries.count : chunk + step;
    for (int64_t r = 0; r < entries.rows; ++r) {
      if (entries.next) ask_ahead(entries, r, chunk, end);
      const int32_t* at = entries.at + r * entries.ld;
      const float* ar = a + r * lda;
      float* to = out + r * ld_out;
      if (chunk == 0) prefetch_row(ar, lda, entries.count);
      row::F acc[kSets][NV];
      for (int c = 0; c < NV; ++c) acc[0][c] = chunk ? row::load(to + c * row::kLanes) : row::set1(0.0f);
      for (int s = 1; s < kSets; ++s)
        for (int c = 0; c < NV; ++c) acc[s][c] = row::set1(0.0f);
      int64_t t = chunk;
      for (; t + kSets <= end; t += kSets) {
#pragma GCC unroll 8
        for (int s = 0; s < kSets; ++s) {
          const float* value = values + at[t + s] * ld_values;
          const row::F w = row::set1(ar[t + s]);
#pragma GCC unroll 8
          for (int c = 0; c < NV; ++c) acc[s][c] = row::fma(w, row::load(value + c * row::kLanes), acc[s][c]);
        }
      }
      for (; t < end; ++t) {
        const float* value = values + at[t] * ld_values;
        const row::F w = row::set1(ar[t]);
#pragma GCC unroll 8
        for (int c = 0; c < NV; ++c) acc[0][c] = row::fma(w, row::load(value + c * row::kLanes), acc[0][c]);
      }
#pragma GCC unroll 8
      for (int s = kSets / 2; s > 0; s /= 2)
        for (int u = 0; u < s; ++u)
          for (int c = 0; c < NV; ++c) acc[u][c] = acc[u][c] + acc[u + s][c];
      for (int c = 0; c < NV; ++c) row::store(to + c * row::kLanes, acc[0][c]);
    }
  }
}

// keys[at[r, t], e] += a[r, t] x[r, e]; rows of `x` are whole row vectors; positions are distinct within a
// row.
using ScatterAdd = void (*)(const Entries& entries, const float* a, int64_t lda, const float* x, int64_t ldx,
                            float* keys, int64_t ld_keys);

template <int NV>
void scatter_add(const Entries& entries, const float* a, int64_t lda, const float* x, int64_t ldx,
                 float* keys, int64_t ld_keys) {
  for (int64_t chunk = 0; chunk < entries.count; chunk += kScatterChunk) {
    const int64_t end = entries.count < chunk + kScatterChunk ? entries.count : chunk + kScatterChunk;
    for (int64_t r = 0; r < entries.rows; ++r) {
      if (entries.next) ask_ahead(entries, r, chunk, end);
      const int32_t* at = entries.at + r * entries.ld;
      const float* ar = a + r * lda;
      if (chunk == 0) prefetch_row(ar, lda, entries.count);
      row::F xv[NV];
      for (int c = 0; c < NV; ++c) xv[c] = row::load(x + r * ldx + c * row::kLanes);
      for (int64_t t = chunk; t < end; ++t) {
        float* key = keys + at[t] * ld_keys;
        const row::F w = row::set1(ar[t]);
#pragma GCC unroll 8
        for (int c = 0; c < NV; ++c)
          row::store(key + c * row::kLanes, row::fma(w, xv[c], row::load(key + c * row::kLanes)));
      }
    }
  }
}

// Longer rows: slices of up to kMaxVectors vectors, each a pass over the index.
template <typename Function>
void by_slices(const Function (&table)[kMaxVectors + 1], int64_t dim, const Entries& entries, const float* a,
               int64_t lda, const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  for (int64_t c = 0; c < row_vectors(dim); c += kMaxVectors) {
    const int64_t left = row_vectors(dim) - c;
    table[left < kMaxVectors ? left : kMaxVectors](entries, a, lda, from + c * row::kLanes, ld_from,
                                                   to + c * row::kLanes, ld_to);
  }
}

// `out` as above, of `dim` columns.
inline void gather_add_rows(int64_t dim, const Entries& entries, const float* a, int64_t lda,
                            const Gathered& values, float* out, int64_t ld_out) {
  constexpr GatherAdd table[kMaxVectors + 1] = {nullptr,       gather_add<1>, gather_add<2>,
                                                gather_add<3>, gather_add<4>, gather_add<5>};
  by_slices(table, dim, entries, a, lda, values.rows, values.ld, out, ld_out);
}

inline void scatter_add_rows(int64_t dim, const Entries& entries, const float* a, int64_t lda, const float* x,
                             int64_t ldx, float* keys, int64_t ld_keys) {
  constexpr ScatterAdd table[kMaxVectors + 1] = {nullptr,        scatter_add<1>, scatter_add<2>,
                                                 scatter_add<3>, scatter_add<4>, scatter_add<5>};
  by_slices(table, dim, entries, a, lda, x, ldx, keys, ld_keys);
}

inline void gather_dot_rows(int64_t dim, const Entries& entries, const float* q, int64_t ldq,
                            const Gathered& keys, float* out, int64_t ld_out) {
  constexpr GatherDot table[kMaxVectors + 1] = {gather_dot<0>, gather_dot<1>, gather_dot<2>,
                                                gather_dot<3>, gather_dot<4>, gather_dot<5>};
  const int64_t nv = row_vectors(dim);
  table[nv <= kMaxVectors ? nv : 0](entries, q, ldq, dim, keys.rows, keys.ld, out, ld_out);
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
