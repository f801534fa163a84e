#include "shadow.h"

namespace pft::emu {
namespace {

Conflict conflict(const Access& past, const Now& now) {
  if (past.epoch < now.launch_first_epoch || past.epoch == 0) return Conflict::none;
  if (past.atomic && now.atomic) return Conflict::none;
  if (past.epoch < now.block_first_epoch) return Conflict::other_block;
  if (past.thread == now.thread) return Conflict::none;
  if (past.epoch != now.epoch) return Conflict::none;  // a block barrier lies between
  if (past.thread / 32 == now.thread / 32 && past.warp_epoch != now.warp_epoch) return Conflict::none;
  return Conflict::same_block;
}

Access stamp(const Now& now, bool in_flight) {
  return {now.epoch, now.warp_epoch, now.thread, uint8_t(now.atomic), uint8_t(in_flight)};
}

}  // namespace

Conflict record_read(Cell& cell, const Now& now, Access* earlier) {
  *earlier = cell.writer;
  if (cell.writer.in_flight && cell.writer.epoch >= now.block_first_epoch) return Conflict::in_flight;
  const Conflict found = conflict(cell.writer, now);
  // Two readers are kept, of different warps where possible: a later writer that is unordered with some
  // reader of this epoch is then unordered with one of the two.
  if (cell.reader.thread != now.thread) {
    const Access& other = cell.other_reader;
    const bool other_is_foreign = other.epoch == now.epoch && other.thread / 32 != now.thread / 32;
    const bool reader_is_foreign =
        cell.reader.epoch == now.epoch && cell.reader.thread / 32 != now.thread / 32;
    if (reader_is_foreign || !other_is_foreign) cell.other_reader = cell.reader;
  }
  cell.reader = stamp(now, false);
  return found;
}

Conflict record_write(Cell& cell, const Now& now, bool in_flight, Access* earlier) {
  Conflict found = Conflict::none;
  for (const Access* past : {&cell.writer, &cell.reader, &cell.other_reader}) {
    found = conflict(*past, now);
    *earlier = *past;
    if (found != Conflict::none) break;
  }
  cell.writer = stamp(now, in_flight);
  return found;
}

}  // namespace pft::emu
