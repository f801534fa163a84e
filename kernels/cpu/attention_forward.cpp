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
  if (!item->sparse()) pack_panels_transposed(item->rows(item->in.k), s.keys, s.dim_qk, b.k);
  if (item->sparse() || selects(s))
    prepare_gathers(item);
  else
    pack_panels(item->rows(item->in.v), s.keys, s.dim_v, b.v);
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

// Values are summed with exponentials as weights and divided afterwards. Where such a sum could overflow
// although its mean does not, the exponentials are lowered by this power of two. 0 for values of usual size.
int32_t lowering(const Item& item) {
  const AttentionShape& s = item.s;
  const ConstRows v = item.rows(item.in.v);
  if (v.type == Element::kFloat16) return 0;  // at most 65504
  float most = 0.0f;
  as_elements(v, [&](auto row) {
    for (int64_t j = 0; j < s.keys; ++j, row += v.stride) {
      const float m = row_magnitude(row, s.dim_v);
      most = m > most ? m : most;
    }
  });
  int32_t lowered = 0;
  for (float sum = most * 0x1p-64f * static_cast<float>(s.candidates); sum >= 0x1p63f && lowered < 63;
       sum *= 0.5f)
    ++lowered;
  return lowered;
}

// Softmax of one row; z is left as the exponentials of what is kept, or they go to the kept arrays, lowered
// by a power of two. Returns one over the sum of all exponentials, raised by as much.
float softmax_row(const AttentionForwardArgs& args, const Item& item, int64_t i, int64_t r, int32_t lowered,
                  SearchStart* start) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t nv = vectors(s.candidates), row = item.row(i);
  float* z = b.z + r * ld_candidates(s);
  const float max = row_max(z, nv), raised = static_cast<float>(uint64_t{1} << lowered);
  if (!selects(s)) {
    if (item.sparse()) {
      float* relative = args.new_logits + row * s.candidates;
      for (int64_t t = 0; t < s.candidates; ++t) relative[t] = z[t] - max;
    }
    const float total = row_exp(z, nv, max, z, lowered);
    args.lse[row] = max + logf(total * raised);
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
  row_exp(values, vectors(s.topk), 0.0f, values, lowered);
  return raised / total;
}

void dense_values(const Item& item, int64_t rows, const float* factors, const Rows& out) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ld = padded(s.dim_v);
  gemm(rows, s.dim_v, s.keys, b.z, ld_candidates(s), 1, b.v, b.out, ld, false);
  for (int64_t r = 0; r < rows; ++r) write_scaled(b.out + r * ld, s.dim_v, factors[r], out, r);
}

void kept_values(const Item& item, int64_t rows, const float* factors, const Rows& out) {
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ld = padded(s.dim_v);
  const Entries kept = selects(s) ? Entries{b.kept, ld_kept(s), rows, s.topk} : candidates_of(item, rows);
  gather_add_rows(s.dim_v, kept, selects(s) ? b.kept_values : b.z, kept.ld, item.values, b.out, ld);
  for (int64_t r = 0; r < rows; ++r) write_scaled(b.out + r * ld, s.dim_v, factors[r], out, r);
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
  const int32_t lowered = lowering(item);
  const int64_t block = block_rows(item.sparse());
  float factors[kSparseBlockRows];
  const Rows all = item.rows(args.out);
  for (int64_t first = 0; first < s.queries; first += block) {
    const Rows out = from_row(all, first);
    const int64_t rows = s.queries - first < block ? s.queries - first : block;
    if (item.sparse())
      sparse_logits(item, first, rows);
    else
      dense_logits(item, first, rows);
    phase(0);
    for (int64_t r = 0; r < rows; ++r) factors[r] = softmax_row(args, item, first + r, r, lowered, &start);
    phase(1);
    if (item.sparse() || selects(s))
      kept_values(item, rows, factors, out);
    else
      dense_values(item, rows, factors, out);
    phase(2);
  }
}

}  // namespace pft::cpu::PFT_ISA
