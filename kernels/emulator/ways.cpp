#include "ways.h"

#include <algorithm>

namespace pft::emu {

unsigned BlockGraph::number(uintptr_t block) {
  if (!block) return 0;
  const auto [at, fresh] = numbers_.try_emplace(block, unsigned(blocks_.size()));
  if (fresh) {
    blocks_.push_back(block);
    after_.emplace_back();
    before_.emplace_back();
  }
  return at->second;
}

void BlockGraph::edge(uintptr_t from, uintptr_t to) {
  auto& recent = recent_[(from * 31 + to) % kRecent];
  if (recent.first == from && recent.second == to) return;
  recent = {from, to};
  const unsigned a = number(from), b = number(to);
  if (std::find(after_[a].begin(), after_[a].end(), b) != after_[a].end()) return;
  after_[a].push_back(b);
  before_[b].push_back(a);
  stale_ = true;
}

// Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm", on the reversed graph.
void BlockGraph::find_meeting_points() {
  const unsigned count = unsigned(blocks_.size()), none = count;
  std::vector<unsigned> order, place(count, none), next(count, 0), stack{0};
  place[0] = 0;  // seen
  while (!stack.empty()) {
    const unsigned n = stack.back();
    if (next[n] == before_[n].size()) {
      order.push_back(n);
      stack.pop_back();
      continue;
    }
    const unsigned m = before_[n][next[n]++];
    if (place[m] != none) continue;
    place[m] = 0;
    stack.push_back(m);
  }
  for (unsigned i = 0; i < order.size(); ++i) place[order[i]] = i;
  meets_.assign(count, none);
  meets_[0] = 0;
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = order.size(); i-- > 0;) {
      const unsigned n = order[i];
      if (!n) continue;
      unsigned meet = none;
      for (unsigned m : after_[n]) {
        if (meets_[m] == none) continue;
        if (meet == none) {
          meet = m;
          continue;
        }
        for (unsigned other = m; meet != other;) {
          if (place[meet] < place[other]) {
            meet = meets_[meet];
          } else {
            other = meets_[other];
          }
        }
      }
      if (meet != meets_[n]) {
        meets_[n] = meet;
        changed = true;
      }
    }
  }
  stale_ = false;
}

uintptr_t BlockGraph::meeting_point(uintptr_t block) {
  if (stale_) find_meeting_points();
  const unsigned n = number(block);
  return n < meets_.size() && meets_[n] < blocks_.size() ? blocks_[meets_[n]] : 0;
}

bool Ways::together() const {
  int lead = -1;
  for (int l = 0; l < 32; ++l) {
    if (first[l] == first[l + 1]) continue;
    if (lead < 0) {
      lead = l;
      continue;
    }
    if (first[l + 1] - first[l] != first[lead + 1] - first[lead]) return false;
    const auto same = [](const Event& a, const Event& b) { return a.same_place(b); };
    const Event* all = events.data();
    if (!std::equal(all + first[l], all + first[l + 1], all + first[lead], same)) return false;
  }
  return true;
}

void Ways::add_to(BlockGraph& graph, bool together) const {
  for (int l = 0; l < 32; ++l) {
    if (first[l] == first[l + 1]) continue;
    uintptr_t before = 0;
    for (uint32_t i = first[l]; i < first[l + 1]; ++i) {
      if (events[i].what != Event::block) continue;
      if (before) graph.edge(before, events[i].code);
      before = events[i].code;
    }
    if (before) graph.ends(before);
    if (together) return;
  }
}

void Ways::walk_together(Visitor& visitor) const {
  const Event* now[32] = {};
  uint32_t lanes = 0, length = 0;
  for (unsigned l = 0; l < 32; ++l) {
    now[l] = events.data() + first[l];
    if (first[l] == first[l + 1]) continue;
    lanes |= 1u << l;
    length = first[l + 1] - first[l];
  }
  for (uint32_t i = 0; i < length; ++i) {
    visitor.step(*now[__builtin_ctz(lanes)], lanes, now, false);
    for (const Event*& event : now) ++event;
  }
}

// The stack of a SIMT machine: the lanes of the top run until `until`, where those below wait for them.
void Ways::walk(BlockGraph& graph, Visitor& visitor) const {
  struct Frame {
    uint32_t lanes;
    uintptr_t until, block;
  };
  uint32_t at[32];
  const Event* now[32] = {};
  uint32_t all = 0;
  for (unsigned l = 0; l < 32; ++l) {
    at[l] = first[l];
    if (first[l] < first[l + 1]) all |= 1u << l;
  }
  std::vector<Frame> stack{{all, 0, 0}};
  while (!stack.empty()) {
    Frame& top = stack.back();
    uint32_t ready = 0, differ = 0;  // lanes that have not arrived; those that are elsewhere than the first
    const Event* lead = nullptr;
    for (uint32_t rest = top.lanes; rest; rest &= rest - 1) {
      const unsigned l = unsigned(__builtin_ctz(rest));
      if (at[l] == first[l + 1]) continue;
      const Event& event = events[at[l]];
      if (top.until && event.what == Event::block && event.code == top.until) continue;
      now[l] = &event;
      ready |= 1u << l;
      if (!lead) lead = &event;
      if (!event.same_place(*lead)) differ |= 1u << l;
    }
    if (!ready) {
      stack.pop_back();
      continue;
    }
    if (!differ) {
      if (lead->what == Event::block) top.block = lead->code;
      visitor.step(*lead, ready, now, stack.size() > 1 || ready != top.lanes);
      for (uint32_t rest = ready; rest; rest &= rest - 1) ++at[__builtin_ctz(rest)];
      continue;
    }
    const uintptr_t meet = graph.meeting_point(top.block);
    visitor.parts(top.block, meet);
    const uintptr_t block = top.block;
    for (uint32_t rest = ready; rest;) {
      const Event& one = *now[__builtin_ctz(rest)];
      uint32_t group = 0;
      for (uint32_t r = rest; r; r &= r - 1) {
        const unsigned l = unsigned(__builtin_ctz(r));
        if (now[l]->same_place(one)) group |= 1u << l;
      }
      rest &= ~group;
      if (!(meet && one.what == Event::block && one.code == meet)) stack.push_back({group, meet, block});
    }
  }
}

}  // namespace pft::emu
