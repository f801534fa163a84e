// Transposed SpMM: each query row is added, weighted, to the rows of its kept keys. One owner per window-head
// adds in a fixed order, so there are no atomics and the result is the same every time.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void spmm_transpose_item(const SparseArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = row_stride(s.head_dim);
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  for (int64_t e = 0; e < s.keys * ld; ++e) buffers.rows[e] = 0.0f;
  const float* a = item_rows(args.left, item, 0);
  const float* x = item_rows(args.right, item, 0);
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args.index, s, item, first, buffers.positions);
    pack_rows(x + first * args.right.stride_row, args.right.stride_row, entries.rows, s.head_dim,
              buffers.block, ld);
    scatter_add_rows(s.head_dim, entries, a + first * args.left.stride_row, args.left.stride_row,
                     buffers.block, ld, buffers.rows, ld);
  }
  for (int64_t j = 0; j < s.keys; ++j)
    copy_scaled(buffers.rows + j * ld, s.head_dim, 1.0f, args.out + (item * s.keys + j) * s.head_dim);
}

}  // namespace pft::cpu::PFT_ISA
