// The device: limits, the current one, and whether there is any.
#include "pft/cuda_device.h"
#include "portable.cuh"

#if !defined(__CUDACC__)

namespace pft::cuda {
std::string why_unavailable() { return ""; }
DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() {}
}  // namespace pft::cuda

#else

namespace pft {
namespace {

int attribute(cudaDeviceAttr which, int otherwise) {
  int device = 0, value = otherwise;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) {
    return otherwise;
  }
  return value;
}

}  // namespace

int64_t shared_memory_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 48 * 1024); }
int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount, 1); }
bool split_pays() {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, 8);
  return attribute(cudaDevAttrComputeCapabilityMinor, 6) == 0 && major < 12;
}

namespace cuda {

std::string why_unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not to be found by the next launch
    return cudaGetErrorString(error);
  }
  return count ? "" : "no CUDA device";
}

DeviceGuard::DeviceGuard(int device) {
  require_success(cudaGetDevice(&previous_), "the current device");
  const std::string wanted = "device " + std::to_string(device);
  if (previous_ != device) require_success(cudaSetDevice(device), wanted.c_str());
}
DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

}  // namespace cuda
}  // namespace pft

#endif
