#include "emulator.h"

#include <cstdlib>
#include <mutex>
#include <numeric>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define PFT_EMU_ASAN 1
#endif

namespace pft::emu {

Block* block = nullptr;
Thread* thread = nullptr;
#ifdef PFT_EMU_COUNTED
Observer* observer = nullptr;
#endif

Config& config() {
  static Config instance;
  return instance;
}

Counters& counters() {
  static Counters instance;
  return instance;
}

std::vector<LaunchRecord>& dry_launches() {
  static std::vector<LaunchRecord> instance;
  return instance;
}

namespace {

std::recursive_mutex one_launch_at_a_time;
std::vector<Region> regions;
unsigned scopes = 0;
uint32_t next_epoch = 1;
std::vector<std::pair<uint32_t, dim3>> epochs_of_blocks;  // first epoch, block: only for messages

// A block's shared memory: the dynamic part, slack that nobody owns (an overflow lands there, for a check or
// ASan to find), then static arrays.
constexpr size_t kSlackBytes = 16 << 10;
constexpr size_t kStaticBytes = 48 << 10;

uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

size_t capacity(const Block& b) { return b.dynamic_bytes + kSlackBytes + kStaticBytes; }

std::string name_of(dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

std::string name_of(const void* address) {
  char text[64];
  const char* c = static_cast<const char*>(address);
  if (c >= block->shared && c < block->shared + capacity(*block)) {
    std::snprintf(text, sizeof text, "shared+0x%zx", size_t(c - block->shared));
    return text;
  }
  for (size_t i = 0; i < regions.size(); ++i) {
    if (!regions[i].contains(address, 1)) continue;
    std::snprintf(text, sizeof text, "buffer %zu+0x%zx", i, size_t(c - regions[i].begin));
    return text;
  }
  std::snprintf(text, sizeof text, "%p", address);
  return text;
}

[[noreturn]] void leave_block() {
  switch_fiber(thread->fiber, block->host, true);
  std::abort();  // an abandoned fiber is never entered again
}

// The next thread to run: mostly of the same warp, at random of another. None ready: the block is stuck.
[[noreturn]] void stuck() {
  std::string at;
  if (block->at_barrier) {
    at = std::to_string(block->at_barrier) + " of " + std::to_string(block->live) +
         " threads wait in __syncthreads (" + block->barrier_file + ":" +
         std::to_string(block->barrier_line) + ")";
  }
  for (size_t w = 0; w < block->warps.size(); ++w) {
    const Warp& warp = block->warps[w];
    if (!warp.arrived) continue;
    char text[128];
    std::snprintf(text, sizeof text, "%swarp %zu: lanes %08x of %08x arrived at a warp operation",
                  at.empty() ? "" : "; ", w, warp.arrived, warp.mask);
    at += text;
  }
  fail("divergent collective: " + at);
}

unsigned nth_bit(uint32_t bits, unsigned n) {
  while (n--) bits &= bits - 1;
  return unsigned(__builtin_ctz(bits));
}

Thread* pick() {
  if (!block->ready_warps) return nullptr;
  const uint64_t r = next_random(block->random);
  unsigned w = thread ? thread->warp : 0;
  if (!(block->ready_warps >> w & 1) || !(r & 15)) {
    w = nth_bit(block->ready_warps, unsigned(r >> 8) % unsigned(__builtin_popcount(block->ready_warps)));
  }
  const uint32_t ready = block->warps[w].ready;
  const unsigned lane = r & 16 ? unsigned(__builtin_ctz(ready)) : 31u - unsigned(__builtin_clz(ready));
  return &block->threads[w * 32 + lane];
}

void set_ready(unsigned w, uint32_t lanes) {
  block->warps[w].ready |= lanes;
  if (block->warps[w].ready) block->ready_warps |= 1u << w;
}

void clear_ready(const Thread& t) {
  Warp& warp = block->warps[t.warp];
  warp.ready &= ~(1u << t.lane);
  if (!warp.ready) block->ready_warps &= ~(1u << t.warp);
}

void enter(Thread* next, bool dying = false) {
  Thread* me = thread;
  if (next == me) return;
  thread = next;
  ++counters().switches;
  switch_fiber(me->fiber, next->fiber, dying);
}

void wait_for_wakeup() {
  clear_ready(*thread);
  Thread* next = pick();
  if (!next) stuck();
  enter(next);
}

void release_barrier(const void* site) {
  block->at_barrier = 0;
  if (observer) observer->barrier(site);
  block->epoch = next_epoch++;
  for (size_t w = 0; w < block->warps.size(); ++w) set_ready(unsigned(w), block->warps[w].exists);
}

void thread_main() {
  fiber_started();
  (*block->body)();
  Thread* me = thread;
  if (observer) observer->pauses();
  clear_ready(*me);
  Warp& warp = block->warps[me->warp];
  warp.exists &= ~(1u << me->lane);
  if (!warp.exists && observer) observer->warp_ends(me->warp);
  --block->live;
  if (block->live && block->at_barrier == block->live)
    release_barrier(block->barrier_site);  // exited threads count as arrived (sm_70+)
  if (!block->live) leave_block();
  Thread* next = pick();
  if (!next) stuck();
  enter(next, true);
  std::abort();
}

Region* find_region(const void* address, size_t bytes) {
  static size_t last = 0;
  if (last < regions.size() && regions[last].contains(address, bytes)) return &regions[last];
  for (size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].contains(address, bytes)) {
      last = i;
      return &regions[i];
    }
  }
  return nullptr;
}

bool in_shared(const void* address, size_t bytes) {
  const char* c = static_cast<const char*>(address);
  return c >= block->shared && c + bytes <= block->shared + capacity(*block);
}

[[noreturn]] void report(Conflict found, const void* address, bool write, const Access& earlier) {
  std::string what = found == Conflict::in_flight
                         ? "read of data that a cp.async has not delivered at "
                         : std::string("race: ") + (write ? "write" : "read") + " of ";
  what += name_of(address) + " conflicts with thread " + std::to_string(earlier.thread);
  if (found == Conflict::other_block) {
    auto it = std::upper_bound(epochs_of_blocks.begin(), epochs_of_blocks.end(), earlier.epoch,
                               [](uint32_t e, const auto& entry) { return e < entry.first; });
    what += " of block " + (it == epochs_of_blocks.begin() ? "?" : name_of((it - 1)->second));
  }
  fail(what);
}

// Marks every granule of [address, address + bytes) and reports the first conflict.
void track(const void* address, size_t bytes, bool write, bool atomic, bool in_flight) {
  Cell* cells;
  size_t granule, offset;
  uint32_t forget = block->launch_first_epoch;
  if (in_shared(address, bytes)) {
    forget = block->first_epoch;  // another block's shared memory is another memory
    cells = block->shared_cells.data();
    granule = 2;
    offset = size_t(static_cast<const char*>(address) - block->shared);
  } else {
    Region* region = find_region(address, bytes);
    if (!region || !region->writable) return;
    cells = region->cells.data();
    granule = region->granule;
    offset = size_t(static_cast<const char*>(address) - region->begin);
  }
  const Now now{block->epoch, block->warps[thread->warp].epoch, block->first_epoch, forget, thread->linear,
                atomic};
  for (size_t g = offset / granule; g <= (offset + bytes - 1) / granule; ++g) {
    Access earlier;
    const Conflict found =
        write ? record_write(cells[g], now, in_flight, &earlier) : record_read(cells[g], now, &earlier);
    if (found != Conflict::none) report(found, address, write, earlier);
  }
}

void check_bounds(const void* address, size_t bytes, bool write, const char* begin, const char* end) {
  const char* c = static_cast<const char*>(address);
  const std::string verb = write ? "write" : "read";
  if (begin && (c < begin || c + bytes > end)) {
    fail("out of bounds: " + verb + " of " + std::to_string(bytes) + " bytes at byte " +
         std::to_string(c - begin) + " of an array of " + std::to_string(end - begin) + " bytes (" +
         name_of(address) + ")");
  }
  if (in_shared(c, bytes)) {
    const size_t at = size_t(c - block->shared), statics = block->dynamic_bytes + kSlackBytes;
    if (at + bytes <= block->dynamic_bytes || (at >= statics && at + bytes <= statics + block->static_bytes))
      return;
    fail("out of bounds: " + verb + " of " + std::to_string(bytes) + " bytes of shared memory at byte " +
         std::to_string(at) + ", the block has " + std::to_string(block->dynamic_bytes));
  }
  const Region* region = find_region(address, bytes);
  if (!region) {
    fail("out of bounds: " + verb + " of " + std::to_string(bytes) + " bytes at " + name_of(address) +
         ", in no buffer of the launch");
  }
  if (write && !region->writable) fail("write to read-only " + name_of(address));
}

}  // namespace

