// The words of CUDA C++ that the kernels use, for g++.
#pragma once
#include <cmath>

#include "view.h"

#ifdef PFT_EMU_COUNTED
// Everything that a kernel calls is inlined into it, so that the address which emu::access returns to names a
// place of the kernel, and all places of a lane's way lie in one function (counters.h).
#define __global__ __attribute__((flatten))
#else
#define __global__
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::pft::emu::thread->index)
#define blockIdx (::pft::emu::block->index)
#define blockDim (::pft::emu::block->size)
#define gridDim (::pft::emu::block->grid)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  pft::emu::sync_threads(file, line);
}
inline void __syncwarp(unsigned mask = pft::emu::kAll) {
  pft::emu::sync_warp(mask, pft::emu::WarpOp::syncwarp);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return pft::emu::exchange(mask, pft::emu::WarpOp::shuffle, value)[unsigned(source) & 31];
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const unsigned me = pft::emu::thread->lane;
  return pft::emu::exchange(mask, pft::emu::WarpOp::shuffle, value)[(me ^ unsigned(bits)) & 31];
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned me = pft::emu::thread->lane;
  const auto all = pft::emu::exchange(mask, pft::emu::WarpOp::shuffle, value);
  return me >= delta ? all[me - delta] : value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned me = pft::emu::thread->lane;
  const auto all = pft::emu::exchange(mask, pft::emu::WarpOp::shuffle, value);
  return me + delta < 32 ? all[me + delta] : value;
}
PFT_EMU_OPAQUE inline unsigned lanes_with(pft::emu::Exchanged<int> all, unsigned mask) {
  unsigned result = 0;
  const unsigned present = mask & pft::emu::block->warps[pft::emu::thread->warp].mask;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (present >> lane & 1 && all[lane]) result |= 1u << lane;
  }
  return result;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return lanes_with(pft::emu::exchange(mask, pft::emu::WarpOp::vote, predicate), mask);
}
template <class F>
PFT_EMU_OPAQUE int join_lanes(pft::emu::Exchanged<int> all, unsigned mask, int value, F join) {
  const unsigned present = mask & pft::emu::block->warps[pft::emu::thread->warp].mask;
  int result = value;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (present >> lane & 1 && lane != pft::emu::thread->lane) result = join(result, all[lane]);
  }
  return result;
}
template <class F>
int warp_reduce(unsigned mask, int value, F join) {
  return join_lanes(pft::emu::exchange(mask, pft::emu::WarpOp::reduce, value), mask, value, join);
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return warp_reduce(mask, value, [](int x, int y) { return x + y; });
}
inline int __reduce_min_sync(unsigned mask, int value) {
  return warp_reduce(mask, value, [](int x, int y) { return x < y ? x : y; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __uint_as_float(unsigned u) { return pft::bits_float(u); }
inline unsigned __float_as_uint(float x) { return pft::float_bits(x); }

namespace pft {

// The C library's, counted. Inside this namespace they hide those.
inline float fmaf(float a, float b, float c) {
  emu::count(emu::Op::fma);
  return ::fmaf(a, b, c);
}
inline float expf(float x) {
  emu::count(emu::Op::exp);
  return ::expf(x);
}
// 2^x as the special function unit has it: normal results only, below 2^-126 it is zero.
inline float exp2_of_unit(float x) {
  emu::count(emu::Op::exp);
  const float y = ::exp2f(x);
  return y < 1.17549435e-38f ? 0.f : y;
}
inline float logf(float x) {
  emu::count(emu::Op::log);
  return ::logf(x);
}

// Atomics take Views; the value before is returned. Ordered with other atomics only, as on the GPU.
template <class T, class F>
T atomic_update(const View<T>& at, F update) {
  emu::access(at.pointer(), sizeof(T), emu::Kind::atomic, at.begin(), at.end());
  const T before = *at.pointer();
  *at.pointer() = update(before);
  return before;
}
template <class T>
T atomic_add(View<T> at, T value) {
  return atomic_update(at, [=](T x) { return T(x + value); });
}
template <class T>
T atomic_or(View<T> at, T value) {
  return atomic_update(at, [=](T x) { return T(x | value); });
}
template <class T>
T atomic_max(View<T> at, T value) {
  return atomic_update(at, [=](T x) { return x < value ? value : x; });
}

inline void cp_async_16(View<uint4> shared, View<const uint4> global) {
  emu::issue_async(shared.pointer(), global.pointer(), 16, shared.begin(), shared.end());
}
template <class T>
void cp_async_16(const View<T>& shared, const View<const T>& global) {
  emu::issue_async(shared.pointer(), global.pointer(), 16, shared.begin(), shared.end());
}
inline void cp_async_commit() { emu::commit_async(); }
template <int kAllowed>
void cp_async_wait() {
  emu::wait_async(kAllowed);
}

// Static shared memory: `count` elements, the same array for all threads of the block.
#define PFT_STATIC_SHARED(T, name, count)                                                          \
  static const char name##_key = 0;                                                                \
  ::pft::View<T> name;                                                                             \
  {                                                                                                \
    T* name##_array = static_cast<T*>(::pft::emu::static_array(&name##_key, sizeof(T) * (count))); \
    name = ::pft::View<T>(name##_array, name##_array, name##_array + (count));                     \
  }

}  // namespace pft
