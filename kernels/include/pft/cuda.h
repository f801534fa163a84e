// Launchers of the CUDA kernels. All memory belongs to the caller and lies on the current device; `stream` is
// a cudaStream_t. Work is queued, not awaited. The same sources compiled for the emulator run at once, on the
// CPU.
#pragma once
#include <cstdint>

#include "pft/tensor.h"

namespace pft::cuda {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// Which rung of the ladder to run. kAuto picks as kernels/cuda/README.md says ("Which kernel runs"). A
// product that has no tiles for its shape or dtype runs resident instead. kSorted: spmm_transpose alone.
enum class Version : int { kAuto = -1, kPlain = 0, kResident = 1, kTiles = 2, kSorted = 3 };

// How a float32 layer multiplies, a dense one forward and backward, a sparse one forward, and spmm_transpose:
// by FFMA (a sparse layer gathers then), or by tensor cores, each number as the sum of three of bfloat16.
// kAuto: the latter where it pays and fits. kSplit: kUnsupported where it does not.
enum class Float32 : int { kAuto = -1, kFfma = 0, kSplit = 1 };

// Contiguous [batch, queries, kept]; int32 if `wide`, else int16.
struct Index {
  const void* data = nullptr;
  bool wide = false;
};

// A tensor of `dtype` whose window-heads are counted as windows x heads (plain 3-D tensors: heads = 1).
struct Input {
  Matrices<const void> m;
  DType dtype = DType::kFloat32;
};
struct Output {
  Matrices<void> m;
  DType dtype = DType::kFloat32;
};

// out[b,i,t] = scale * sum_e q[b,i,e] k[b,index[b,i,t],e]. q and k share a dtype; out has it too, or is
// float32.
Status sddmm(const SparseShape& shape, int64_t heads, Input q, Input k, Index index, Output out, float scale,
             Version version, void* stream);

// out[b,i] = initial[b,i] + scale * sum_t a[b,i,t] v[b,index[b,i,t]]. a: v's dtype or float32; out: v's
// dtype. `initial` (may be null): contiguous float32 [batch, queries, head_dim]. The indices of a row must be
// distinct.
Status spmm(const SparseShape& shape, int64_t heads, Input a, Input v, Index index, const float* initial,
            Output out, float scale, Version version, void* stream);

// out[b,j] = initial[b,j] + scale * sum over (i,t) with index[b,i,t] == j of a[b,i,t] x[b,i], in ascending i.
// The indices of a row must be distinct. `initial` as above, [batch, keys, head_dim].
// `how` decides where `version` is kAuto.
Status spmm_transpose(const SparseShape& shape, int64_t heads, Input a, Input x, Index index,
                      const float* initial, Output out, float scale, Version version, Float32 how,
                      void* stream);

// What kTiles runs; kUnsupported where not even one warp's keys fit.
Status spmm_transpose_tiles(const SparseShape& shape, int64_t heads, Input a, Input x, Index index,
                            const float* initial, Output out, float scale, void* stream);
// What kSorted runs; kUnsupported where a row for every warp does not fit.
Status spmm_transpose_sorted(const SparseShape& shape, int64_t heads, Input a, Input x, Index index,
                             const float* initial, Output out, float scale, void* stream);
// What kSplit runs: float32 alone (else kBadDType); kUnsupported as above.
Status spmm_transpose_split(const SparseShape& shape, int64_t heads, Input a, Input x, Index index,
                            const float* initial, Output out, float scale, void* stream);

// One progressive-attention layer. Dense while index.data is null, then candidates = keys. Null pointers: not
// there.
struct AttentionInputs {
  AttentionShape shape;
  Input q, k, v;
  const float* bias = nullptr;      // [(2 window_size - 1)^2, heads]
  const uint8_t* region = nullptr;  // [patterns, queries]
  Index index;                      // [windows, heads, queries, candidates], ascending within a row
  const float* logits = nullptr;    // same shape
};

struct AttentionOutputs {
  Output out;
  void* new_index =
      nullptr;  // [windows, heads, queries, topk], null where nothing is selected; width as in index_wide
  bool index_wide = false;
  float* new_logits =
      nullptr;           // [windows, heads, queries, min(topk, candidates)], null while the chain stays dense
  float* lse = nullptr;  // [windows, heads, queries]
};

// How a sparse layer meets its candidates. kAuto picks as kernels/cuda/README.md says.
enum class Candidates : int { kAuto = -1, kGather = 0, kTiles = 1 };

Status attention_forward_dense(const AttentionInputs& in, const AttentionOutputs& out, Float32 how,
                               void* stream);
// What a dense layer that keeps everything runs: kUnsupported where not even one warp's rows fit.
Status attention_forward_online(const AttentionInputs& in, const AttentionOutputs& out, Float32 how,
                                void* stream);
// float32 takes tiles where `multiply` says so and kGather does not forbid it.
Status attention_forward_sparse(const AttentionInputs& in, const AttentionOutputs& out, Candidates how,
                                Float32 multiply, void* stream);
// What kTiles runs: float16 and bfloat16 only (else kBadDType); kUnsupported beyond 1024 keys or 40 channels
// of q, or where the tiles do not fit.
Status attention_forward_tiled(const AttentionInputs& in, const AttentionOutputs& out, void* stream);
// What kSplit runs: float32 only (else kBadDType); kUnsupported beyond 1024 candidates, 32767 keys or 40
// channels of q, or where the lists of 32 rows and a tile do not fit.
Status attention_forward_tiled_split(const AttentionInputs& in, const AttentionOutputs& out, void* stream);

// Pieces of the backward pass, put together by the backend (contract of each in attention_backward_*.cu).
struct SparseGradients {
  Input grad_out;                      // read where backward_splits() says so, else grad_a
  const float* grad_logits = nullptr;  // [.., kept] or null
  const float* grad_a = nullptr;       // [.., kept]: grad_out . v on the kept entries
  const float* lse = nullptr;          // [..]
  const float* delta = nullptr;        // [..]: grad_out . out
  const void* new_index = nullptr;     // [.., kept], null where nothing was selected
  bool new_index_wide = false;
  float* g = nullptr;       // [.., candidates] out: gradient of the logits
  float* a_kept = nullptr;  // [.., kept] out: the softmax weights that multiply v
  int64_t kept = 0;
};

// delta[b,i] = grad_out[b,i] . out[b,i]
Status attention_row_delta(const AttentionShape& shape, Input grad_out, Input out, float* delta,
                           void* stream);
// Sparse layers: G over the candidates, and the weights of the kept entries.
// kTiles: where they fit, else gathered. float32 as in attention_forward_sparse, but gathered where it does
// not fit, whatever is asked for.
Status attention_backward_sparse(const AttentionInputs& in, const SparseGradients& gradients, Candidates how,
                                 Float32 multiply, void* stream);
// Whether the above takes tiles of split float32: it then multiplies grad_out and v itself. `bias`: whether
// there is any. shape.topk: the entries kept.
bool backward_splits(const AttentionShape& shape, DType dtype, bool bias, Candidates how, Float32 multiply);
// What it runs then: float32 only (else kBadDType); kUnsupported as attention_forward_tiled_split, and beyond
// 40 channels of v.
Status attention_backward_tiled_split(const AttentionInputs& in, const SparseGradients& gradients,
                                      void* stream);
// A dense layer that selected is the sum of two parts: -A*delta over all keys (attention_backward_dense
// without grad_out) and A*dA + grad_logits on the kept entries: the function above, with the kept entries as
// candidates and delta null.

// Dense layers, over all keys. With grad_out: G = A (grad_out . v - delta) and grad_v = A^T grad_out.
// Without: G = -A delta and no grad_v. grad_q = scale G k, grad_k = scale G^T q; results in q's dtype or
// float32.
struct DenseGradients {
  Input grad_out;  // data null: none
  const float* lse = nullptr;
  const float* delta = nullptr;
  Output grad_q, grad_k, grad_v;
  float* bias_partial = nullptr;  // [windows * row_blocks, heads, (2 window_size - 1)^2], or null
  int64_t row_blocks = 1;
};
Status attention_backward_dense(const AttentionInputs& in, const DenseGradients& gradients, Float32 how,
                                void* stream);
// What kFfma runs: float32 alone.
Status attention_backward_ffma(const AttentionInputs& in, const DenseGradients& gradients, void* stream);

// partial[group,h,rel] = sum of G over the windows of the group (window = group, group + groups, ...).
Status bias_gradient_sparse(const AttentionShape& shape, Index index, const float* g, int64_t groups,
                            float* partial, void* stream);
// grad_bias[rel,h] (+)= sum over groups of partial[group,h,rel], in ascending group.
Status bias_gradient_sum(int64_t groups, int64_t heads, int64_t entries, const float* partial,
                         bool accumulate, float* grad_bias, void* stream);

}  // namespace pft::cuda
