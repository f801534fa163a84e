// Rows of an index that ascend strictly and lie in range, the usual case, checked and converted in one pass.
//
// Rows lie one after the other, so that the pass need not stop at their ends: among all neighbours that do
// not ascend, those at the ends of rows are counted apart and taken off. Short rows would cost as much to
// begin and to end as to check.
#include <type_traits>

#include "items.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

// Few enough for counts in int16_t.
constexpr int64_t kPiece = 2048;

// Copies from[0, n) unless `to` is null, and counts the neighbours that do not ascend. `wrong` is negative if
// an entry is, or lies above `last`. In one pass over few enough lines to stay in the first-level cache.
template <typename From, typename To, bool kCopy>
int64_t convert(const From* __restrict from, int64_t n, From last, From* wrong, To* __restrict to) {
  using Bits = std::make_unsigned_t<From>;  // a difference may wrap around; its sign counts only for x >= 0
  int64_t falls = 0;
  From signs = 0;
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = n - first < kPiece ? n - first : kPiece;
    const From* piece = from + first;
    const auto above = [last](From x) {
      return static_cast<From>(static_cast<Bits>(last) - static_cast<Bits>(x));
    };
    From found = first ? piece[0] <= piece[-1] : 0;
    From any = static_cast<From>(piece[0] | above(piece[0]));
    if (kCopy) to[first] = static_cast<To>(piece[0]);
    for (int64_t e = 1; e < count; ++e) {
      const From x = piece[e];
      found = static_cast<From>(found + (x <= piece[e - 1]));
      any = static_cast<From>(any | x | above(x));
      if (kCopy) to[first + e] = static_cast<To>(x);
    }
    falls += found;
    signs = static_cast<From>(signs | any);
  }
  *wrong = signs;
  return falls;
}

template <typename From, typename To>
bool rows_ascend(const IndexRowsArgs& args, int64_t first, int64_t rows) {
  const From* from = static_cast<const From*>(args.index.data) + first * args.kept;
  constexpr int64_t kMost = static_cast<int64_t>((uint64_t{1} << (8 * sizeof(From) - 1)) - 1);
  const From last = static_cast<From>(args.keys - 1 < kMost ? args.keys - 1 : kMost);
  From wrong = 0;
  int64_t falls = args.to.data ? convert<From, To, true>(from, rows * args.kept, last, &wrong,
                                                         static_cast<To*>(args.to.data) + first * args.kept)
                               : convert<From, To, false>(from, rows * args.kept, last, &wrong, nullptr);
  for (int64_t row = 1; row < rows; ++row) falls -= from[row * args.kept] <= from[row * args.kept - 1];
  return falls == 0 && wrong >= 0;
}

template <typename From>
bool rows_ascend(const IndexRowsArgs& args, int64_t first, int64_t rows) {
  return args.to.type == IndexType::kInt16 ? rows_ascend<From, int16_t>(args, first, rows)
                                           : rows_ascend<From, int32_t>(args, first, rows);
}

}  // namespace

bool index_rows_item(const IndexRowsArgs& args, int64_t first, int64_t rows) {
  switch (args.index.type) {
    case IndexType::kInt16:
      return rows_ascend<int16_t>(args, first, rows);
    case IndexType::kInt32:
      return rows_ascend<int32_t>(args, first, rows);
    default:
      return rows_ascend<int64_t>(args, first, rows);
  }
}

}  // namespace pft::cpu::PFT_ISA
