// Kernels with deliberate bugs: the emulator's own test. Each has a sound twin, which must pass.
#include "planted.h"

#include "../cuda/portable.cuh"

namespace pft::planted {
namespace {

// Reverses 64 values through shared memory; the two halves lie in different warps.
__global__ void reverse(View<float> out, View<const float> in, bool sound) {
  View<float> s = SharedMemory().take<float>(64);
  const int t = int(threadIdx.x);
  s[t] = in[t];
  if (sound) __syncthreads();
  out[t] = s[63 - t];
}

// The same within a warp: only __syncwarp orders it, a shuffle does not.
__global__ void reverse_warp(View<float> out, View<const float> in, bool sound) {
  PFT_STATIC_SHARED(float, s, 32);
  const int t = int(threadIdx.x);
  s[t] = in[t];
  if (sound) {
    __syncwarp();
  } else {
    __shfl_xor_sync(emu::kAll, t, 1);
  }
  out[t] = s[31 - t];
}

__global__ void copy_async(View<float> out, View<const float> in, bool sound) {
  View<float> s = SharedMemory().take<float>(4 * 32);
  const int t = int(threadIdx.x);
  cp_async_16(s + 4 * t, in + 4 * t);
  cp_async_commit();
  if (sound) cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[4 * t + i] = s[4 * t + i];
}

// cp_async_wait<1> where the second group is needed too.
__global__ void copy_async_wrong_group(View<float> out, View<const float> in, bool sound) {
  View<float> s = SharedMemory().take<float>(8 * 32);
  const int t = int(threadIdx.x);
  for (int half = 0; half < 2; ++half) {
    cp_async_16(s + 4 * t + 128 * half, in + 4 * t);
    cp_async_commit();
  }
  if (sound) {
    cp_async_wait<0>();
  } else {
    cp_async_wait<1>();
  }
  for (int i = 0; i < 4; ++i) out[4 * t + i] = s[4 * t + i + 128];
}

__global__ void divergent_shuffle(View<float> out, bool sound) {
  const int t = int(threadIdx.x);
  float x = float(t);
  if (sound || t < 16) x += __shfl_xor_sync(emu::kAll, x, 1);
  out[t] = x;
  __syncwarp();
}

__global__ void divergent_barrier(View<float> out, bool sound) {
  const int t = int(threadIdx.x);
  if (sound) {
    __syncthreads();
  } else if (t < 32) {
    __syncthreads();
  } else {
    __syncthreads();  // another barrier than the one above
  }
  out[t] = 1;
}

__global__ void overflow_shared(View<float> out, bool sound) {
  View<float> s = SharedMemory().take<float>(64);
  const int t = int(threadIdx.x);
  s[sound ? t : t + 1] = float(t);
  out[t] = float(t);
}

// Past the first array, but inside the block's shared memory: only the array's own bounds tell.
__global__ void overflow_array(View<float> out, bool sound) {
  SharedMemory shared;
  View<float> first = shared.take<float>(64);
  shared.take<float>(64);
  const int t = int(threadIdx.x);
  first[sound ? t : t + 1] = float(t);
  out[t] = float(t);
}

__global__ void overflow_global(View<float> out, bool sound) {
  out[int64_t(threadIdx.x) + (sound ? 0 : 1)] = 1;
}

__global__ void write_input(View<float> out, View<const float> in, bool sound) {
  View<float> writable(const_cast<float*>(in.pointer()));
  (sound ? out : writable)[int(threadIdx.x)] = 1;
}

__global__ void misaligned(View<float> out, View<const float> in, bool sound) {
  const float4 x = load_as<float4>(in + (sound ? 4 : 1) * int64_t(threadIdx.x));
  out[int(threadIdx.x)] = x.x;
}

// The published backward kernels' pattern: grad_B[key] += grad * A from one thread per (row, entry), without
// an atomic.
__global__ void published_grad_b(View<float> grad_b, View<const float> grad, View<const int> index, int rows,
                                 int kept, bool sound) {
  const int entry = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (entry >= rows * kept) return;
  const int key = index[entry];
  if (sound) {
    atomic_add(grad_b + key, float(grad[entry]));
  } else {
    grad_b[key] += float(grad[entry]);
  }
}

struct Data {
  std::vector<float> in, out, grad;
  std::vector<int> index;
  emu::Buffers buffers;

  explicit Data(int kept)
      : in(256, 1.f), out(128, 0.f), grad(size_t(64 * kept), 1.f), index(size_t(64 * kept)) {
    for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
    for (size_t i = 0; i < index.size(); ++i) index[i] = int(i * 7 % 64);
    buffers.add(in.data(), in.size() * 4, 4, false);
    buffers.add(grad.data(), grad.size() * 4, 4, false);
    buffers.add(index.data(), index.size() * 4, 4, false);
  }
};

}  // namespace

const std::vector<std::string>& names() {
  static const std::vector<std::string> all = {
      "missing_syncthreads", "missing_syncwarp",  "missing_wait",    "wrong_wait_group",
      "divergent_shuffle",   "divergent_barrier", "overflow_shared", "overflow_array",
      "overflow_global",     "write_input",       "misaligned",      "published_grad_b"};
  return all;
}

std::vector<float> run(const std::string& name, bool sound, int kept) {
  Data d(kept);
  if (name == "overflow_global") {
    d.out.resize(64);
    d.out.shrink_to_fit();  // so that AddressSanitizer sees the end, too
  }
  d.buffers.add(d.out.data(), d.out.size() * 4, 4, true);
  View<float> out(d.out.data());
  View<const float> in(d.in.data());
  void* stream = nullptr;
  if (name == "missing_syncthreads") launch(name.c_str(), reverse, 1, 64, 256, stream, out, in, sound);
  if (name == "missing_syncwarp") launch(name.c_str(), reverse_warp, 1, 32, 0, stream, out, in, sound);
  if (name == "missing_wait") launch(name.c_str(), copy_async, 1, 32, 512, stream, out, in, sound);
  if (name == "wrong_wait_group")
    launch(name.c_str(), copy_async_wrong_group, 1, 32, 1024, stream, out, in, sound);
  if (name == "divergent_shuffle") launch(name.c_str(), divergent_shuffle, 1, 32, 0, stream, out, sound);
  if (name == "divergent_barrier") launch(name.c_str(), divergent_barrier, 1, 64, 0, stream, out, sound);
  if (name == "overflow_shared") launch(name.c_str(), overflow_shared, 1, 64, 256, stream, out, sound);
  if (name == "overflow_array") launch(name.c_str(), overflow_array, 1, 64, 512, stream, out, sound);
  if (name == "overflow_global") launch(name.c_str(), overflow_global, 1, 64, 0, stream, out, sound);
  if (name == "write_input") launch(name.c_str(), write_input, 1, 64, 0, stream, out, in, sound);
  if (name == "misaligned") launch(name.c_str(), misaligned, 1, 16, 0, stream, out, in, sound);
  if (name == "published_grad_b") {
    const View<const float> grad(d.grad.data());
    const View<const int> index(d.index.data());
    launch(name.c_str(), published_grad_b, (64 * kept + 127) / 128, 128, 0, stream, out, grad, index, 64,
           kept, sound);
  }
  return d.out;
}

}  // namespace pft::planted
