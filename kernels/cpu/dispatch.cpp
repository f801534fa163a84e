// Chooses the instruction set, checks shapes, and shares window-heads out to threads. Compiled for the
// baseline.
//
// Threads come from OpenMP. Where torch was imported first its libgomp is in the global scope and provides
// GOMP_parallel here too, so that torch and these kernels share one pool of threads.
#include <cstring>
#include <limits>

#include "attention_workspace.hpp"
#include "isas.hpp"
#include "workspace.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <time.h>

namespace pft::cpu {

double seconds_now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

namespace {

// Calls body(item, thread) once for each item; which thread gets which item does not matter to the result.
template <typename Body>
void for_each_item(int64_t items, int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && items > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < items; ++item) body(item, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t item = 0; item < items; ++item) body(item, 0);
}

int64_t used_threads(int64_t items, int threads) {
  const int64_t wanted = threads < 1 ? 1 : threads;
  return wanted < items ? wanted : (items < 1 ? 1 : items);
}

// A window-head's rows are addressed by 32-bit offsets.
bool offsets_fit(int64_t keys, int64_t dim) {
  return keys == 0 || padded(dim) <= std::numeric_limits<int32_t>::max() / keys;
}

bool usable(const ConstIndex& index) {
  return index.data && (index.type == IndexType::kInt16 || index.type == IndexType::kInt32);
}

Status check(const SparseArgs& args, Workspace workspace, int threads, int64_t needed) {
  const SparseShape& s = args.shape;
  if (s.batch < 0 || s.queries < 0 || s.keys < 0 || s.kept < 0 || s.head_dim < 1 || threads < 1)
    return Status::kBadShape;
  if (!offsets_fit(s.keys, s.head_dim)) return Status::kUnsupported;
  if (s.batch * s.queries * s.kept > 0) {
    const bool any_type = args.bad_index && args.index.data && args.index.type == IndexType::kInt64;
    if (!any_type && !usable(args.index)) return Status::kBadShape;
    if (s.keys < 1) return args.bad_index ? Status::kBadIndex : Status::kBadShape;
  }
  return workspace.bytes < needed || (needed > 0 && !workspace.data) ? Status::kBadShape : Status::kOk;
}

int64_t slice_bytes(const SparseShape& s, Element element) {
  SparseBuffers buffers;
  return carve(s, element, nullptr, &buffers);
}

int64_t slice_bytes(const AttentionShape& s, bool sparse, bool backward) {
  AttentionBuffers buffers;
  return carve(s, sparse, backward, nullptr, &buffers);
}

// A pixel of zeros, for what lies outside of the image.
int64_t slice_bytes(const DepthwiseArgs& a) {
  return padded(a.channels) * static_cast<int64_t>(sizeof(float));
}

int64_t items_of(const DepthwiseArgs& a) {
  return a.batch * ((a.width + kDepthwiseColumns - 1) / kDepthwiseColumns) *
         ((a.rows + kDepthwiseRows - 1) / kDepthwiseRows);
}

// grad_bias is summed over windows. A unit of work is one head of a group of windows, with a table of its
// own; the tables are then added in order. The groups depend on the shape alone: about 256 units, so that the
// tables stay small.
int64_t windows_per_group(const AttentionShape& s, bool bias) {
  return bias ? (s.windows * s.heads + 255) / 256 : 1;
}
int64_t groups_of(const AttentionShape& s, bool bias) {
  const int64_t each = windows_per_group(s, bias);
  return each ? (s.windows + each - 1) / each : 0;
}
int64_t tables_bytes(const AttentionShape& s) {
  const bool bias = s.window_size > 0;
  const int64_t bytes = groups_of(s, bias) * s.heads * table_size(s) * static_cast<int64_t>(sizeof(float));
  return (bytes + 63) / 64 * 64;
}

// 64 bytes more than the slices: the caller's memory may begin anywhere.
int64_t total_bytes(int64_t slice, int64_t items, int threads) {
  return slice * used_threads(items, threads) + 64;
}

char* aligned(void* data) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(data) + 63) / 64 * 64);
}