void fail(const std::string& what) {
  block->error = std::string(block->kernel) + ": " + what + " [block " + name_of(block->index) + ", thread " +
                 name_of(thread->index) + "]";
  leave_block();
}

Buffers::Buffers() {
  one_launch_at_a_time.lock();
  ++scopes;
}

Buffers::~Buffers() {
  if (--scopes == 0) regions.clear();
  one_launch_at_a_time.unlock();
}

void Buffers::add(const void* begin, size_t bytes, unsigned element_bytes, bool writable) {
  if (!bytes || config().dry) return;
  Region merged;
  merged.begin = static_cast<const char*>(begin);
  merged.end = merged.begin + bytes;
  merged.writable = writable;
  merged.granule = std::max(1u, element_bytes);
  for (size_t i = 0; i < regions.size();) {
    const Region& r = regions[i];
    if (r.end <= merged.begin || r.begin >= merged.end) {
      ++i;
      continue;
    }
    merged.begin = std::min(merged.begin, r.begin);
    merged.end = std::max(merged.end, r.end);
    merged.granule = std::min(merged.granule, r.granule);
    merged.writable |= r.writable;
    regions.erase(regions.begin() + std::ptrdiff_t(i));
    i = 0;
  }
  if (merged.writable) merged.cells.resize(size_t(merged.end - merged.begin) / merged.granule + 2);
  regions.push_back(std::move(merged));
}

