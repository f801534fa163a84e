// Backward of one progressive-attention layer, fused. Logits are recomputed a block of rows at a time. With A
// the softmax over all candidates, dA = grad_out.v on the kept entries (else 0) and delta = grad_out.out:
//   G = A (dA - delta) + grad_logits - [row's first maximum] sum(grad_logits)
//   grad_q = scale G K, grad_k = scale G^T Q, grad_v = A_kept^T grad_out, grad_bias = sum of G,
//   grad_logits_prev = G.
// The last term of G is there because logits are handed on relative to their row's maximum. A row whose
// grad_out and grad_logits are zero adds nothing, whatever is in it: 0 times its NaN would be one.
#include "attention_logits.hpp"
#include "items.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

struct Pass {
  Pass(const AttentionBackwardArgs& arguments, int64_t number, float* table)
      : args(arguments), item(arguments.in, number), bias(table) {}

  const AttentionBackwardArgs& args;
  Item item;
  float* bias;  // gradient of the head's table, reversed like AttentionBuffers::bias
  bool keeps_all() const { return !selects(item.s); }
  int64_t kept() const { return keeps_all() ? item.s.candidates : item.s.topk; }
};

void fill(float* x, int64_t n, float value) {
  for (int64_t t = 0; t < n; ++t) x[t] = value;
}

void prepare(Pass* pass, void* workspace) {
  Item& item = pass->item;
  const AttentionShape& s = item.s;
  AttentionBuffers& b = item.buffers;
  carve(s, item.sparse(), true, workspace, &b);
  prepare_bias(item);
  prepare_region(&item);
  if (!item.sparse()) {
    pack_panels_transposed(item.rows(item.in.k), s.keys, s.dim_qk, b.k);
    pack_panels(item.rows(item.in.k), s.keys, s.dim_qk, b.k_panels);
  }
  if (item.sparse() || !pass->keeps_all())
    prepare_gathers(&item);
  else
    pack_panels_transposed(item.rows(item.in.v), s.keys, s.dim_v, b.v);
  fill(b.grad_k, s.keys * padded(s.dim_qk), 0.0f);
  fill(b.grad_v, s.keys * padded(s.dim_v), 0.0f);
}

// The first maximum of a row without NaN; place 0 of a row with one.
int64_t first_maximum(const float* z, int64_t nv) {
  const F max = set1(row_max(z, nv));
  for (int64_t c = 0; c < nv; ++c)
    if (const uint32_t mask = mask_eq(load(z + c * kLanes), max)) return c * kLanes + __builtin_ctz(mask);
  return 0;
}

// Places of a row's kept entries among its candidates. Both are in the same order, so one walk finds them.
void find_places(const Pass& pass, int64_t r, int32_t* places) {
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  const int32_t* kept = item.buffers.kept + r * ld_kept(s);
  if (!item.sparse()) {
    for (int64_t t = 0; t < s.topk; ++t) places[t] = kept[t];
    return;
  }
  const int32_t* positions = item.buffers.positions + r * ld_candidates(s);
  int32_t place = 0;
  for (int64_t t = 0; t < s.topk; ++t) {
    while (place + 1 < s.candidates && positions[place] != kept[t]) ++place;
    places[t] = place;
  }
}

// delta of block row r, whose grad_out is staged in the workspace.
float delta_of(const Pass& pass, int64_t i, int64_t r) {
  const float* grad_out = pass.item.buffers.grad_out + r * padded(pass.item.s.dim_v);
  float delta = 0.0f;
  as_elements(from_row(pass.item.rows(pass.args.out), i),
              [&](auto out) { delta = dot(grad_out, out, pass.item.s.dim_v); });
  return delta;
}

// Kept entries of the block, and dA on them: in kept_values where something is selected, else in grad_z.
Entries gradient_of_weights(const Pass& pass, int64_t first, int64_t rows) {
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const Entries kept =
      pass.keeps_all() ? candidates_of(item, rows) : Entries{b.kept, ld_kept(s), rows, s.topk};
  for (int64_t r = 0; !pass.keeps_all() && r < rows; ++r)
    stage_positions(pass.args.new_index, item.row(first + r) * s.topk, s.topk, b.kept + r * kept.ld);
  gather_dot_rows(s.dim_v, kept, b.grad_out, padded(s.dim_v), item.values,
                  pass.keeps_all() ? b.grad_z : b.kept_values, kept.ld);
  return kept;
}

