#include "counters.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "ways.h"

namespace pft::emu {

volatile uint64_t tally = 0;

namespace {

// -- what a request costs
// -----------------------------------------------------------------------------------------

// Addresses of the lanes of a request that take part.
struct Addresses {
  uint64_t of[32];
  uint32_t lanes = 0;
};

struct Wavefronts {
  unsigned actual = 0, conflict_free = 0;
};

// Lanes in groups of `at_once`, each served alone: as many wavefronts as the fullest bank holds different
// words, or for atomics lanes. A bank is four bytes wide.
Wavefronts by_groups(const Addresses& a, unsigned bytes, unsigned at_once, bool atomic) {
  Wavefronts sum;
  for (unsigned from = 0; from < 32; from += at_once) {
    uint64_t words[32 * 4];
    unsigned n = 0;
    for (unsigned l = from; l < from + at_once; ++l) {
      if (!(a.lanes >> l & 1)) continue;
      for (unsigned i = 0; i < std::max(1u, bytes / 4); ++i) words[n++] = a.of[l] / 4 + i;
    }
    if (!n) continue;
    if (!atomic) {
      std::sort(words, words + n);
      n = unsigned(std::unique(words, words + n) - words);
    }
    unsigned in_bank[32] = {}, most = 0;
    for (unsigned i = 0; i < n; ++i) most = std::max(most, ++in_bank[words[i] % 32]);
    sum.actual += most;
    ++sum.conflict_free;
  }
  return sum;
}

bool neighbours_agree(const Addresses& a, unsigned bit) {
  for (unsigned l = 0; l < 32; ++l) {
    const bool both = (a.lanes >> l & 1) && (a.lanes >> (l ^ bit) & 1);
    if (both && a.of[l] != a.of[l ^ bit]) return false;
  }
  return true;
}

void add_shared(SiteCounts& c, const Addresses& a, unsigned bytes, Kind kind) {
  const unsigned at_once = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
  Wavefronts w = by_groups(a, bytes, at_once, kind == Kind::atomic);
  c.unmerged += w.actual;
  if (kind == Kind::load && at_once < 32 && (neighbours_agree(a, 1) || neighbours_agree(a, 2))) {
    const Wavefronts merged = by_groups(a, bytes, at_once * 2, false);
    if (merged.actual < w.actual) w = merged;
  }
  c.wavefronts += w.actual;
  c.conflict_free += w.conflict_free;
}

void add_global(SiteCounts& c, const Addresses& a, unsigned bytes) {
  uint64_t at[32];
  unsigned n = 0, sectors = 0, lines = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (a.lanes >> l & 1) at[n++] = a.of[l];
  std::sort(at, at + n);
  n = unsigned(std::unique(at, at + n) - at);
  for (unsigned i = 0; i < n; ++i) {  // an aligned access of at most 16 bytes lies in one sector
    sectors += !i || at[i] / 32 != at[i - 1] / 32;
    lines += !i || at[i] / 128 != at[i - 1] / 128;
  }
  c.sectors += sectors;
  c.sectors_ideal += (n * bytes + 31) / 32;
  c.l1_cycles += std::max((n * bytes + 127) / 128, (lines + 3) / 4);
}

// -- which bytes of global memory a launch touches
// ----------------------------------------------------------------

struct Sector {
  uint16_t read = 0, written = 0;  // two bytes a bit
  uint32_t block = 0;              // that read it last
  bool by_many = false;
};

class Traffic {
 public:
  void begin() {
    buffers_.clear();
    buffers_.resize(buffer_count());
    for (unsigned b = 0; b < buffers_.size(); ++b) buffers_[b].resize(size_t(buffer_bytes(b)) / 32 + 1);
  }
  // Whether the block reads this sector for the first time.
  bool touch(const Place& place, unsigned bytes, bool reads, bool writes, uint32_t block) {
    Sector& s = buffers_[place.buffer][size_t(place.offset / 32)];
    const uint16_t pieces = uint16_t((bytes < 2 ? 1u : (1u << bytes / 2) - 1) << place.offset % 32 / 2);
    bool first = false;
    if (reads) {
      s.read = uint16_t(s.read | (pieces & ~s.written));  // what the launch wrote comes back from L2
      first = s.block != block;
      s.by_many |= s.block && first;
      s.block = block;
    }
    if (writes) s.written |= pieces;
    return first;
  }
  void add_to(LaunchCounts& c) const {
    for (const auto& buffer : buffers_) {
      for (const Sector& s : buffer) {
        const uint64_t read = 2 * uint64_t(__builtin_popcount(s.read));
        (s.by_many ? c.bytes_read_by_many : c.bytes_read_once) += read;
        c.bytes_written += 2 * uint64_t(__builtin_popcount(s.written));
      }
    }
  }

