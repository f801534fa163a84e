// The ways of a warp's lanes from one common collective to the next, and how they are walked in step.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace pft::emu {

// One thing on a lane's way. The same place of two lanes is the same (code, what).
struct Event {
  enum What : uint32_t { block = 0xffff0000u, ops = 0xffff0001u };  // else: a packed access
  uintptr_t code;
  uint32_t what;
  uint64_t value;  // of an access its address, of `ops` the packed counts of the block

  static uint32_t pack(Kind kind, bool shared, unsigned bytes) {
    return uint32_t(kind) << 16 | uint32_t(shared) << 8 | bytes;
  }
  Kind kind() const { return Kind(what >> 16); }
  bool shared() const { return what >> 8 & 1; }
  unsigned bytes() const { return what & 0xff; }
  bool same_place(const Event& o) const { return code == o.code && what == o.what; }
};

// Which basic block followed which. Grows while a launch runs.
class BlockGraph {
 public:
  void edge(uintptr_t from, uintptr_t to);
  void ends(uintptr_t block) { edge(block, 0); }
  // Where lanes that part at the end of `block` meet again: its immediate post-dominator; 0 if only at the
  // end.
  uintptr_t meeting_point(uintptr_t block);

 private:
  unsigned number(uintptr_t block);
  void find_meeting_points();

  static constexpr unsigned kRecent = 4096;
  std::pair<uintptr_t, uintptr_t> recent_[kRecent] = {};  // edges that are known to be known
  std::unordered_map<uintptr_t, unsigned> numbers_;
  std::vector<uintptr_t> blocks_{0};  // 0 is the end
  std::vector<std::vector<unsigned>> after_{{}}, before_{{}};
  std::vector<unsigned> meets_;
  bool stale_ = true;
};

// What a walk finds: an event, and the lanes that take part.
class Visitor {
 public:
  virtual ~Visitor() = default;
  virtual void step(const Event& event, uint32_t lanes, const Event* const* of_lane, bool parted) = 0;
  virtual void parts(uintptr_t block, uintptr_t meeting_point) = 0;
};

// The events of up to 32 lanes, one lane after another: lane l has [first[l], first[l + 1]).
struct Ways {
  std::vector<Event> events;
  uint32_t first[33] = {};

  bool together() const;  // all lanes that have events go the same way
  void add_to(BlockGraph& graph, bool together) const;
  void walk_together(Visitor& visitor) const;
  void walk(BlockGraph& graph, Visitor& visitor) const;
};

}  // namespace pft::emu
