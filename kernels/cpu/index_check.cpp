// Range and duplicates of an index, block by block (index_rows.hpp); where a block has a fault, which comes
// first.
#include <cstring>

#include "isas.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pft::cpu {
namespace {

// Entries of a block, about: rows enough to hide a block's start, fewer than an int16_t counts. And from how
// many on more than one thread is worth its start.
constexpr int64_t kBlockEntries = 1 << 14;
constexpr int64_t kParallelEntries = 1 << 16;

// `last_row` as for rows_distinct in index_rows.hpp.
template <typename Index>
IndexError first_fault(const IndexRowsArgs& args, int64_t first, int64_t end, int16_t* last_row) {
  const Index* values = static_cast<const Index*>(args.index.data) + first * args.kept;
  std::memset(last_row, 0, static_cast<size_t>(args.keys) * sizeof(int16_t));
  for (int64_t row = first; row < end; ++row, values += args.kept) {
    const int16_t own = static_cast<int16_t>(row - first + 1);
    for (int64_t t = 0; t < args.kept; ++t) {
      const int64_t value = values[t];
      if (value < 0 || value >= args.keys) return {IndexError::Kind::kOutOfRange, row, t, value};
      if (last_row[value] == own) return {IndexError::Kind::kDuplicate, row, t, value};
      last_row[value] = own;
    }
  }
  return {};
}

IndexError first_fault(const IndexRowsArgs& args, int64_t first, int64_t end, int16_t* last_row) {
  switch (args.index.type) {
    case IndexType::kInt16:
      return first_fault<int16_t>(args, first, end, last_row);
    case IndexType::kInt32:
      return first_fault<int32_t>(args, first, end, last_row);
    default:
      return first_fault<int64_t>(args, first, end, last_row);
  }
}

}  // namespace

int64_t index_scratch_bytes(int64_t keys, int threads) {
  return keys * (threads < 1 ? 1 : threads) * static_cast<int64_t>(sizeof(int16_t)) + 1;
}

IndexError index_error(const IndexRowsArgs& args, Workspace scratch, int threads) {
  if (args.rows < 1 || args.kept < 1) return {};
  int16_t* last_rows = reinterpret_cast<int16_t*>((reinterpret_cast<uintptr_t>(scratch.data) + 1) / 2 * 2);
  const int64_t each = args.kept < kBlockEntries ? kBlockEntries / args.kept : 1;
  const int64_t blocks = (args.rows + each - 1) / each;
  const auto rows_good = kernels().index_rows_item;
  IndexError found;
  int64_t found_block = blocks;
#pragma omp parallel for num_threads(threads) schedule(static) if (args.rows * args.kept >= kParallelEntries)
  for (int64_t block = 0; block < blocks; ++block) {
#ifdef _OPENMP
    int16_t* last_row = last_rows + args.keys * omp_get_thread_num();
#else
    int16_t* last_row = last_rows;
#endif
    const int64_t first = block * each, end = first + each < args.rows ? first + each : args.rows;
    if (rows_good(args, first, end - first, last_row)) continue;
    const IndexError error = first_fault(args, first, end, last_row);
    if (error.kind == IndexError::Kind::kNone) continue;
#pragma omp critical(pft_cpu_index_error)
    if (block < found_block) {
      found_block = block;
      found = error;
    }
  }
  return found;
}

}  // namespace pft::cpu
