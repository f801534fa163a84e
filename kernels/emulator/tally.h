// Arithmetic that kernels do through the vocabulary, counted always: adding to one number costs less than
// asking whether somebody counts. counters.cpp takes the difference between two places of a lane's way.
#pragma once
#include <cstdint>

namespace pft::emu {

enum class Op : unsigned { fma, exp, log, convert };
constexpr unsigned kOps = 4;

// Four counters of 16 bits, that of fma lowest. Volatile: an addition must not leave its basic block.
extern volatile uint64_t tally;

inline void count(Op op, int times = 1) {
#ifdef PFT_EMU_COUNTED
  tally = tally + (uint64_t(int64_t(times)) << 16 * unsigned(op));
#else
  (void)op, (void)times;
#endif
}

}  // namespace pft::emu
