// What every .cu file here includes: CUDA under nvcc, the emulator under g++. Kernels reach memory through
// View<T> (a plain pointer under nvcc, an instrumented one in the emulator) and matrix and copy instructions
// through the wrappers below; everything else is ordinary CUDA C++.
#pragma once
#include <cstdint>
#include <cstring>

#include "pft/cuda_device.h"
#include "pft/tensor.h"

namespace pft {
constexpr int64_t kMostBlocks = 0x7fffffff;  // of a grid in its first dimension, the only one used here
}

#if !defined(__CUDACC__)
#include "../emulator/mma.h"

namespace pft {
template <class T>
float2 unpack_pair(uint32_t word, T tag) {
  emu::count(emu::Op::convert, 2);
  return {half_of(word, 0, tag), half_of(word, 1, tag)};
}
template <class T>
uint32_t pack_pair(float low, float high, T) {  // one instruction: from_float has counted the other
  const uint32_t bits = uint32_t(from_float<T>(low).bits);
  emu::count(emu::Op::convert, -1);
  return bits | uint32_t(from_float<T>(high).bits) << 16;
}
inline int computed_anew(int x) { return x; }
inline int64_t shared_memory_limit() { return int64_t(emu::config().shared_limit); }
inline int multiprocessors() { return emu::config().multiprocessors; }
inline bool split_pays() { return true; }

template <class... P, class... A>
Status launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes,
              void* stream, A... arguments) {
  (void)stream;
  if (blocks > kMostBlocks) return Status::kUnsupported;
  if (emu::config().refuse) throw cuda::LaunchError(name, "the emulator was told to refuse");
  emu::launch(name, kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), size_t(shared_bytes),
              arguments...);
  return Status::kOk;
}
}  // namespace pft

#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace pft {

using half_t = __half;
using bf16_t = __nv_bfloat16;
template <class T>
using View = T*;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ half_t from_float<half_t>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
  return __float2bfloat16_rn(x);
}

// Two 16-bit values in a word, the first in the low half.
__device__ __forceinline__ float2 unpack_pair(uint32_t word, half_t) {
  __half2 pair;
  memcpy(&pair, &word, 4);
  return __half22float2(pair);
}
__device__ __forceinline__ float2 unpack_pair(uint32_t word, bf16_t) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, half_t) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, bf16_t) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}

template <class V, class T>
__device__ __forceinline__ V load_as(const T* p) {
  return *reinterpret_cast<const V*>(p);
}
template <class V, class T>
__device__ __forceinline__ void store_as(T* p, V value) {
  *reinterpret_cast<V*>(p) = value;
}

// 2^x by one instruction: within 2^-22.5 of it (PTX ISA, ex2.approx), zero where it is below 2^-126.
__device__ __forceinline__ float exp2_of_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

class SharedMemory {
 public:
  __device__ __forceinline__ SharedMemory() {
    extern __shared__ __align__(16) unsigned char pft_dynamic_shared[];
    next_ = pft_dynamic_shared;
  }
  template <class T>
  __device__ __forceinline__ T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return array;
  }

 private:
  unsigned char* next_;
};

// x, of which the compiler does not know that it is x: what follows from it is computed again instead of
// being kept in registers from one phase of a kernel to the next.
__device__ __forceinline__ int computed_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// The only atomic here: bits join to the same word in any order.
__device__ __forceinline__ void atomic_or(uint32_t* at, uint32_t bits) { atomicOr(at, bits); }

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kAllowed>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kAllowed) : "memory");
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_m16n8k16<half_t>(float (&d)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16_t>(float (&d)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <bool kTransposed, class T>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const T* row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// Of the current device: what a block may have at most, and how many blocks make a full wave.
int64_t shared_memory_limit();
int multiprocessors();
// Whether six bfloat16 products on tensor cores cost less than one of FFMA: by their rates on 8.0, 9.0 and
// 10.x (16 and 15 times FFMA's and more), not on 8.6, 8.9 and 12.x, which have half of that or less.
bool split_pays();

// Throws LaunchError with CUDA's own words, which are not left behind for the next call to find.
inline void require_success(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw cuda::LaunchError(what, cudaGetErrorString(error));
}

// Launches and reports at once what the launch itself can know (kUnsupported: too many blocks, LaunchError);
// errors of execution show at the next synchronisation.
template <class... P, class... A>
Status launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes,
              void* stream, A... arguments) {
  if (blocks > kMostBlocks) return Status::kUnsupported;
  if (shared_bytes > 48 * 1024) {
    const auto which = cudaFuncAttributeMaxDynamicSharedMemorySize;
    require_success(cudaFuncSetAttribute(kernel, which, int(shared_bytes)), name);
  }
  // clang-format off
  kernel<<<unsigned(blocks), threads, size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
  // clang-format on
  require_success(cudaGetLastError(), name);
  return Status::kOk;
}

}  // namespace pft
#endif
