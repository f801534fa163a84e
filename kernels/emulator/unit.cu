#include "unit.h"

#include "../cuda/device.cuh"

namespace pft::unit {
namespace {

template <class T>
__global__ void multiply(View<float> out, View<const float> a, View<const float> b) {
  SharedMemory shared;
  const View<T> sa = shared.take<T>(16 * 16), sb = shared.take<T>(16 * 16);
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int e = lane; e < 256; e += 32) {
    sa[e] = from_float<T>(a[e]);
    sb[e] = from_float<T>(e % 16 < 8 ? float(b[e / 16 * 8 + e % 16]) : 0.f);
  }
  __syncwarp();
  uint32_t fa[4], fb[4];
  ldmatrix_x4<false>(fa, sa + ((lane / 8 % 2 * 8 + lane % 8) * 16 + lane / 16 * 8));
  ldmatrix_x4<true>(fb, sb + ((lane / 8 % 2 * 8 + lane % 8) * 16 + lane / 16 * 8));
  const uint32_t first[2] = {fb[0], fb[1]};
  float d[4] = {0, 0, 0, 0};
  mma_m16n8k16<T>(d, fa, first);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

__global__ void multiply_tf32(View<float> out, View<const float> a, View<const float> b) {
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t fa[4] = {float_to_tf32(a[g * 8 + t]), float_to_tf32(a[(g + 8) * 8 + t]),
                          float_to_tf32(a[g * 8 + t + 4]), float_to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t fb[2] = {float_to_tf32(b[t * 8 + g]), float_to_tf32(b[(t + 4) * 8 + g])};
  float d[4] = {0, 0, 0, 0};
  mma_m16n8k8_tf32(d, fa, fb);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

}  // namespace

std::vector<float> mma(int dtype, const std::vector<float>& a, const std::vector<float>& b) {
  const size_t depth = dtype == 2 ? 8 : 16;
  if (a.size() != 16 * depth || b.size() != depth * 8) throw emu::Error("mma: a must be 16 x k, b k x 8");
  std::vector<float> out(128);
  emu::Buffers buffers;
  buffers.add(a.data(), a.size() * 4, 4, false);
  buffers.add(b.data(), b.size() * 4, 4, false);
  buffers.add(out.data(), out.size() * 4, 4, true);
  const View<float> to(out.data());
  const View<const float> from_a(a.data()), from_b(b.data());
  void* stream = nullptr;
  if (dtype == 0) launch("multiply", multiply<half_t>, 1, 32, 1024, stream, to, from_a, from_b);
  if (dtype == 1) launch("multiply", multiply<bf16_t>, 1, 32, 1024, stream, to, from_a, from_b);
  if (dtype == 2) launch("multiply_tf32", multiply_tf32, 1, 32, 0, stream, to, from_a, from_b);
  return out;
}

int64_t head_offset(int64_t heads, int64_t stride_window, int64_t stride_head, int64_t b) {
  const float* none = nullptr;
  const cuda::Input x{{none, stride_window, stride_head, 1}, cuda::DType::kFloat32};
  return cuda::strided<const float>(x.m, heads, 1).head(b).pointer() - none;
}

std::vector<uint16_t> round_trip(int dtype, const std::vector<float>& x) {
  std::vector<uint16_t> bits(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    bits[i] = dtype == 0 ? float_to_half_bits(x[i]) : float_to_bf16_bits(x[i]);
  return bits;
}

std::vector<float> widen(int dtype, const std::vector<uint16_t>& bits) {
  std::vector<float> x(bits.size());
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = dtype == 0 ? half_bits_to_float(bits[i]) : bf16_bits_to_float(bits[i]);
  return x;
}

}  // namespace pft::unit
