// The race detector's memory: who touched each granule of a writable buffer last, and when.
//
// "When" is an epoch: a number that grows at every block barrier, at every new block and at every new launch,
// over the life of the process. Blocks run one after another, so an epoch alone tells whether a recorded
// access came from an earlier launch (ordered by the stream), from another block of this launch (never
// ordered), or from this block (ordered if a barrier lies between). Lanes of one warp are also ordered by a
// full __syncwarp, counted apart.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pft::emu {

struct Access {
  uint32_t epoch = 0;  // 0: never
  uint32_t warp_epoch = 0;
  uint16_t thread = 0;
  uint8_t atomic = 0;
  uint8_t in_flight = 0;  // a cp.async whose data have not landed
};

struct Cell {
  Access writer, reader, other_reader;
};

// One range of memory that a launch may touch. Read-only ranges have no cells: nothing can race there.
struct Region {
  const char* begin = nullptr;
  const char* end = nullptr;
  bool writable = false;
  unsigned granule =
      4;  // bytes that one cell stands for: the element size, so that neighbours do not collide
  std::vector<Cell> cells;

  bool contains(const void* p, size_t bytes) const {
    const char* c = static_cast<const char*>(p);
    return c >= begin && c + bytes <= end;
  }
};

struct Now {  // the access being made
  uint32_t epoch, warp_epoch, block_first_epoch, launch_first_epoch;
  uint16_t thread;
  bool atomic;
};

enum class Conflict { none, same_block, other_block, in_flight };

// Records the access and says whether it conflicts with an unordered earlier one (copied to `earlier`).
Conflict record_read(Cell& cell, const Now& now, Access* earlier);
Conflict record_write(Cell& cell, const Now& now, bool in_flight, Access* earlier);

}  // namespace pft::emu