bool all_zero(const float* x, int64_t n) {
  int64_t t = 0;
  while (t < n && x[t] == 0.0f) ++t;
  return t == n;
}

// Takes block row r out of all sums of the block.
void leave_out(const Pass& pass, int64_t r) {
  const AttentionShape& s = pass.item.s;
  const AttentionBuffers& b = pass.item.buffers;
  fill(b.z + r * ld_candidates(s), ld_candidates(s), 0.0f);
  fill(b.grad_z + r * ld_candidates(s), ld_candidates(s), 0.0f);
  fill(b.q + r * padded(s.dim_qk), padded(s.dim_qk), 0.0f);
  if (!pass.keeps_all()) fill(b.kept_values + r * ld_kept(s), ld_kept(s), 0.0f);
}

// z becomes A, grad_z G. dA comes in grad_z where everything is kept, else in kept_values, which becomes A of
// the kept entries.
void gradient_of_row(const Pass& pass, int64_t i, int64_t r) {
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t row = item.row(i), nv = vectors(s.candidates), kept = pass.kept();
  float* z = b.z + r * ld_candidates(s);
  float* g = b.grad_z + r * ld_candidates(s);
  const float* grad_logits = pass.args.grad_logits ? pass.args.grad_logits + row * kept : nullptr;
  if (all_zero(b.grad_out + r * padded(s.dim_v), s.dim_v) && (!grad_logits || all_zero(grad_logits, kept)))
    return leave_out(pass, r);
  const int64_t largest = grad_logits ? first_maximum(z, nv) : 0;
  row_exp(z, nv, pass.args.lse[row], z);
  const float delta = delta_of(pass, i, r);

  if (pass.keeps_all()) {
    for (int64_t c = 0; c < nv * kLanes; c += kLanes) store(g + c, load(z + c) * (load(g + c) - set1(delta)));
    for (int64_t t = 0; grad_logits && t < kept; ++t) g[t] += grad_logits[t];
  } else {
    for (int64_t c = 0; c < nv * kLanes; c += kLanes) store(g + c, load(z + c) * set1(-delta));
    float* values = b.kept_values + r * ld_kept(s);
    find_places(pass, r, b.places);
    for (int64_t t = 0; t < kept; ++t) {
      const float a = z[b.places[t]];
      g[b.places[t]] += a * values[t] + (grad_logits ? grad_logits[t] : 0.0f);
      values[t] = a;
    }
  }
  if (grad_logits) {
    float total = 0.0f;
    for (int64_t t = 0; t < kept; ++t) total += grad_logits[t];
    g[largest] -= total;
  }
}

void add_bias_gradient_dense(const Pass& pass, int64_t i, const float* g) {
  const int64_t w = pass.item.s.window_size;
  float* entries = pass.bias + (bias_of_row(pass.item, i) - pass.item.buffers.bias);
  for (int64_t y = 0; y < w; ++y, g += w, entries += 2 * w - 1)
    for (int64_t x = 0; x < w; ++x) entries[x] += g[x];
}

void stage_grad_out(const Pass& pass, int64_t first, int64_t rows) {
  pack_rows(from_row(pass.item.rows(pass.args.grad_out), first), rows, pass.item.s.dim_v,
            pass.item.buffers.grad_out, padded(pass.item.s.dim_v));
}