bool locate(const void* address, size_t bytes, Place* place) {
  if (in_shared(address, bytes)) {
    *place = {true, 0, uint64_t(static_cast<const char*>(address) - block->shared)};
    return true;
  }
  const Region* region = find_region(address, bytes);
  if (!region) return false;
  *place = {false, unsigned(region - regions.data()),
            uint64_t(static_cast<const char*>(address) - region->begin)};
  return true;
}

uint64_t buffer_bytes(unsigned buffer) { return uint64_t(regions[buffer].end - regions[buffer].begin); }
unsigned buffer_count() { return unsigned(regions.size()); }

namespace {

// What every access is held against, whoever makes it.
__attribute__((always_inline)) inline void check(const void* address, size_t bytes, Kind kind,
                                                 const char* begin, const char* end) {
  const bool atomic = kind == Kind::atomic, write = kind == Kind::store || atomic;
  ++counters().accesses;
  if (reinterpret_cast<uintptr_t>(address) % bytes) {
    fail("misaligned " + std::to_string(bytes) + "-byte access at " + name_of(address));
  }
  if (config().bounds) check_bounds(address, bytes, write, begin, end);
  if (!config().races) return;
  if (atomic) track(address, bytes, false, true, false);
  track(address, bytes, write, atomic, false);
}

}  // namespace

void access(const void* address, size_t bytes, Kind kind, const char* begin, const char* end) {
  check(address, bytes, kind, begin, end);
  if (observer) observer->access(__builtin_return_address(0), address, unsigned(bytes), kind);
}

