// Chooses the instruction set, checks shapes, and shares window-heads out to threads. Compiled for the baseline.
//
// Threads come from OpenMP. Where torch was imported first its libgomp is in the global scope and provides GOMP_parallel
// here too, so that torch and these kernels share one pool of threads.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

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

Status check(const SparseShape& s, const ConstIndex& index, Workspace workspace, int threads, int64_t needed) {
  if (s.batch < 0 || s.queries < 0 || s.keys < 0 || s.kept < 0 || s.head_dim < 1 || threads < 1)
    return Status::kBadShape;
  if (!offsets_fit(s.keys, s.head_dim)) return Status::kUnsupported;
  if (s.batch * s.queries * s.kept > 0 && (!usable(index) || s.keys < 1)) return Status::kBadShape;
  return workspace.bytes < needed || (needed > 0 && !workspace.data) ? Status::kBadShape : Status::kOk;
}

int64_t slice_bytes(const SparseShape& s) {
  SparseBuffers buffers;
  return carve(s, nullptr, &buffers);
}

int64_t slice_bytes(const AttentionShape& s, bool sparse, bool backward) {
  AttentionBuffers buffers;
  return carve(s, sparse, backward, nullptr, &buffers);
}

// 64 bytes more than the slices: the caller's memory may begin anywhere.
int64_t total_bytes(int64_t slice, int64_t items, int threads) { return slice * used_threads(items, threads) + 64; }

char* aligned(void* data) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(data) + 63) / 64 * 64);
}

template <typename Args>
Status run_sparse(const Args& args, void (*item_function)(const Args&, int64_t, void*), Workspace workspace,
                  int threads) {
  const SparseShape& s = args.shape;
  const int64_t slice = slice_bytes(s);
  const Status status = check(s, args.index, workspace, threads, total_bytes(slice, s.batch, threads));
  if (status != Status::kOk) return status;
  char* base = aligned(workspace.data);
  for_each_item(s.batch, static_cast<int>(used_threads(s.batch, threads)),
                [&](int64_t item, int thread) { item_function(args, item, base + thread * slice); });
  return Status::kOk;
}

}  // namespace

int64_t sddmm_workspace_bytes(const SparseShape& shape, int threads) {
  return total_bytes(slice_bytes(shape), shape.batch, threads);
}
int64_t spmm_workspace_bytes(const SparseShape& shape, int threads) { return sddmm_workspace_bytes(shape, threads); }
int64_t spmm_transpose_workspace_bytes(const SparseShape& shape, int threads) {
  return sddmm_workspace_bytes(shape, threads);
}

Status sddmm(const SddmmArgs& args, Workspace workspace, int threads) {
  return run_sparse(args, kernels().sddmm, workspace, threads);
}
Status spmm(const SpmmArgs& args, Workspace workspace, int threads) {
  return run_sparse(args, kernels().spmm, workspace, threads);
}
Status spmm_transpose(const SpmmTransposeArgs& args, Workspace workspace, int threads) {
  return run_sparse(args, kernels().spmm_transpose, workspace, threads);
}

}  // namespace pft::cpu
