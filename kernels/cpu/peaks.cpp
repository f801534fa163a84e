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

// The sums themselves never meet `keep`: an array that does lives in memory, and each addition would store
// it.
template <int Sums>
void keep_sums(const F (&acc)[Sums]) {
  float total = 0.0f;
  for (int u = 0; u < Sums; ++u) total += sum(acc[u]);
  keep(total);
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
  keep_sums(acc);
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
  keep_sums(acc);
  return rounds * (floats / (kSums * kLanes)) * kSums * kLanes * static_cast<int64_t>(sizeof(float));
}

// Rows of 40 floats, 5 x 32 bytes, as PFT's keys; the order is that of a linear congruential generator.
int64_t peak_gather_bytes(const float* block, int64_t floats, int64_t rows) {
  // Two rows at a time, so that the latencies of an addition and of the generator do not show; with four
  // lanes they do not anyway.
  constexpr int kRow = 40, kVectors = kRow / row::kLanes, kSets = row::kLanes > 4 ? 2 : 1;
  row::F acc[kSets][kVectors];
  for (int s = 0; s < kSets; ++s)
    for (int c = 0; c < kVectors; ++c) acc[s][c] = row::set1(0.0f);
  const uint64_t count = static_cast<uint64_t>(floats / kRow);
  uint64_t state[kSets];
  for (int s = 0; s < kSets; ++s) state[s] = static_cast<uint64_t>(s) + 1;
  for (int64_t r = 0; r < rows / kSets; ++r) {
#pragma GCC unroll 2
    for (int s = 0; s < kSets; ++s) {
      state[s] = state[s] * 6364136223846793005u + 1442695040888963407u;
      const float* from = block + ((state[s] >> 32) * count >> 32) * kRow;
#pragma GCC unroll 10
      for (int c = 0; c < kVectors; ++c) acc[s][c] = acc[s][c] + row::load(from + c * row::kLanes);
    }
  }
  float total = 0.0f;
  for (int s = 0; s < kSets; ++s)
    for (int c = 0; c < kVectors; ++c) total += row::sum(acc[s][c]);
  keep(total);
  return rows / kSets * kSets * kRow * static_cast<int64_t>(sizeof(float));
}

}  // namespace pft::cpu::PFT_ISA