void sync_threads(const char* file, int line) {
  if (block->at_barrier && (block->barrier_line != line || std::strcmp(block->barrier_file, file) != 0)) {
    fail("divergent collective: __syncthreads at " + std::string(file) + ":" + std::to_string(line) +
         " while others wait at " + block->barrier_file + ":" + std::to_string(block->barrier_line));
  }
  block->barrier_file = file;
  block->barrier_line = line;
  block->barrier_site = __builtin_return_address(0);
  if (observer) observer->pauses();
  if (++block->at_barrier == block->live) {
    release_barrier(block->barrier_site);
    enter(pick());  // whoever arrived last is not always first to go on
  } else {
    wait_for_wakeup();
  }
}

void sync_warp(uint32_t mask, WarpOp op) {
  Warp& warp = block->warps[thread->warp];
  if (mask == kAll) mask = warp.exists;  // a full mask where a partial last warp or exited lanes leave fewer
  if (!(mask >> thread->lane & 1)) fail("divergent collective: the calling lane is not in its own mask");
  if (warp.arrived && (warp.mask != mask || warp.op != op)) {
    fail("divergent collective: lanes of one warp call different operations or masks");
  }
  warp.mask = mask;
  warp.op = op;
  warp.arrived |= 1u << thread->lane;
  if (observer) observer->pauses();
  if (warp.arrived != mask) {
    wait_for_wakeup();
    return;
  }
  warp.arrived = 0;
  if (observer) observer->collective(__builtin_return_address(0), thread->warp, op, mask == warp.exists);
  if (op == WarpOp::syncwarp && mask == warp.exists) ++warp.epoch;  // only __syncwarp orders memory
  set_ready(thread->warp, mask);
}

void* static_array(const void* key, size_t bytes) {
  for (const auto& entry : block->static_arrays) {
    if (entry.first == key) return entry.second;
  }
  const size_t rounded = (bytes + 15) / 16 * 16;
  if (block->static_bytes + rounded > kStaticBytes) fail("more than 48 KB of static shared memory");
  char* array = block->shared + block->dynamic_bytes + kSlackBytes + block->static_bytes;
  block->static_bytes += rounded;
  block->static_arrays.emplace_back(key, array);
  return array;
}

void issue_async(void* to, const void* from, unsigned bytes, const char* begin, const char* end) {
  check(from, bytes, Kind::load, nullptr, nullptr);
  check(to, bytes, Kind::store, begin, end);
  if (!in_shared(to, bytes)) fail("cp.async to memory that is not shared");
  if (observer) {
    observer->access(__builtin_return_address(0), from, bytes, Kind::async);
    observer->access(__builtin_return_address(0), to, bytes, Kind::async);
  }
  if (!config().poison) {
    std::memcpy(to, from, bytes);  // the lucky machine: data are there at once
  } else {
    std::memset(to, 0xff, bytes);
  }
  if (config().races) track(to, bytes, true, false, true);
  thread->pending.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes});
}

void commit_async() {
  thread->committed.push_back(std::move(thread->pending));
  thread->pending.clear();
}

void wait_async(size_t allowed) {
  while (thread->committed.size() > allowed) {
    for (const AsyncCopy& copy : thread->committed.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      if (config().races) track(copy.to, copy.bytes, true, false, false);
    }
    thread->committed.erase(thread->committed.begin());
  }
}

