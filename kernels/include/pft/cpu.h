// Launchers of the CPU kernels: pointers and strides in, a status out. Elements are float32, bfloat16 or
// float16, arithmetic is float32 for all of them.
//
// Each call splits its work into window-heads (or pieces of an image), each with one owner, so that a result
// does not depend on the number of threads. Nothing is allocated: the caller hands in
// `*_workspace_bytes(shape, threads)` bytes, content arbitrary. The instruction set is chosen at the first
// call (environment variable PFT_CPU_ISA = scalar, avx2 or avx512 forces it).
#pragma once
#include <cstdint>

#include "pft/tensor.h"

namespace pft::cpu {

// What operands and results hold. Biases, logits of a chain, logsumexp and their gradients are float32
// always.
enum class Element : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// The value is the size of one element in bytes.
enum class IndexType : int { kInt16 = 2, kInt32 = 4, kInt64 = 8 };

// A contiguous index [batch, rows, count]; `data` may be null when count is 0.
template <typename Pointer>
struct IndexRows {
  Pointer data = nullptr;
  IndexType type = IndexType::kInt32;
};
using ConstIndex = IndexRows<const void*>;
using MutableIndex = IndexRows<void*>;

struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// What an op over an index works on; the list below says what `left` and `right` are to each.
struct SparseArgs {
  SparseShape shape;
  Element element = Element::kFloat32;  // of left, right and out
  Matrices<const void> left, right;
  ConstIndex index;     // also kInt64 where it is unchecked
  void* out = nullptr;  // contiguous
  // Null: `index` is known to hold keys in [0, keys), each once in a row. Else each block of rows is checked
  // before it is used, and *bad_index becomes 1 where one is not so; `out` is of no use then.
  int* bad_index = nullptr;
};

// A window-head's matrix of such an op: its name for callers, and its sizes (null: 1).
struct SparseMatrix {
  const char* name = nullptr;
  int64_t SparseShape::* rows = nullptr;
  int64_t SparseShape::* columns = nullptr;
};
constexpr int64_t SparseShape::* kQueries = &SparseShape::queries;
constexpr int64_t SparseShape::* kKeys = &SparseShape::keys;
constexpr int64_t SparseShape::* kHeadDim = &SparseShape::head_dim;
constexpr int64_t SparseShape::* kKept = &SparseShape::kept;

// All ops over an index: OP(name, left, right, out). <name>_item in kernels/cpu/<name>.cpp computes one
// window-head. Tables, launcher and the function of that name in pft_bench._cpu come from this list.
//
//   sddmm           out[b,i,t] = sum_e q[b,i,e] k[b,index[b,i,t],e]
//   spmm            out[b,i,:] = sum_t a[b,i,t] v[b,index[b,i,t],:]
//   spmm_transpose  out[b,j,:] = sum over (i,t) with index[b,i,t] == j of a[b,i,t] x[b,i,:]
//   row_reads       out[b,:] = sum over all (i,t) of rows[b,index[b,i,t],:]. Not an op of the model: what
//                   sddmm and spmm must at least read, as a measure of them.
#define PFT_CPU_SPARSE_OPS(OP)                                                                    \
  OP(sddmm, {"q", kQueries, kHeadDim}, {"k", kKeys, kHeadDim}, {"out", kQueries, kKept})          \
  OP(spmm, {"a", kQueries, kKept}, {"v", kKeys, kHeadDim}, {"out", kQueries, kHeadDim})           \
  OP(spmm_transpose, {"a", kQueries, kKept}, {"x", kQueries, kHeadDim}, {"out", kKeys, kHeadDim}) \
  OP(row_reads, {"rows", kKeys, kHeadDim}, {"none", nullptr, nullptr}, {"out", nullptr, kHeadDim})

// One progressive-attention layer; see AttentionShape. Null `bias`, `region`, `index`, `logits` mean "none".
struct AttentionInputs {
  AttentionShape shape;
  Element element = Element::kFloat32;  // of q, k, v, out and their gradients
  Matrices<const void> q, k, v;
  const float* bias = nullptr;      // [(2 window_size - 1)^2, heads], contiguous
  const uint8_t* region = nullptr;  // [patterns, queries], contiguous
  ConstIndex index;                 // [windows, heads, queries, candidates], null while dense
  const float* logits = nullptr;    // the same shape, null while dense
};

struct AttentionForwardArgs {
  AttentionInputs in;
  Matrices<void> out;      // [windows, heads, queries, dim_v]
  MutableIndex new_index;  // [windows, heads, queries, topk] where something is selected, else null
  float* new_logits =
      nullptr;           // [windows, heads, queries, min(topk, candidates)], null while the chain stays dense
  float* lse = nullptr;  // [windows, heads, queries]
  double* phase_seconds =
      nullptr;  // logits, softmax and selection, AV; summed over threads, added to; null: not timed
};

struct AttentionBackwardArgs {
  AttentionInputs in;
  Matrices<const void> grad_out, out;
  ConstIndex new_index;
  const float* grad_logits = nullptr;  // shape of new_logits, or null
  const float* lse = nullptr;
  Matrices<void> grad_q, grad_k, grad_v;
  float* grad_bias = nullptr;         // [(2 window_size - 1)^2, heads], null without a bias
  float* grad_logits_prev = nullptr;  // shape of logits, null while dense
};

constexpr int64_t kMaxDepthwiseKernel = 15;

// out = gelu(depthwise(x) + bias) + residual, zeros beyond the image. Images [batch, height, width, channels]
// are described as Matrices: an image's rows are its "heads", and pixels the rows. `out` and `residual` hold
// the output rows [first_row, first_row + rows) alone.
struct DepthwiseArgs {
  int64_t batch = 0, height = 0, width = 0, channels = 0;
  int64_t kernel = 0;  // odd, at most kMaxDepthwiseKernel
  int64_t first_row = 0, rows = 0;
  Element element = Element::kFloat32;  // of x, residual and out
  Matrices<const void> x;
  const float* weight = nullptr;  // [kernel, kernel, channels], contiguous
  const float* bias = nullptr;    // [channels], or null
  Matrices<const void> residual;
  Matrices<void> out;
};

int64_t depthwise_workspace_bytes(const DepthwiseArgs& args, int threads);
int64_t sparse_workspace_bytes(const SparseShape& shape, Element element, int threads);
int64_t attention_forward_workspace_bytes(const AttentionShape& shape, bool sparse, int threads);
int64_t attention_backward_workspace_bytes(const AttentionShape& shape, bool sparse, int threads);

Status depthwise_gelu_add(const DepthwiseArgs& args, Workspace workspace, int threads);
Status attention_forward(const AttentionForwardArgs& args, Workspace workspace, int threads);
Status attention_backward(const AttentionBackwardArgs& args, Workspace workspace, int threads);

struct SparseOp {
  const char* name;
  // `checked`: whether the index is known to be good. kBadIndex where it is not, and has a fault; which one,
  // index_error tells.
  Status (*run)(SparseArgs args, Workspace workspace, int threads, bool checked);
  SparseMatrix left, right, out;
};
// PFT_CPU_SPARSE_OPS as a table; a null name ends it.
extern const SparseOp kSparseOps[];

// What is wrong with an index [rows, kept]: the first bad entry in row-major order.
struct IndexError {
  enum class Kind { kNone, kOutOfRange, kDuplicate } kind = Kind::kNone;
  int64_t row = 0, position = 0, value = 0;
};

// An index [rows, kept] to check, and a copy of it to make on the way (none where `to.data` is null).
struct IndexRowsArgs {
  ConstIndex index;  // also kInt64
  MutableIndex to;   // kInt16 or kInt32, wide enough for keys - 1
  int64_t rows = 0, kept = 0, keys = 0;
};

// Every value must lie in [0, keys) and be distinct within its row. `scratch` has index_scratch_bytes(keys,
// threads). After an error the copy is incomplete.
int64_t index_scratch_bytes(int64_t keys, int threads);
IndexError index_error(const IndexRowsArgs& args, Workspace scratch, int threads);

// What `threads` threads reach together with the instruction set in use: the best of a few trials of about
// 10 ms. `block_bytes` is the size of each thread's own block, which decides the cache it comes from; a
// gather reads its rows of 160 bytes in random order.
enum class Peak { kFmaFlops, kLoadBytes, kGatherBytes };
double peak_per_second(Peak what, int64_t block_bytes, int threads);

// The instruction set in use. Throws std::runtime_error when PFT_CPU_ISA names one that is unknown or not
// supported here.
const char* isa();
// Compiled in and supported by this processor, widest last; null-terminated.
const char* const* isas();

}  // namespace pft::cpu