void dense_block(const Pass& pass, int64_t first, int64_t rows, const Rows& grad_q) {
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ldz = ld_candidates(s), ld_k = padded(s.dim_qk), ld_v = padded(s.dim_v);
  dense_logits(item, first, rows);
  stage_grad_out(pass, first, rows);
  Entries kept{};
  if (pass.keeps_all())
    gemm(rows, s.keys, s.dim_v, b.grad_out, ld_v, 1, b.v, b.grad_z, ldz, false);
  else
    kept = gradient_of_weights(pass, first, rows);
  for (int64_t r = 0; r < rows; ++r) {
    gradient_of_row(pass, first + r, r);
    if (pass.bias) add_bias_gradient_dense(pass, first + r, b.grad_z + r * ldz);
  }
  gemm(rows, s.dim_qk, s.keys, b.grad_z, ldz, 1, b.k_panels, b.grad_q, ld_k, false);
  for (int64_t r = 0; r < rows; ++r) write_scaled(b.grad_q + r * ld_k, s.dim_qk, s.scale, grad_q, r);
  pack_panels(b.q, ld_k, rows, s.dim_qk, b.q_panels);
  gemm(s.keys, s.dim_qk, rows, b.grad_z, 1, ldz, b.q_panels, b.grad_k, ld_k, true);
  if (pass.keeps_all()) {
    pack_panels(b.grad_out, ld_v, rows, s.dim_v, b.grad_out_panels);
    gemm(s.keys, s.dim_v, rows, b.z, 1, ldz, b.grad_out_panels, b.grad_v, ld_v, true);
  } else {
    scatter_add_rows(s.dim_v, kept, b.kept_values, kept.ld, b.grad_out, ld_v, b.grad_v, ld_v);
  }
}

void add_bias_gradient_sparse(const Pass& pass, int64_t i, const int32_t* positions, const float* g) {
  const AttentionBuffers& b = pass.item.buffers;
  float* entries = pass.bias + (bias_of_row(pass.item, i) - b.bias);
  for (int64_t t = 0; t < pass.item.s.candidates; ++t) entries[b.key_offset[positions[t]]] += g[t];
}

void sparse_block(const Pass& pass, int64_t first, int64_t rows, const Rows& grad_q) {
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  const AttentionBuffers& b = item.buffers;
  const int64_t ldz = ld_candidates(s), ld_k = padded(s.dim_qk), ld_v = padded(s.dim_v);
  sparse_logits(item, first, rows);
  stage_grad_out(pass, first, rows);
  const Entries kept = gradient_of_weights(pass, first, rows);
  for (int64_t r = 0; r < rows; ++r) {
    gradient_of_row(pass, first + r, r);
    const float* g = b.grad_z + r * ldz;
    copy_row(g, s.candidates, pass.args.grad_logits_prev + item.row(first + r) * s.candidates);
    if (pass.bias) add_bias_gradient_sparse(pass, first + r, b.positions + r * ldz, g);
  }
  const Entries all = candidates_of(item, rows);
  scatter_add_rows(s.dim_v, kept, pass.keeps_all() ? b.z : b.kept_values, kept.ld, b.grad_out, ld_v, b.grad_v,
                   ld_v);
  gather_add_rows(s.dim_qk, all, b.grad_z, ldz, item.keys, b.grad_q, ld_k);
  for (int64_t r = 0; r < rows; ++r) write_scaled(b.grad_q + r * ld_k, s.dim_qk, s.scale, grad_q, r);
  scatter_add_rows(s.dim_qk, all, b.grad_z, ldz, b.q, ld_k, b.grad_k, ld_k);
}

}  // namespace

void attention_backward_item(const AttentionBackwardArgs& args, int64_t number, void* workspace,
                             float* grad_bias) {
  Pass pass(args, number, grad_bias);
  const Item& item = pass.item;
  const AttentionShape& s = item.s;
  prepare(&pass, workspace);
  const Rows grad_q = item.rows(args.grad_q), grad_k = item.rows(args.grad_k),
             grad_v = item.rows(args.grad_v);
  const int64_t block = block_rows(item.sparse());
  for (int64_t first = 0; first < s.queries; first += block) {
    const int64_t rows = s.queries - first < block ? s.queries - first : block;
    if (item.sparse())
      sparse_block(pass, first, rows, from_row(grad_q, first));
    else
      dense_block(pass, first, rows, from_row(grad_q, first));
  }
  const AttentionBuffers& b = item.buffers;
  for (int64_t j = 0; j < s.keys; ++j) {
    write_row(b.grad_k + j * padded(s.dim_qk), s.dim_qk, grad_k, j);
    write_row(b.grad_v + j * padded(s.dim_v), s.dim_v, grad_v, j);
  }
}

}  // namespace pft::cpu::PFT_ISA
