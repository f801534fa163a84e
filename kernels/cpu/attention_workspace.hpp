// One thread's workspace of the fused attention kernels. Nothing in it is N x N: logits exist for
// block_rows() rows at a time.
#pragma once
#include "workspace.hpp"

namespace pft::cpu {
namespace {

inline int64_t block_rows(bool sparse) { return sparse ? kSparseBlockRows : 32; }

struct AttentionBuffers {
  // Per window-head.
  float* bias;          // the head's bias table in reverse, so that a key row's entries ascend
  int32_t* key_offset;  // a key position's place in that table
  float* region;        // the window's regions as floats
  float* k;             // dense: K^T in panels; sparse: rows
  float* v;             // all kept: panels (backward: of V^T); else rows
  // Per block of rows.
  float* q;            // scaled, rows of padded(dim_qk)
  float* z;            // logits, then exponentials, rows of ld_candidates()
  float* out;          // rows of padded(dim_v)
  int32_t* positions;  // sparse: candidates, rows of ld_candidates()
  int32_t* kept;       // selecting: kept positions and weights, rows of ld_kept()
  float* kept_values;
  // Backward.
  float* k_panels;  // dense: K in panels, for the gradient of q
  float* grad_k;    // rows
  float* grad_v;
  float* grad_out;  // block, rows of padded(dim_v)
  float* grad_z;    // block, rows of ld_candidates()
  float* q_panels;
  float* grad_out_panels;
  float* grad_q;    // block, rows of padded(dim_qk)
  int32_t* places;  // one row: where among its candidates the kept entries are
};

inline bool selects(const AttentionShape& s) { return s.topk < s.candidates; }
// Beyond a multiple of 1024 floats: rows 4096 bytes apart would share cache sets.
inline int64_t ld_candidates(const AttentionShape& s) { return padded(s.candidates) + kPadFloats; }
// One vector more, which compress() may write.
inline int64_t ld_kept(const AttentionShape& s) { return selects(s) ? padded(s.topk) + kPadFloats : 0; }
inline int64_t table_size(const AttentionShape& s) {
  const int64_t side = 2 * s.window_size - 1;
  return s.window_size > 0 ? side * side : 0;
}

inline int64_t carve(const AttentionShape& s, bool sparse, bool backward, void* base, AttentionBuffers* out) {
  Arena arena(base);
  const int64_t dim_qk = padded(s.dim_qk), dim_v = padded(s.dim_v), keys = padded(s.keys);
  const int64_t block = block_rows(sparse);
  out->bias = arena.take<float>(table_size(s));
  out->key_offset = arena.take<int32_t>(s.window_size > 0 ? keys : 0);
  out->region = arena.take<float>(s.patterns > 0 ? keys : 0);
  out->k = arena.take<float>(keys * dim_qk);
  out->v = arena.take<float>(keys * dim_v);
  out->q = arena.take<float>(block * dim_qk);
  out->z = arena.take<float>(block * ld_candidates(s));
  out->out = arena.take<float>(block * dim_v);
  out->positions = arena.take<int32_t>(sparse ? block * ld_candidates(s) : 0);
  out->kept = arena.take<int32_t>(block * ld_kept(s));
  out->kept_values = arena.take<float>(block * ld_kept(s));
  if (backward) {
    out->k_panels = arena.take<float>(sparse ? 0 : keys * dim_qk);
    out->grad_k = arena.take<float>(keys * dim_qk);
    out->grad_v = arena.take<float>(keys * dim_v);
    out->grad_out = arena.take<float>(block * dim_v);
    out->grad_z = arena.take<float>(block * ld_candidates(s));
    out->q_panels = arena.take<float>(sparse ? 0 : block * dim_qk);
    out->grad_out_panels = arena.take<float>(sparse ? 0 : block * dim_v);
    out->grad_q = arena.take<float>(block * dim_qk);
    out->places = arena.take<int32_t>(ld_kept(s));
  }
  return arena.used();
}

}  // namespace
}  // namespace pft::cpu