template <auto Item>
Status run_sparse(SparseArgs args, Workspace workspace, int threads, bool checked) {
  const SparseShape& s = args.shape;
  const int64_t slice = slice_bytes(s, args.element);
  int bad_index = 0;
  args.bad_index = checked ? nullptr : &bad_index;
  const Status status = check(args, workspace, threads, sparse_workspace_bytes(s, args.element, threads));
  if (status != Status::kOk) return status;
  char* base = aligned(workspace.data);
  const auto item_function = kernels().*Item;
  for_each_item(s.batch, static_cast<int>(used_threads(s.batch, threads)),
                [&](int64_t item, int thread) { item_function(args, item, base + thread * slice); });
  return bad_index ? Status::kBadIndex : Status::kOk;
}

Status check(const AttentionInputs& in, Workspace workspace, int threads, int64_t needed) {
  const AttentionShape& s = in.shape;
  const bool sparse = in.index.data != nullptr;
  if (s.windows < 0 || s.heads < 1 || s.queries < 1 || s.keys < 1 || s.dim_qk < 1 || s.dim_v < 1 ||
      threads < 1 || s.topk < 1 || s.candidates < 1)
    return Status::kBadShape;
  if (!sparse && s.windows > 0 && s.candidates != s.keys) return Status::kBadShape;
  if (sparse && (!usable(in.index) || !in.logits || in.region)) return Status::kBadShape;
  if (in.region && (s.patterns < 1 || s.queries != s.keys)) return Status::kBadShape;
  if (in.bias && (s.queries != s.keys || s.window_size * s.window_size != s.keys)) return Status::kBadShape;
  if (!in.bias && s.window_size != 0) return Status::kBadShape;
  // Beyond, the division by window_size in attention_logits.hpp would not be exact.
  if (s.window_size > 1024) return Status::kUnsupported;
  if (!offsets_fit(s.keys, s.dim_qk) || !offsets_fit(s.keys, s.dim_v)) return Status::kUnsupported;
  return workspace.bytes < needed || !workspace.data ? Status::kBadShape : Status::kOk;
}

// Adds the groups' tables in order; they are reversed, see AttentionBuffers::bias.
void reduce_tables(const AttentionShape& s, const float* tables, int threads, float* grad_bias) {
  const int64_t size = table_size(s), groups = groups_of(s, true);
  for_each_item(s.heads, static_cast<int>(used_threads(s.heads, threads)), [&](int64_t head, int) {
    for (int64_t u = 0; u < size; ++u) {
      float total = 0.0f;
      for (int64_t group = 0; group < groups; ++group) total += tables[(group * s.heads + head) * size + u];
      grad_bias[(size - 1 - u) * s.heads + head] = total;
    }
  });
}

}  // namespace

int64_t sparse_workspace_bytes(const SparseShape& shape, Element element, int threads) {
  return total_bytes(slice_bytes(shape, element), shape.batch, threads);
}

#define PFT_CPU_SPARSE_ENTRY(name, ...) {#name, run_sparse<&Kernels::name##_item>, __VA_ARGS__},
const SparseOp kSparseOps[] = {PFT_CPU_SPARSE_OPS(PFT_CPU_SPARSE_ENTRY){}};

int64_t depthwise_workspace_bytes(const DepthwiseArgs& args, int threads) {
  return total_bytes(slice_bytes(args), items_of(args), threads);
}

Status depthwise_gelu_add(const DepthwiseArgs& args, Workspace workspace, int threads) {
  const DepthwiseArgs& a = args;
  if (a.batch < 0 || a.height < 0 || a.width < 0 || a.channels < 0 || a.kernel < 1 || a.kernel % 2 == 0 ||
      a.first_row < 0 || a.rows < 0 || a.rows > a.height - a.first_row || threads < 1)
    return Status::kBadShape;
  if (a.kernel > kMaxDepthwiseKernel) return Status::kUnsupported;
  const int64_t items = items_of(a), slice = slice_bytes(a);
  if (items == 0 || a.channels == 0) return Status::kOk;
  if (!a.x.data || !a.weight || !a.residual.data || !a.out.data || !workspace.data ||
      workspace.bytes < depthwise_workspace_bytes(a, threads))
    return Status::kBadShape;
  char* base = aligned(workspace.data);
  const auto item_function = kernels().depthwise_item;
  for_each_item(items, static_cast<int>(used_threads(items, threads)),
                [&](int64_t item, int thread) { item_function(args, item, base + thread * slice); });
  return Status::kOk;
}

