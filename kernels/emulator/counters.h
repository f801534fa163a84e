// What a profiler would count, from what the lanes of a warp do: requests, shared-memory wavefronts, global
// sectors, instructions, for each place in the source.
//
// A GPU runs a warp's lanes together, the emulator one after another. So each lane's way is written down
// (basic blocks, by -fsanitize-coverage=trace-pc, and the accesses in them) until the warp's next common
// collective, and the 32 ways are then walked in step, as the hardware's stack of reconvergence points does:
// lanes that part at a branch meet again at its immediate post-dominator. The graph of blocks is that of the
// launch: what its lanes went through. Ways that part wait until the launch has ended, so that all of it is
// known; only where they are too many for memory are they walked before, and those whose meeting point then
// turns out to lie elsewhere are counted as `doubtful`.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "emulator.h"
#include "tally.h"

namespace pft::emu {

// One instruction of the source: where it stands (a code address, for addr2line), what it does, and how wide.
struct SiteKey {
  uintptr_t code;
  Kind kind;
  bool shared;
  uint8_t bytes;
  bool operator<(const SiteKey& o) const {
    return std::tie(code, kind, shared, bytes) < std::tie(o.code, o.kind, o.shared, o.bytes);
  }
};

struct SiteCounts {
  uint64_t requests = 0, lanes = 0;
  // Shared memory. 16 bytes a lane go by quarter-warps, 8 by half-warps; two of them share wavefronts in a
  // load whose lanes all agree with their neighbour (lane ^ 1, or lane ^ 2).
  uint64_t wavefronts = 0;
  uint64_t unmerged = 0;       // without that rule, which no document states
  uint64_t conflict_free = 0;  // wavefronts if no two words met in a bank
  // Global memory.
  uint64_t sectors = 0;        // of 32 bytes
  uint64_t sectors_ideal = 0;  // what the distinct bytes would fill
  uint64_t l1_cycles = 0;      // of L1's data stage: 128 bytes or four lines a cycle
};

enum class Step : unsigned {
  barrier,
  syncwarp,
  shuffle,
  vote,
  reduce,
  mma
};  // an instruction of a whole warp
constexpr unsigned kSteps = 6;

struct LaunchCounts {
  std::string kernel;
  uint64_t blocks = 0, blocks_run = 0, warps = 0;
  unsigned threads = 0;
  uint64_t shared_bytes = 0;
  std::map<SiteKey, SiteCounts> sites;
  std::map<std::pair<uintptr_t, Step>, uint64_t> steps;  // by place
  uint64_t ops[kOps] = {};                               // warp instructions
  uint64_t requests = 0;
  uint64_t parted = 0;    // of these, made while lanes of the warp were elsewhere
  uint64_t doubtful = 0;  // put together with a meeting point that proved wrong later
  uint64_t bytes_read_once = 0, bytes_read_by_many = 0;  // distinct; by one block, by several
  uint64_t bytes_written = 0;                            // distinct
  uint64_t sectors_of_blocks = 0;  // read by plain loads, distinct within each block: L1 kept everything
};

// The counts of all launches since the last call.
std::vector<LaunchCounts> take_counts();

// What the launches report to while they are counted; keep it as emu::observer. `most_events`: of ways that
// parted, how many events wait for the launch's end before they are walked with what is known.
Observer* counting_observer();
void set_most_events(size_t most_events);

}  // namespace pft::emu
