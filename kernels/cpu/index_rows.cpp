// Rows of an index, checked and copied.
#include "index_rows.hpp"

#include "items.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

template <typename From>
bool rows_good(const IndexRowsArgs& args, int64_t first, int64_t rows, int16_t* last_row) {
  const int64_t at = first * args.kept;
  const From* from = static_cast<const From*>(args.index.data) + at;
  const auto copied = [&](auto* to) {
    return rows_good(from, rows, args.kept, args.keys, to ? to + at : nullptr, last_row);
  };
  return args.to.type == IndexType::kInt16 ? copied(static_cast<int16_t*>(args.to.data))
                                           : copied(static_cast<int32_t*>(args.to.data));
}

}  // namespace

bool index_rows_item(const IndexRowsArgs& args, int64_t first, int64_t rows, int16_t* last_row) {
  switch (args.index.type) {
    case IndexType::kInt16:
      return rows_good<int16_t>(args, first, rows, last_row);
    case IndexType::kInt32:
      return rows_good<int32_t>(args, first, rows, last_row);
    default:
      return rows_good<int64_t>(args, first, rows, last_row);
  }
}

}  // namespace pft::cpu::PFT_ISA
