// Times the loops of peaks.cpp on several threads. Compiled for the baseline.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "isas.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pft::cpu {
namespace {

constexpr double kTrialSeconds = 0.01;
constexpr int kTrials = 7;

int64_t run(Peak what, const float* block, int64_t floats, int64_t rounds) {
  const Kernels& k = kernels();
  if (what == Peak::kFmaFlops) return k.peak_fma_flops(rounds * 1000);
  if (what == Peak::kLoadBytes) return k.peak_load_bytes(block, floats, rounds);
  return k.peak_gather_bytes(block, floats, rounds * std::max<int64_t>(floats / 40, 1));
}

}  // namespace

double peak_per_second(Peak what, int64_t block_bytes, int threads) {
  const int64_t floats = std::max<int64_t>(block_bytes, 4096) / 1024 * 256;
  double begin = 0.0, done = 0.0, best = 0.0;
#pragma omp parallel num_threads(threads)
  {
    // Filled by the thread that reads it.
    const std::unique_ptr<float, decltype(&std::free)> block(
        static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(floats) * sizeof(float))), &std::free);
    std::fill_n(block.get(), block ? floats : 0, 1.0f);
    int64_t rounds = 1;
    for (double spent = 0.0; spent < kTrialSeconds / 2; rounds *= 2) {
      const double start = seconds_now();
      run(what, block.get(), block ? floats : 0, rounds);
      spent = seconds_now() - start;
    }
    for (int trial = 0; trial < kTrials; ++trial) {
#pragma omp barrier
#pragma omp single
      {
        begin = seconds_now();
        done = 0.0;
      }
      const double amount = static_cast<double>(run(what, block.get(), block ? floats : 0, rounds));
#pragma omp atomic
      done += amount;
#pragma omp barrier
#pragma omp single
      best = std::max(best, done / (seconds_now() - begin));
    }
  }
  return best;
}

}  // namespace pft::cpu
