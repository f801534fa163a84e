// What one core reaches on the three jobs that bound the kernels: FMAs, loads of a block again and again, and
// loads of random rows of a block. The floors in README.md are these rates.
#include "items.hpp"
#include "simd.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

// Keeps a value, and with it the work behind it, from being optimised away.
template <typename T>
void keep(T& x) {
  __asm__ volatile("" : "+m"(x));
}

}  // namespace

int64_t peak_fma_flops(int64_t rounds) {
  constexpr int kSums = 12;  // latency 4 to 5 cycles, two a cycle
  F acc[kSums];
  const F a = set1(0.999f), b = set1(1e-4f);
  for (int u = 0; u < kSums; ++u) acc[u] = set1(static_cast<float>(u));
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int u = 0; u < kSums; ++u) acc[u] = fma(acc[u], a, b);
  for (int u = 0; u < kSums; ++u) keep(acc[u]);
  return rounds * kSums * kLanes * 2;
}

int64_t peak_load_bytes(const float* block, int64_t floats, int64_t rounds) {
  constexpr int kSums = 8;
  F acc[kSums];
  for (int u = 0; u < kSums; ++u) acc[u] = set1(0.0f);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t e = 0; e + kSums * kLanes <= floats; e += kSums * kLanes)
#pragma GCC unroll 8
      for (int u = 0; u < kSums; ++u) acc[u] = acc[u] + load(block + e + u * kLanes);
  }
  for (int u = 0; u < kSums; ++u) keep(acc[u]);
  return rounds * (floats / (kSums * kLanes)) * kSums * kLanes * static_cast<int64_t>(sizeof(float));
}

// Rows of 40 floats, 5 x 32 bytes, as PFT's keys; the order is that of a linear congruential generator.
int64_t peak_gather_bytes(const float* block, int64_t floats, int64_t rows) {
  constexpr int kRow = 40, kVectors = kRow / row::kLanes;
  row::F acc[kVectors];
  for (int c = 0; c < kVectors; ++c) acc[c] = row::set1(0.0f);
  const uint64_t count = static_cast<uint64_t>(floats / kRow);
  uint64_t state = 1;
  for (int64_t r = 0; r < rows; ++r) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float* from = block + ((state >> 32) * count >> 32) * kRow;
#pragma GCC unroll 10
    for (int c = 0; c < kVectors; ++c) acc[c] = acc[c] + row::load(from + c * row::kLanes);
  }
  float total = 0.0f;
  for (int c = 0; c < kVectors; ++c) total += row::sum(acc[c]);
  keep(total);
  return rows * kRow * static_cast<int64_t>(sizeof(float));
}

}  // namespace pft::cpu::PFT_ISA
