// Runs CUDA C++ kernels on a CPU: one fiber per CUDA thread, blocks one after another in seeded random order,
// warps of a block interleaved at random at every synchronisation. Built to be believed, not to be fast.
//
// Every access that a kernel makes through a View (view.h) is checked: bounds, alignment, races, reads of
// data that a cp.async has not delivered. A finding ends the launch with an Error that names kernel, block,
// thread and address.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "half.h"
#include "shadow.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
using cudaStream_t = void*;

namespace pft::emu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What the process emulates. The detector and the poison can be switched off to show what they alone find.
struct Config {
  uint32_t seed = 0;
  bool races = true;   // conflicting accesses, reads under a cp.async in flight
  bool poison = true;  // shared memory starts as NaN; cp.async data arrive only at the wait, NaN before
  bool bounds = true;  // every View access inside its array and inside memory given to the launch
  bool dry = false;    // launches are recorded but not run: geometry of shapes too large to emulate
  size_t shared_limit =
      99 << 10;             // dynamic shared memory a block may ask for (sm_86 and sm_89; sm_90 has 227 KB)
  bool refuse = false;      // every launch fails, as on a device that cannot run the kernel
  int multiprocessors = 4;  // of the device: how many blocks make a full wave
  // For counting alone, as results are then incomplete: of a launch's blocks only those in the first of so
  // many equal parts run (the first window-head of its batch), and of these every so many-th, but at least
  // four.
  unsigned parts = 1, stride = 1;
};
Config& config();

struct LaunchRecord {
  std::string kernel;
  uint64_t blocks;
  unsigned threads;
  size_t dynamic_bytes;
};
std::vector<LaunchRecord>& dry_launches();

// What the last launches did, for tests that check that something ran at all.
struct Counters {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0, accesses = 0;
};
Counters& counters();

// Memory that the next launches may touch: bindings register each tensor for the duration of a call. Ranges
// that overlap (views of one buffer) become one.
class Buffers {
 public:
  Buffers();
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  void add(const void* begin, size_t bytes, unsigned element_bytes, bool writable);
};

// What an access does. An atomic reads and writes; ldmatrix is a load by all lanes; async is either end of a
// cp.async.
enum class Kind : uint8_t { load, store, atomic, ldmatrix, async };
enum class WarpOp : uint8_t { none, syncwarp, shuffle, vote, reduce, mma, ldmatrix };

struct AsyncCopy {
  char* to;
  const char* from;
  unsigned bytes;
};

constexpr unsigned kSlotBytes = 64;  // largest value that one lane gives to a warp operation
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kAll = 0xffffffffu;

struct Thread {
  Fiber fiber;
  dim3 index;
  uint16_t linear = 0;
  unsigned lane = 0, warp = 0, warp_ops = 0;
  std::vector<AsyncCopy> pending;
  std::vector<std::vector<AsyncCopy>> committed;
};

struct Warp {
  uint32_t exists = 0, ready = 0, arrived = 0, mask = 0;
  uint32_t epoch = 0;
  WarpOp op = WarpOp::none;
  alignas(16) unsigned char slots[2][32][kSlotBytes];  // alternating, so that a fast lane cannot overwrite a
                                                       // slow one's
};

struct Block {
  dim3 index, size, grid;
  const char* kernel = "";
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint32_t ready_warps = 0;
  unsigned live = 0, at_barrier = 0;
  const char* barrier_file = nullptr;
  int barrier_line = 0;
  const void* barrier_site = nullptr;
  uint32_t epoch = 0, first_epoch = 0, launch_first_epoch = 0;
  char* shared = nullptr;
  size_t dynamic_bytes = 0, static_bytes = 0;
  std::vector<std::pair<const void*, char*>> static_arrays;
  std::vector<Cell> shared_cells;  // a cell for every two bytes
  uint64_t random = 0;
  std::string error;
  Fiber host;
  const std::function<void()>* body = nullptr;
};

extern Block* block;    // the block that runs; null between launches
extern Thread* thread;  // the thread that runs

// Where an address lies: in the block's shared memory, or in which buffer of the launch.
struct Place {
  bool shared;
  unsigned buffer;
  uint64_t offset;
};
bool locate(const void* address, size_t bytes, Place* place);
uint64_t buffer_bytes(unsigned buffer);
unsigned buffer_count();

// Who is told what a launch does (counters.h), by the running thread. `site` is the code address that the
// call returns to; it lies in the kernel, as all that stands between is inlined there (vocabulary.h,
// __global__).
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void launch_begins(const char* kernel, uint64_t blocks) = 0;
  virtual void block_begins(uint32_t number) = 0;
  virtual void access(const void* site, const void* address, unsigned bytes, Kind kind) = 0;
  virtual void pauses() = 0;  // the thread may stop here, or ends
  // The last lane has arrived: the lanes in `mask` of the warp (all that exist: `all`) go on together.
  virtual void collective(const void* site, unsigned warp, WarpOp op, bool all) = 0;
  virtual void barrier(const void* site) = 0;  // the same for all warps of the block
  virtual void warp_ends(unsigned warp) = 0;
  virtual void launch_ends() = 0;
};
#ifdef PFT_EMU_COUNTED
extern Observer* observer;  // null: nobody
#else
constexpr Observer* observer = nullptr;  // nobody can be told, which costs nothing
#endif

[[noreturn]] void fail(const std::string& what);
void access(const void* address, size_t bytes, Kind kind, const char* begin, const char* end);
void sync_threads(const char* file, int line);
void sync_warp(uint32_t mask, WarpOp op);
void* static_array(const void* key, size_t bytes);
void issue_async(void* to, const void* from, unsigned bytes, const char* begin, const char* end);
void commit_async();
void wait_async(size_t allowed);
void run(const char* name, dim3 grid, dim3 size, size_t dynamic_bytes, const std::function<void()>& body);

// All lanes' values of a warp operation, by lane.
template <class T>
struct Exchanged {
  const unsigned char (*slots)[kSlotBytes];
  PFT_EMU_PART T operator[](unsigned lane) const {
    T value;
    std::memcpy(&value, slots[lane], sizeof(T));
    return value;
  }
};

template <class T>
Exchanged<T> exchange(uint32_t mask, WarpOp op, const T& value) {
  static_assert(sizeof(T) <= kSlotBytes, "value too large for a warp operation");
  auto& slots = block->warps[thread->warp].slots[thread->warp_ops++ & 1];
  std::memcpy(slots[thread->lane], &value, sizeof(T));
  sync_warp(mask, op);
  return {slots};
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 size, size_t dynamic_bytes,
            A... arguments) {
  run(name, grid, size, dynamic_bytes, [=] { kernel(arguments...); });
}

}  // namespace pft::emu
