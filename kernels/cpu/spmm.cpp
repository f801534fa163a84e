// SpMM: the weighted sum of each row's kept values.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void spmm_item(const SparseArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = row_stride(s.head_dim);
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  const Gathered values =
      gatherable(item_rows(args.right, item, 0), args.right.stride_row, s.keys, s.head_dim, buffers.rows);
  const float* a = item_rows(args.left, item, 0);
  float* out = args.out + item * s.queries * s.head_dim;
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args.index, s, item, first, buffers.positions);
    gather_add_rows(s.head_dim, entries, a + first * args.left.stride_row, args.left.stride_row, values,
                    buffers.block, ld);
    for (int64_t r = 0; r < entries.rows; ++r)
      copy_scaled(buffers.block + r * ld, s.head_dim, 1.0f, out + (first + r) * s.head_dim);
  }
}

}  // namespace pft::cpu::PFT_ISA
