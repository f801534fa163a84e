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
  carve(s, args.element, workspace, &buffers);
  for (int64_t e = 0; e < s.keys * ld; ++e) buffers.rows[e] = 0.0f;
  const ConstRows weights = item_rows(args.left, args.element, item, 0);
  const ConstRows x = item_rows(args.right, args.element, item, 0);
  const Rows out = {args.out, s.head_dim, args.element};
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args, item, first, buffers);
    const Gathered a = readable(from_row(weights, first), entries.rows, s.kept, buffers.entries);
    pack_rows(from_row(x, first), entries.rows, s.head_dim, buffers.block, ld);
    scatter_add_rows(s.head_dim, entries, a.rows, a.ld, buffers.block, ld, buffers.rows, ld);
  }
  for (int64_t j = 0; j < s.keys; ++j)
    write_scaled(buffers.rows + j * ld, s.head_dim, 1.0f, out, item * s.keys + j);
}

}  // namespace pft::cpu::PFT_ISA
