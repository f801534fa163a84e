// Transposed SpMM: each query row is added, weighted, to the rows of its kept keys. One owner per window-head
// adds in row order, so there are no atomics and the result is the same every time.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void spmm_transpose_item(const SpmmTransposeArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = padded(s.head_dim);
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  for (int64_t e = 0; e < s.keys * ld; ++e) buffers.rows[e] = 0.0f;
  const ScatterAdd add = pick_scatter_add(s.head_dim);
  const float* a = item_rows(args.a, item, 0);
  const float* x = item_rows(args.x, item, 0);
  for (int64_t i = 0; i < s.queries; ++i) {
    stage_offsets(args.index, item * s.queries + i, s.kept, ld, buffers.offsets);
    add(a + i * args.a.stride_row, x + i * args.x.stride_row, s.head_dim, buffers.rows, buffers.offsets,
        s.kept);
  }
  for (int64_t j = 0; j < s.keys; ++j)
    copy_row(buffers.rows + j * ld, s.head_dim, args.out + (item * s.keys + j) * s.head_dim);
}

}  // namespace pft::cpu::PFT_ISA