int64_t attention_forward_workspace_bytes(const AttentionShape& s, bool sparse, int threads) {
  return total_bytes(slice_bytes(s, sparse, false), s.windows * s.heads, threads);
}

int64_t attention_backward_workspace_bytes(const AttentionShape& s, bool sparse, int threads) {
  const int64_t units = groups_of(s, s.window_size > 0) * s.heads;
  return tables_bytes(s) + total_bytes(slice_bytes(s, sparse, true), units, threads);
}

Status attention_forward(const AttentionForwardArgs& args, Workspace workspace, int threads) {
  const AttentionShape& s = args.in.shape;
  const bool sparse = args.in.index.data != nullptr;
  const int64_t items = s.windows * s.heads;
  if (items == 0) return Status::kOk;
  const Status status =
      check(args.in, workspace, threads, attention_forward_workspace_bytes(s, sparse, threads));
  if (status != Status::kOk) return status;
  const bool selecting = s.topk < s.candidates;
  if (!args.out.data || !args.lse || (selecting && !args.new_index.data) ||
      ((selecting || sparse) && !args.new_logits))
    return Status::kBadShape;
  const int64_t slice = slice_bytes(s, sparse, false);
  char* base = aligned(workspace.data);
  const auto item_function = kernels().attention_forward_item;
  const bool timed = args.phase_seconds != nullptr;
  for_each_item(items, static_cast<int>(used_threads(items, threads)), [&](int64_t item, int thread) {
    double seconds[3] = {0.0, 0.0, 0.0};
    item_function(args, item, base + thread * slice, timed ? seconds : nullptr);
    if (!timed) return;
#pragma omp critical(pft_cpu_phase_seconds)
    for (int phase = 0; phase < 3; ++phase) args.phase_seconds[phase] += seconds[phase];
  });
  return Status::kOk;
}

Status attention_backward(const AttentionBackwardArgs& args, Workspace workspace, int threads) {
  const AttentionShape& s = args.in.shape;
  const bool sparse = args.in.index.data != nullptr, bias = args.grad_bias != nullptr;
  if (s.windows * s.heads == 0) {
    for (int64_t t = 0; bias && t < table_size(s) * s.heads; ++t) args.grad_bias[t] = 0.0f;
    return Status::kOk;
  }
  const Status status =
      check(args.in, workspace, threads, attention_backward_workspace_bytes(s, sparse, threads));
  if (status != Status::kOk) return status;
  if (!args.grad_out.data || !args.out.data || !args.lse || !args.grad_q.data || !args.grad_k.data ||
      !args.grad_v.data || (bias && !args.in.bias) || (sparse && !args.grad_logits_prev) ||
      (s.topk < s.candidates && !usable(args.new_index)))
    return Status::kBadShape;
  const int64_t slice = slice_bytes(s, sparse, true), each = windows_per_group(s, s.window_size > 0);
  const int64_t units = groups_of(s, s.window_size > 0) * s.heads;
  float* tables = reinterpret_cast<float*>(aligned(workspace.data));
  char* base = aligned(workspace.data) + tables_bytes(s);
  const auto item_function = kernels().attention_backward_item;
  for_each_item(units, static_cast<int>(used_threads(units, threads)), [&](int64_t unit, int thread) {
    const int64_t group = unit / s.heads, head = unit % s.heads;
    float* table = bias ? tables + unit * table_size(s) : nullptr;
    if (table) std::memset(table, 0, static_cast<size_t>(table_size(s)) * sizeof(float));
    const int64_t end = (group + 1) * each < s.windows ? (group + 1) * each : s.windows;
    for (int64_t window = group * each; window < end; ++window)
      item_function(args, window * s.heads + head, base + thread * slice, table);
  });
  if (bias) reduce_tables(s, tables, threads, args.grad_bias);
  return Status::kOk;
}

}  // namespace pft::cpu
