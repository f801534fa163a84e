// SDDMM: the dot products of each query row with its kept keys.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void sddmm_item(const SparseArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  const Gathered keys =
      gatherable(item_rows(args.right, item, 0), args.right.stride_row, s.keys, s.head_dim, buffers.rows);
  const float* q = item_rows(args.left, item, 0);
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args.index, s, item, first, buffers.positions);
    gather_dot_rows(s.head_dim, entries, q + first * args.left.stride_row, args.left.stride_row, keys,
                    args.out + (item * s.queries + first) * s.kept, s.kept);
  }
}

}  // namespace pft::cpu::PFT_ISA
