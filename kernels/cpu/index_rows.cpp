// Rows of an index that ascend strictly and lie in range, the usual case, checked and converted in one pass.
//
// Rows lie one after the other, so that the pass need not stop at their ends: among all neighbours that do
// not ascend, those at the ends of rows are counted apart and taken off. Short rows would cost as much to
// begin and to end as to check.
#include "items.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

// Few enough for the counts of int16_t entries, and for the first-level cache.
constexpr int64_t kPiece = 2048;

// Neighbours of from[0, n) that do not ascend, the first one with what is before it; `low` and `high` collect
// signs and the largest entry.
template <typename From, typename To>
int64_t convert(const From* from, int64_t n, From* low, From* high, To* to) {
  int64_t falls = 0;
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = n - first < kPiece ? n - first : kPiece;
    const From* piece = from + first;
    From signs = 0, most = 0, found = 0;
    if (first == 0) {
      signs = most = piece[0];
    } else {
      found = piece[0] <= piece[-1];
      signs = most = piece[0];
    }
    for (int64_t e = 1; e < count; ++e) {
      found = static_cast<From>(found + (piece[e] <= piece[e - 1]));
      signs = static_cast<From>(signs | piece[e]);
      most = piece[e] > most ? piece[e] : most;
    }
    for (int64_t e = 0; to && e < count; ++e) to[first + e] = static_cast<To>(piece[e]);
    falls += found;
    *low = static_cast<From>(*low | signs);
    *high = most > *high ? most : *high;
  }
  return falls;
}

template <typename From, typename To>
bool rows_ascend(const IndexRowsArgs& args, int64_t first, int64_t rows) {
  const From* from = static_cast<const From*>(args.index.data) + first * args.kept;
  To* to = args.to.data ? static_cast<To*>(args.to.data) + first * args.kept : nullptr;
  From low = 0, high = 0;
  int64_t falls = convert(from, rows * args.kept, &low, &high, to);
  for (int64_t row = 1; row < rows; ++row) falls -= from[row * args.kept] <= from[row * args.kept - 1];
  return falls == 0 && low >= 0 && static_cast<int64_t>(high) < args.keys;
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
