// SDDMM: the dot products of each query row with its kept keys.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void sddmm_item(const SddmmArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = padded(s.head_dim);
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  pack_rows(item_rows(args.k, item, 0), args.k.stride_row, s.keys, s.head_dim, buffers.rows, ld);
  const GatherDot dot = pick_gather_dot(s.head_dim);
  const float* q = item_rows(args.q, item, 0);
  for (int64_t i = 0; i < s.queries; ++i) {
    const int64_t row = item * s.queries + i;
    stage_offsets(args.index, row, s.kept, ld, buffers.offsets);
    dot(q + i * args.q.stride_row, s.head_dim, buffers.rows, buffers.offsets, s.kept,
        args.out + row * s.kept);
  }
}

}  // namespace pft::cpu::PFT_ISA
