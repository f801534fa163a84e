// SDDMM: the dot products of each query row with its kept keys.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void sddmm_item(const SparseArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  SparseBuffers buffers;
  carve(s, args.element, workspace, &buffers);
  const Gathered keys =
      gatherable(item_rows(args.right, args.element, item, 0), s.keys, s.head_dim, buffers.rows);
  const ConstRows queries = item_rows(args.left, args.element, item, 0);
  const Rows out = {args.out, s.kept, args.element};
  const bool in_place = args.element == Element::kFloat32;
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args, item, first, buffers);
    const Gathered q = readable(from_row(queries, first), entries.rows, s.head_dim, buffers.block);
    const Rows block = from_row(out, item * s.queries + first);
    float* logits = in_place ? static_cast<float*>(block.data) : buffers.entries;
    gather_dot_rows(s.head_dim, entries, q.rows, q.ld, keys, logits, s.kept);
    if (!in_place) write_row(logits, entries.rows * s.kept, block, 0);
  }
}

}  // namespace pft::cpu::PFT_ISA
