// SpMM: the weighted sum of each row's kept values.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void spmm_item(const SparseArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = row_stride(s.head_dim);
  SparseBuffers buffers;
  carve(s, args.element, workspace, &buffers);
  const Gathered values =
      gatherable(item_rows(args.right, args.element, item, 0), s.keys, s.head_dim, buffers.rows);
  const ConstRows weights = item_rows(args.left, args.element, item, 0);
  const Rows out = {args.out, s.head_dim, args.element};
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args, item, first, buffers);
    const Gathered a = readable(from_row(weights, first), entries.rows, s.kept, buffers.entries);
    gather_add_rows(s.head_dim, entries, a.rows, a.ld, values, buffers.block, ld);
    for (int64_t r = 0; r < entries.rows; ++r)
      write_scaled(buffers.block + r * ld, s.head_dim, 1.0f, out, item * s.queries + first + r);
  }
}

}  // namespace pft::cpu::PFT_ISA
