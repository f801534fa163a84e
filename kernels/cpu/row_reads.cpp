// The reads of SDDMM and SpMM and nothing else: each row that the index names, in the index's order, added
// up. No kernel that takes the rows one after another can be faster, so this is their floor, on the very same
// index and timed in the same rounds.
#include "items.hpp"
#include "rows.hpp"
#include "workspace.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

// An addition takes three to four cycles, a row of five vectors two and a half: two rows at a time. Not with
// four lanes, where a row takes longer than an addition, and its sums take all registers.
constexpr int kSets = row::kLanes > 4 ? 2 : 1;

template <int NV>
void add_rows(const Entries& entries, const float* rows, int64_t ld, float* total) {
  row::F acc[kSets][NV];
  for (int s = 0; s < kSets; ++s)
    for (int c = 0; c < NV; ++c) acc[s][c] = s ? row::set1(0.0f) : row::load(total + c * row::kLanes);
  for (int64_t r = 0; r < entries.rows; ++r) {
    const int32_t* at = entries.at + r * entries.ld;
    int64_t t = 0;
    for (; t + kSets <= entries.count; t += kSets) {
#pragma GCC unroll 8
      for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
        for (int c = 0; c < NV; ++c)
          acc[s][c] = acc[s][c] + row::load(rows + at[t + s] * ld + c * row::kLanes);
    }
    for (; t < entries.count; ++t)
#pragma GCC unroll 8
      for (int c = 0; c < NV; ++c) acc[0][c] = acc[0][c] + row::load(rows + at[t] * ld + c * row::kLanes);
  }
  for (int s = 1; s < kSets; ++s)
    for (int c = 0; c < NV; ++c) acc[0][c] = acc[0][c] + acc[s][c];
  for (int c = 0; c < NV; ++c) row::store(total + c * row::kLanes, acc[0][c]);
}

using AddRows = void (*)(const Entries& entries, const float* rows, int64_t ld, float* total);

}  // namespace

void row_reads_item(const SparseArgs& args, int64_t item, void* workspace) {
  constexpr AddRows table[kMaxVectors + 1] = {nullptr,     add_rows<1>, add_rows<2>,
                                              add_rows<3>, add_rows<4>, add_rows<5>};
  const SparseShape& s = args.shape;
  SparseBuffers buffers;
  carve(s, args.element, workspace, &buffers);
  const Gathered from =
      gatherable(item_rows(args.left, args.element, item, 0), s.keys, s.head_dim, buffers.rows);
  for (int64_t e = 0; e < row_stride(s.head_dim); ++e) buffers.block[e] = 0.0f;
  for (int64_t first = 0; first < s.queries; first += kSparseBlockRows) {
    const Entries entries = stage_block(args, item, first, buffers);
    for (int64_t c = 0; c < row_vectors(s.head_dim); c += kMaxVectors) {
      const int64_t left = row_vectors(s.head_dim) - c;
      table[left < kMaxVectors ? left : kMaxVectors](entries, from.rows + c * row::kLanes, from.ld,
                                                     buffers.block + c * row::kLanes);
    }
  }
  write_row(buffers.block, s.head_dim, {args.out, s.head_dim, args.element}, item);
}

}  // namespace pft::cpu::PFT_ISA
