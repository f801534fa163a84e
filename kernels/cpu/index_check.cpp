// Range and duplicates of an index. Blocks of strictly ascending rows, the usual case, need one pass
// (index_rows.cpp); the rows of any other block mark their values in a bitmap of the thread that checks them,
// and unmark them afterwards.
#include <cstring>

#include "isas.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pft::cpu {
namespace {

// Entries of a block, about; and from how many on more than one thread is worth its start.
constexpr int64_t kBlockEntries = 1 << 14;
constexpr int64_t kParallelEntries = 1 << 16;

int64_t words(int64_t keys) { return (keys + 63) / 64; }

template <typename Index>
IndexError check_row(const Index* values, int64_t row, int64_t kept, int64_t keys, uint64_t* seen) {
  IndexError error;
  int64_t t = 0;
  for (; t < kept; ++t) {
    const int64_t value = values[t];
    if (value < 0 || value >= keys) {
      error = {IndexError::Kind::kOutOfRange, row, t, value};
      break;
    }
    const uint64_t bit = uint64_t{1} << (value % 64);
    if (seen[value / 64] & bit) {
      error = {IndexError::Kind::kDuplicate, row, t, value};
      break;
    }
    seen[value / 64] |= bit;
  }
  for (int64_t u = 0; u < t; ++u) seen[static_cast<int64_t>(values[u]) / 64] = 0;
  return error;
}

template <typename Index>
IndexError check_rows(const IndexRowsArgs& args, int64_t first, int64_t end, uint64_t* seen) {
  const Index* values = static_cast<const Index*>(args.index.data);
  IndexError error;
  for (int64_t row = first; row < end && error.kind == IndexError::Kind::kNone; ++row)
    error = check_row(values + row * args.kept, row, args.kept, args.keys, seen);
  return error;
}

IndexError check_rows(const IndexRowsArgs& args, int64_t first, int64_t end, uint64_t* seen) {
  switch (args.index.type) {
    case IndexType::kInt16:
      return check_rows<int16_t>(args, first, end, seen);
    case IndexType::kInt32:
      return check_rows<int32_t>(args, first, end, seen);
    default:
      return check_rows<int64_t>(args, first, end, seen);
  }
}

}  // namespace

int64_t index_scratch_bytes(int64_t keys, int threads) {
  return words(keys) * (threads < 1 ? 1 : threads) * static_cast<int64_t>(sizeof(uint64_t)) + 8;
}

IndexError index_error(const IndexRowsArgs& args, Workspace scratch, int threads) {
  if (args.rows < 1 || args.kept < 1) return {};
  uint64_t* seen = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(scratch.data) + 7) / 8 * 8);
  std::memset(seen, 0, static_cast<size_t>(words(args.keys) * threads) * sizeof(uint64_t));
  const int64_t each = args.kept < kBlockEntries ? kBlockEntries / args.kept : 1;
  const int64_t blocks = (args.rows + each - 1) / each;
  const auto rows_ascend = kernels().index_rows_item;
  IndexError found;
  int64_t found_block = blocks;
#pragma omp parallel for num_threads(threads) schedule(static) if (args.rows * args.kept >= kParallelEntries)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * each, end = first + each < args.rows ? first + each : args.rows;
    if (rows_ascend(args, first, end - first)) continue;
#ifdef _OPENMP
    uint64_t* own = seen + words(args.keys) * omp_get_thread_num();
#else
    uint64_t* own = seen;
#endif
    const IndexError error = check_rows(args, first, end, own);
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
