// Whether rows of an index hold distinct keys in range, and a copy of them in another type, in one pass where
// rows ascend. Used by the pass over a whole index (index_rows.cpp) and, block by block, by the ops that take
// an index as it comes (rows.hpp).
#pragma once
#include <stdint.h>

#include <type_traits>

namespace pft::cpu::PFT_ISA {
namespace {

// Few enough for counts in int16_t.
constexpr int64_t kPiece = 2048;

// Copies from[0, n), n >= 1, unless `to` is null, and counts the neighbours that do not ascend. `wrong` is
// negative if an entry is, or lies above `last`. In one pass over few enough lines to stay in the first-level
// cache; an entry is compared with the next one, so that what is copied is aligned where the rows are.
template <bool kCopy, typename From, typename To>
int64_t convert(const From* __restrict from, int64_t n, From last, From* wrong, To* __restrict to) {
  using Bits = std::make_unsigned_t<From>;  // a difference may wrap around; its sign counts only for x >= 0
  const auto outside = [last](From x) {
    return static_cast<From>(x | static_cast<From>(static_cast<Bits>(last) - static_cast<Bits>(x)));
  };
  int64_t falls = 0;
  From any = outside(from[n - 1]);
  for (int64_t first = 0; first < n - 1; first += kPiece) {
    const int64_t end = n - 1 - first < kPiece ? n - 1 : first + kPiece;
    From found = 0;
    for (int64_t e = first; e < end; ++e) {
      const From x = from[e];
      found = static_cast<From>(found + (from[e + 1] <= x));
      any = static_cast<From>(any | outside(x));
      if (kCopy) to[e] = static_cast<To>(x);
    }
    falls += found;
  }
  if (kCopy) to[n - 1] = static_cast<To>(from[n - 1]);
  *wrong = any;
  return falls;
}

// Whether the keys of each row are distinct; all lie in [0, keys). Each key remembers, in `last_row`, the
// last row that named it, so that no row has to clear up behind itself. At most kMostRows rows.
constexpr int64_t kMostRows = 32767;
template <typename Index>
bool rows_distinct(const Index* __restrict index, int64_t rows, int64_t kept, int64_t keys,
                   int16_t* __restrict last_row) {
  for (int64_t j = 0; j < keys; ++j) last_row[j] = 0;
  int32_t before = -1;  // negative for as long as the last row of each key lies before its own
  for (int64_t r = 0; r < rows; ++r, index += kept) {
    const int16_t own = static_cast<int16_t>(r + 1);
#pragma GCC unroll 4
    for (int64_t t = 0; t < kept; ++t) {
      int16_t* last = last_row + index[t];
      before &= *last - own;
      *last = own;
    }
  }
  return before < 0;
}

// Whether all is well with `rows` rows of `kept` entries, rows * kept >= 1. They are copied to `to` unless it
// is null. Rows lie one after the other, so that the pass need not stop at their ends: among all neighbours
// that do not ascend, those at the ends of rows are counted apart and taken off. Short rows would cost as
// much to begin and to end as to check. Rows that do not ascend are gone through once more.
template <typename From, typename To>
bool rows_good(const From* from, int64_t rows, int64_t kept, int64_t keys, To* to, int16_t* last_row) {
  constexpr int64_t kMost = static_cast<int64_t>((uint64_t{1} << (8 * sizeof(From) - 1)) - 1);
  const From last = static_cast<From>(keys - 1 < kMost ? keys - 1 : kMost);
  const int64_t n = rows * kept;
  From wrong = 0;
  int64_t falls = to ? convert<true>(from, n, last, &wrong, to) : convert<false>(from, n, last, &wrong, to);
  if (wrong < 0) return false;
  for (int64_t e = kept; e < n; e += kept) falls -= from[e] <= from[e - 1];
  if (falls == 0) return true;
  return to ? rows_distinct(to, rows, kept, keys, last_row) : rows_distinct(from, rows, kept, keys, last_row);
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
