// Range and duplicates of an index. Strictly ascending rows, the usual case, need no bookkeeping; any other
// row marks its values in a bitmap of the thread that checks it, and unmarks them afterwards.
#include <cstring>

#include "pft/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pft::cpu {
namespace {

constexpr int64_t kBlockRows = 1024;

int64_t words(int64_t keys) { return (keys + 63) / 64; }

template <typename Index>
IndexError check_row(const Index* values, int64_t row, int64_t kept, int64_t keys, uint64_t* seen) {
  // Branch-free, so that the compiler vectorises it; the first and last value bound a strictly ascending row.
  int ascending = 1;
  for (int64_t t = 1; t < kept; ++t) ascending &= values[t] > values[t - 1];
  if (ascending && values[0] >= 0 && static_cast<int64_t>(values[kept - 1]) < keys) return {};
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
IndexError check_rows(const Index* values, int64_t rows, int64_t kept, int64_t keys, uint64_t* scratch,
                      int threads) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  std::memset(scratch, 0, static_cast<size_t>(words(keys) * threads) * sizeof(uint64_t));
  IndexError first;
  int64_t first_block = blocks;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (blocks > 1)
  for (int64_t block = 0; block < blocks; ++block) {
#ifdef _OPENMP
    uint64_t* seen = scratch + words(keys) * omp_get_thread_num();
#else
    uint64_t* seen = scratch;
#endif
    const int64_t end = (block + 1) * kBlockRows < rows ? (block + 1) * kBlockRows : rows;
    IndexError error;
    for (int64_t row = block * kBlockRows; row < end && error.kind == IndexError::Kind::kNone; ++row)
      error = check_row(values + row * kept, row, kept, keys, seen);
    if (error.kind == IndexError::Kind::kNone) continue;
#pragma omp critical(pft_cpu_index_error)
    if (block < first_block) {
      first_block = block;
      first = error;
    }
  }
  return first;
}

}  // namespace

int64_t index_scratch_bytes(int64_t keys, int threads) {
  return words(keys) * (threads < 1 ? 1 : threads) * static_cast<int64_t>(sizeof(uint64_t)) + 8;
}

IndexError index_error(const void* index, IndexType type, int64_t rows, int64_t kept, int64_t keys,
                       Workspace scratch, int threads) {
  if (rows < 1 || kept < 1) return {};
  uint64_t* seen = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(scratch.data) + 7) / 8 * 8);
  switch (type) {
    case IndexType::kInt16:
      return check_rows(static_cast<const int16_t*>(index), rows, kept, keys, seen, threads);
    case IndexType::kInt32:
      return check_rows(static_cast<const int32_t*>(index), rows, kept, keys, seen, threads);
    default:
      return check_rows(static_cast<const int64_t*>(index), rows, kept, keys, seen, threads);
  }
}

}  // namespace pft::cpu