namespace {

void start_block(Block& b, dim3 index, uint32_t number) {
  b.index = index;
  b.live = b.size.x * b.size.y * b.size.z;
  b.at_barrier = 0;
  b.epoch = b.first_epoch = next_epoch++;
  b.static_bytes = 0;
  b.static_arrays.clear();
  b.random = (uint64_t(config().seed) << 32 | number) * 0xd1342543de82ef95ull + 1;
  epochs_of_blocks.emplace_back(b.first_epoch, index);
  std::memset(b.shared, config().poison ? 0xff : 0, capacity(b));
  b.ready_warps = 0;
  for (Warp& warp : b.warps) {
    warp.exists = warp.ready = warp.arrived = 0;
    warp.op = WarpOp::none;
  }
  for (unsigned t = 0; t < b.live; ++t) {
    Thread& me = b.threads[t];
    me.warp_ops = 0;
    me.pending.clear();
    me.committed.clear();
    me.fiber.prepare(thread_main);
    b.warps[me.warp].exists |= 1u << me.lane;
    set_ready(me.warp, 1u << me.lane);
  }
}

void make_threads(Block& b) {
  const unsigned count = b.size.x * b.size.y * b.size.z;
  size_t stack_bytes, pitch;
  char* stacks = stack_pool(count, &stack_bytes, &pitch);
  b.threads.resize(count);
  b.warps.resize((count + 31) / 32);
  for (unsigned t = 0; t < count; ++t) {
    Thread& me = b.threads[t];
    me.index = dim3(t % b.size.x, t / b.size.x % b.size.y, t / b.size.x / b.size.y);
    me.linear = uint16_t(t);
    me.lane = t % 32;
    me.warp = t / 32;
    me.fiber.stack = stacks + t * pitch;
    me.fiber.stack_bytes = stack_bytes;
  }
}

void check_launch(const char* name, dim3 grid, dim3 size, size_t dynamic_bytes) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z;
  if (!threads || threads > kMaxThreads)
    throw Error(std::string(name) + ": a block of " + std::to_string(threads) + " threads");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw Error(std::string(name) + ": grid " + name_of(grid) + " is empty or too large");
  }
  if (dynamic_bytes > config().shared_limit) {
    throw Error(std::string(name) + ": " + std::to_string(dynamic_bytes) +
                " bytes of shared memory, the limit is " + std::to_string(config().shared_limit));
  }
}

struct Cleanup {
  char* shared;
  ~Cleanup() {
    std::free(shared);
    block = nullptr;
    thread = nullptr;
  }
};

}  // namespace

void run(const char* name, dim3 grid, dim3 size, size_t dynamic_bytes, const std::function<void()>& body) {
  check_launch(name, grid, size, dynamic_bytes);
  if (config().dry) {
    dry_launches().push_back(
        {name, uint64_t(grid.x) * grid.y * grid.z, size.x * size.y * size.z, (dynamic_bytes + 15) / 16 * 16});
    return;
  }
  std::lock_guard<std::recursive_mutex> lock(one_launch_at_a_time);
  Block b;
  b.kernel = name;
  b.size = size;
  b.grid = grid;
  b.body = &body;
  b.dynamic_bytes = (dynamic_bytes + 15) / 16 * 16;
  make_threads(b);
  b.shared = static_cast<char*>(std::aligned_alloc(128, (capacity(b) + 127) / 128 * 128));
  Cleanup cleanup{b.shared};
  if (config().races) b.shared_cells.resize(capacity(b) / 2 + 8);
  b.launch_first_epoch = next_epoch++;
  epochs_of_blocks.clear();
  block = &b;

  std::vector<uint32_t> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  uint64_t random = config().seed;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random(random) % i]);
  ++counters().launches;
  const uint32_t in_part = std::max(1u, uint32_t(order.size()) / config().parts);
  const uint32_t stride = std::clamp(in_part / 4, 1u, config().stride);
  if (observer) observer->launch_begins(name, order.size());
  for (uint32_t number : order) {
    if (number >= in_part || number % stride) continue;
    if (observer) observer->block_begins(number);
    start_block(b, dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y), number);
    ++counters().blocks;
    counters().threads += b.live;
    thread = nullptr;
    thread = pick();
#ifdef PFT_EMU_ASAN
    __asan_poison_memory_region(b.shared + b.dynamic_bytes, kSlackBytes);
#endif
    switch_fiber(b.host, thread->fiber);
#ifdef PFT_EMU_ASAN
    __asan_unpoison_memory_region(b.shared + b.dynamic_bytes, kSlackBytes);
#endif
    if (!b.error.empty()) throw Error(b.error);
  }
  if (observer) observer->launch_ends();
}

}  // namespace pft::emu
