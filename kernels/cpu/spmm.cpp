// SpMM: the weighted sum of each row's kept values.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {

void spmm_item(const SpmmArgs& args, int64_t item, void* workspace) {
  const SparseShape& s = args.shape;
  const int64_t ld = padded(s.head_dim);
  SparseBuffers buffers;
  carve(s, workspace, &buffers);
  pack_rows(item_rows(args.v, item, 0), args.v.stride_row, s.keys, s.head_dim, buffers.rows, ld);
  const GatherAdd add = pick_gather_add(s.head_dim);
  const float* a = item_rows(args.a, item, 0);
  for (int64_t i = 0; i < s.queries; ++i) {
    const int64_t row = item * s.queries + i;
    stage_offsets(args.index, row, s.kept, ld, buffers.offsets);
    add(a + i * args.a.stride_row, buffers.rows, buffers.offsets, s.kept, 1.0f, s.head_dim,
        args.out + row * s.head_dim);
  }
}

}  // namespace pft::cpu::PFT_ISA
