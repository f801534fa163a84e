// out = gelu(depthwise convolution of x + bias) + residual, on channels-last images: LePE and the middle of
// the feed-forward part of a PFT layer, which as separate operators cross memory four times.
//
// kTile pixels of an output row and one vector of channels are summed in registers. Of a 7x7 kernel each
// input is loaded once a row where there are registers for it (AVX-512), so that FMAs are the limit; else an
// FMA takes its input from memory. The inputs of a tile stay in L1, and in L2 the rows that the next output
// row shares with it.
#include "items.hpp"
#include "math.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

constexpr int kTile = 8;

// x Phi(x) = x (1 - erfc(t) / 2) for x >= 0, x erfc(t) / 2 below, with t = |x| / sqrt 2. erfc(t) = e^(t
// p(t)): p is fitted to log(erfc(t)) / t on [0, 5.5] so that the largest error of erfc, absolute above 1e-3
// and relative to 1e-3 below, is least (3.7e-8; with float32 arithmetic gelu is off by 2.4e-7 at most).
// Beyond 5.5, erfc is below 1e-14.
inline F gelu(F x) {
  const F size = max(x, set1(0.0f) - x), t = size * set1(0.70710678f);
  const F inside = t > set1(5.5f) ? set1(5.5f) : t;
  F p = set1(-2.5928742e-7f);
  p = fma(p, inside, set1(6.6759594e-6f));
  p = fma(p, inside, set1(-7.1717397e-5f));
  p = fma(p, inside, set1(4.0460704e-4f));
  p = fma(p, inside, set1(-1.1121425e-3f));
  p = fma(p, inside, set1(-5.7818281e-4f));
  p = fma(p, inside, set1(1.9697633e-2f));
  p = fma(p, inside, set1(-1.0298911e-1f));
  p = fma(p, inside, set1(-6.3658172e-1f));
  p = fma(p, inside, set1(-1.1283814f));
  const F tail = set1(0.5f) * size * exp(p * inside);
  return max(x, set1(0.0f)) - (t > set1(5.5f) ? set1(0.0f) : tail);
}

// What a tile reads: the pixel below each tap of each of its outputs, row by row of the kernel; one of zeros
// where that is outside of the image.
template <typename T>
struct Inputs {
  const T* pixel[kMaxDepthwiseKernel][kMaxDepthwiseKernel + kTile - 1];
};

template <typename T>
void find_inputs(const DepthwiseArgs& a, int64_t image, int64_t y, int64_t x, const T* zeros,
                 Inputs<T>* inputs) {
  const T* images = static_cast<const T*>(a.x.data);
  for (int64_t ky = 0; ky < a.kernel; ++ky) {
    const bool row_inside = y + ky >= 0 && y + ky < a.height;
    const T* row = images + image * a.x.stride_window + (row_inside ? y + ky : 0) * a.x.stride_head;
    for (int64_t u = 0; u < a.kernel + kTile - 1; ++u)
      inputs->pixel[ky][u] =
          row_inside && x + u >= 0 && x + u < a.width ? row + (x + u) * a.x.stride_row : zeros;
  }
}

template <int kKernel, bool kWhole, typename T>
void tile(const DepthwiseArgs& a, const Inputs<T>& inputs, int64_t pixels, int64_t channel, int lanes,
          const T* residual, T* out) {
  const auto take = [lanes](auto p) { return kWhole ? load(p) : load_n(p, lanes); };
  F acc[kTile];
  const F bias = a.bias ? take(a.bias + channel) : set1(0.0f);
#pragma GCC unroll 8
  for (int u = 0; u < kTile; ++u) acc[u] = bias;
  const float* weight = a.weight + channel;
  for (int64_t ky = 0; ky < a.kernel; ++ky) {
    const T* const* x = inputs.pixel[ky];
    if constexpr (kKernel > 0) {
      F in[kKernel + kTile - 1];
#pragma GCC unroll 16
      for (int u = 0; u < kKernel + kTile - 1; ++u) in[u] = take(x[u] + channel);
#pragma GCC unroll 8
      for (int kx = 0; kx < kKernel; ++kx, weight += a.channels) {
        const F w = take(weight);
#pragma GCC unroll 8
        for (int u = 0; u < kTile; ++u) acc[u] = fma(w, in[kx + u], acc[u]);
      }
    } else {
      for (int64_t kx = 0; kx < a.kernel; ++kx, weight += a.channels) {
        const F w = take(weight);
#pragma GCC unroll 8
        for (int u = 0; u < kTile; ++u) acc[u] = fma(w, take(x[kx + u] + channel), acc[u]);
      }
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < kTile; ++u) {
    if (u >= pixels) break;
    const F y = gelu(acc[u]) + take(residual + u * a.residual.stride_row + channel);
    T* to = out + u * a.out.stride_row + channel;
    if (kWhole)
      store(to, y);
    else
      store_n(to, y, lanes);
  }
}

template <int kKernel, typename T>
void all_channels(const DepthwiseArgs& a, const Inputs<T>& inputs, int64_t pixels, const T* residual,
                  T* out) {
  int64_t channel = 0;
  for (; channel + kLanes <= a.channels; channel += kLanes)
    tile<kKernel, true>(a, inputs, pixels, channel, kLanes, residual, out);
  if (channel < a.channels)
    tile<kKernel, false>(a, inputs, pixels, channel, static_cast<int>(a.channels - channel), residual, out);
}

template <typename T>
void compute(const DepthwiseArgs& a, int64_t item, T* zeros) {
  const int64_t across = (a.width + kDepthwiseColumns - 1) / kDepthwiseColumns;
  const int64_t down = (a.rows + kDepthwiseRows - 1) / kDepthwiseRows;
  const int64_t image = item / (across * down), half = a.kernel / 2;
  const int64_t left = item % across * kDepthwiseColumns, top = item / across % down * kDepthwiseRows;
  const int64_t right = left + kDepthwiseColumns < a.width ? left + kDepthwiseColumns : a.width;
  const int64_t bottom = top + kDepthwiseRows < a.rows ? top + kDepthwiseRows : a.rows;
  for (int64_t c = 0; c < a.channels; ++c) zeros[c] = T{};
  Inputs<T> inputs;
  for (int64_t row = top; row < bottom; ++row) {
    const T* residual = static_cast<const T*>(a.residual.data) + image * a.residual.stride_window +
                        row * a.residual.stride_head;
    T* out = static_cast<T*>(a.out.data) + image * a.out.stride_window + row * a.out.stride_head;
    for (int64_t pixel = left; pixel < right; pixel += kTile) {
      find_inputs(a, image, a.first_row + row - half, pixel - half, zeros, &inputs);
      const int64_t pixels = right - pixel < kTile ? right - pixel : kTile;
      const T* plus = residual + pixel * a.residual.stride_row;
      T* to = out + pixel * a.out.stride_row;
      if (kLanes == 16 && a.kernel == 7)
        all_channels<7>(a, inputs, pixels, plus, to);
      else
        all_channels<0>(a, inputs, pixels, plus, to);
    }
  }
}

}  // namespace

void depthwise_item(const DepthwiseArgs& a, int64_t item, void* workspace) {
  as_elements(Rows{workspace, 0, a.element}, [&](auto zeros) { compute(a, item, zeros); });
}

}  // namespace pft::cpu::PFT_ISA
