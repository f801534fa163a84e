// Forward of one progressive-attention layer, fused: logits, softmax, selection and the sum of values of a
// block of rows while they are in cache.
#include <math.h>

#include "attention_logits.hpp"
#include "items.hpp"
#include "select.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

void prepare(Item* item, void* workspace) {
  const AttentionShape& s = item->s;
  AttentionBuffers& b = item->buffers;
  carve(s, item->sparse(), false, workspace, &b);
  prepare_bias(*item);
  prepare_region(item);
  const float* k = item_rows(item->in.k, item->window, item->head);
  const float* v = item_rows(item->in.v, item->window, item->head);
  if (!item->sparse()) pack_panels_transposed(k, item->in.k.stride_row, s.keys, s.dim_qk, b.k);
  if (item->sparse() || selects(s))
    prepare_gathers(item);
  else
    pack_panels(v, item->in.v.stride_row, s.keys, s.dim_v, b.v);
}

void write_index(const MutableIndex& index, int64_t row, int64_t count, const int32_t* kept) {
  if (index.type == IndexType::kInt16) {
    int16_t* to = static_cast<int16_t*>(index.data) + row * count;
    for (int64_t t = 0; t < count; ++t) to[t] = static_cast<int16_t>(kept[t]);
  } else {
    int32_t* to = static_cast<int32_t*>(index.data) + row * count;
    for (int64_t t = 0; t < count; ++t) to[t] = kept[t];
  }
}

// Softmax of one row; z is left as the exponentials of what is kept, or they go to the kept arrays.
// Returns one over the sum of all exponentials.
float softmax_row(const AttentionForwardArgs& args, const Item& item, int64_t i, int64_t r,
                  SearchStart* start) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t nv = vectors(s.candidates), row = item.row(i);
  float* z = b.z + r * ld_candidates(s);
  const float max = row_max(z, nv);
  if (!selects(s)) {
    if (item.sparse()) {
      float* relative = args.new_logits + row * s.candidates;
      for (int64_t t = 0; t < s.candidates; ++t) relative[t] = z[t] - max;
    }
    const float total = row_exp(z, nv, max, z);
    args.lse[row] = max + logf(total);
    return 1.0f / total;
  }
  const float total = row_exp(z, nv, max, nullptr);
  const float lse = max + logf(total);
  args.lse[row] = lse;
  int32_t* kept = b.kept + r * ld_kept(s);
  float* values = b.kept_values + r * ld_kept(s);
  const int32_t* positions = item.sparse() ? b.positions + r * ld_candidates(s) : nullptr;
  if (lse - lse == 0.0f) {
    compact(z, nv, positions, find_threshold(z, nv, s.topk, max, lse, start), max, kept, values);
  } else {  // NaN or infinity in the row: no order to select by. Any valid positions do, the result is NaN.
    for (int64_t t = 0; t < s.topk; ++t) {
      kept[t] = positions ? positions[t] : static_cast<int32_t>(t);
      values[t] = z[t] - max;
    }
  }
  write_index(args.new_index, row, s.topk, kept);
  copy_row(values, s.topk, args.new_logits + row * s.topk);
  pad_row(values, s.topk);
  row_exp(values, vectors(s.topk), 0.0f, values);
  return 1.0f / total;
}

void dense_values(const Item& item, int64_t rows, const float* factors, float* out, int64_t stride) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ld = padded(s.dim_v);
  gemm(rows, s.dim_v, s.keys, b.z, ld_candidates(s), 1, b.v, b.out, ld, false);
  for (int64_t r = 0; r < rows; ++r) copy_scaled(b.out + r * ld, s.dim_v, factors[r], out + r * stride);
}

void kept_values(const Item& item, int64_t rows, const float* factors, float* out, int64_t stride) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ld = padded(s.dim_v);
  const Entries kept = selects(s) ? Entries{b.kept, ld_kept(s), rows, s.topk} : candidates_of(item, rows);
  gather_add_rows(s.dim_v, kept, selects(s) ? b.kept_values : b.z, kept.ld, item.values, b.out, ld);
  for (int64_t r = 0; r < rows; ++r) copy_scaled(b.out + r * ld, s.dim_v, factors[r], out + r * stride);
}

}  // namespace

void attention_forward_item(const AttentionForwardArgs& args, int64_t number, void* workspace,
                            double* phase_seconds) {
  Item item(args.in, number);
  const AttentionShape& s = item.s;
  double clock = phase_seconds ? seconds_now() : 0.0;
  const auto phase = [&](int which) {
    if (!phase_seconds) return;
    const double now = seconds_now();
    phase_seconds[which] += now - clock;
    clock = now;
  };
  prepare(&item, workspace);
  SearchStart start;
  const int64_t block = block_rows(item.sparse());
  float factors[kSparseBlockRows];
  float* out = item_rows(args.out, item.window, item.head);
  for (int64_t first = 0; first < s.queries; first += block, out += block * args.out.stride_row) {
    const int64_t rows = s.queries - first < block ? s.queries - first : block;
    if (item.sparse())
      sparse_logits(item, first, rows);
    else
      dense_logits(item, first, rows);
    phase(0);
    for (int64_t r = 0; r < rows; ++r) factors[r] = softmax_row(args, item, first + r, r, &start);
    phase(1);
    if (item.sparse() || selects(s))
      kept_values(item, rows, factors, out, args.out.stride_row);
    else
      dense_values(item, rows, factors, out, args.out.stride_row);
    phase(2);
  }
}

}  // namespace pft::cpu::PFT_ISA