 private:
  std::vector<std::vector<Sector>> buffers_;
};

// -- the observer
// -------------------------------------------------------------------------------------------------

std::vector<LaunchCounts> finished;
size_t most_events = 8 << 20;

class Counter : public Observer, Visitor {
 public:
  void launch_begins(const char* kernel, uint64_t blocks) override {
    launch_ = std::make_unique<LaunchCounts>();
    launch_->kernel = kernel;
    launch_->blocks = blocks;
    launch_->threads = block->size.x * block->size.y * block->size.z;
    launch_->shared_bytes = block->dynamic_bytes;
    graph_ = std::make_unique<BlockGraph>();
    parted_at_.clear();
    waiting_.clear();
    waiting_events_ = 0;
    traffic_.begin();
    block_number_ = 0;
    mark_ = tally;
  }
  void block_begins(uint32_t) override {
    ++block_number_;
    ++launch_->blocks_run;
    launch_->warps += block->warps.size();
    lanes_.resize(block->warps.size() * 32);
    for (auto& events : lanes_) events.clear();
  }
  void access(const void* site, const void* address, unsigned bytes, Kind kind) override {
    Place place;
    if (!locate(address, bytes, &place)) return;
    if (!place.shared) {
      const bool writes = kind == Kind::store || kind == Kind::atomic;
      const bool first = traffic_.touch(place, bytes, kind != Kind::store, writes, block_number_);
      launch_->sectors_of_blocks += first && kind == Kind::load;
    }
    // A buffer begins on a whole number of lines, wherever it lies here.
    const uint64_t at = place.shared ? place.offset : uint64_t(place.buffer) << 40 | place.offset;
    log({code_of(site), Event::pack(kind, place.shared, bytes), at});
  }
  void enter_block(const void* code) {
    if (!launch_ || !thread) return;
    pauses();
    log({code_of(code), Event::block, 0});
  }
  void pauses() override {
    const uint64_t now = tally;
    if (now != mark_) log({0, Event::ops, now - mark_});
    mark_ = now;
  }
  void collective(const void* site, unsigned warp, WarpOp op, bool all) override {
    static constexpr Step steps[] = {Step::syncwarp, Step::syncwarp, Step::shuffle,
                                     Step::vote,     Step::reduce,   Step::mma};
    if (op != WarpOp::ldmatrix) ++launch_->steps[{code_of(site), steps[unsigned(op)]}];
    if (all) meet(warp, site);
  }
  void barrier(const void* site) override {
    for (unsigned w = 0; w < block->warps.size(); ++w) {
      if (!block->warps[w].exists) continue;
      ++launch_->steps[{code_of(site), Step::barrier}];
      meet(w, site);
    }
  }
  void warp_ends(unsigned warp) override { meet(warp, nullptr); }
  void launch_ends() override {
    walk_waiting();
    traffic_.add_to(*launch_);
    finished.push_back(std::move(*launch_));
    launch_.reset();
  }

  // Visitor
  void step(const Event& event, uint32_t lanes, const Event* const* of_lane, bool parted) override {
    if (event.what == Event::block) return;
    if (event.what == Event::ops) {
      for (unsigned o = 0; o < kOps; ++o) launch_->ops[o] += event.value >> 16 * o & 0xffff;
      return;
    }
    SiteCounts& c = launch_->sites[{event.code, event.kind(), event.shared(), uint8_t(event.bytes())}];
    Addresses a;
    a.lanes = lanes;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const unsigned l = unsigned(__builtin_ctz(rest));
      a.of[l] = of_lane[l]->value;
    }
    ++launch_->requests;
    launch_->parted += parted;
    ++c.requests;
    c.lanes += unsigned(__builtin_popcount(lanes));
    if (event.shared()) {
      add_shared(c, a, event.bytes(), event.kind());
    } else {
      add_global(c, a, event.bytes());
    }
  }
  void parts(uintptr_t at, uintptr_t meeting_point) override {
    Parting& p = parted_at_[at];
    if (p.meeting_point != meeting_point) {
      launch_->doubtful += p.requests;
      p = {meeting_point, 0};
    }
    parted_now_.insert(at);
  }

 private:
  struct Parting {
    uintptr_t meeting_point = 0;
    uint64_t requests = 0;  // of the intervals in which lanes parted there
  };
  static uintptr_t code_of(const void* code) { return reinterpret_cast<uintptr_t>(code); }
  void log(const Event& event) { lanes_[thread->linear].push_back(event); }

  // All lanes of the warp are at `site` (null: at the kernel's end): their ways since the last time are
  // complete.
  void meet(unsigned warp, const void* site) {
    Ways ways;
    for (unsigned l = 0; l < 32; ++l) {
      std::vector<Event>& events = lanes_[warp * 32 + l];
      ways.first[l] = uint32_t(ways.events.size());
      ways.events.insert(ways.events.end(), events.begin(), events.end());
      events.clear();
      // What follows is a block of its own, as the graph is cut here.
      const bool goes_on = site && block->warps[warp].exists >> l & 1;
      if (goes_on) events.push_back({code_of(site), Event::block, 0});
    }
    ways.first[32] = uint32_t(ways.events.size());
    const bool together = ways.together();
    ways.add_to(*graph_, together);
    if (together) {
      ways.walk_together(*this);
      return;
    }
    waiting_events_ += ways.events.size();
    waiting_.push_back(std::move(ways));
    if (waiting_events_ > most_events) walk_waiting();
  }
  void walk_waiting() {
    for (const Ways& ways : waiting_) {
      const uint64_t before = launch_->requests;
      parted_now_.clear();
      ways.walk(*graph_, *this);
      for (uintptr_t at : parted_now_) parted_at_[at].requests += launch_->requests - before;
    }
    waiting_.clear();
    waiting_events_ = 0;
  }

  std::unique_ptr<LaunchCounts> launch_;
  std::unique_ptr<BlockGraph> graph_;
  Traffic traffic_;
  std::vector<std::vector<Event>> lanes_;
  std::vector<Ways> waiting_;
  size_t waiting_events_ = 0;
  std::map<uintptr_t, Parting> parted_at_;
  std::unordered_set<uintptr_t> parted_now_;
  uint32_t block_number_ = 0;
  uint64_t mark_ = 0;
};

Counter& counter() {
  static Counter instance;
  return instance;
}

}  // namespace

std::vector<LaunchCounts> take_counts() { return std::move(finished); }
Observer* counting_observer() { return &counter(); }
void set_most_events(size_t value) { most_events = value; }

}  // namespace pft::emu

// Called by every basic block of a kernel (-fsanitize-coverage=trace-pc).
extern "C" __attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc() {
  if (pft::emu::observer) pft::emu::counter().enter_block(__builtin_return_address(0));
}
