// Arguments as Python passes them, and what the emulator needs to know of them: which memory a call may
// touch.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>

#include "../checks.hpp"
#include "pft/cuda.h"
#include "pft/cuda_device.h"
#ifdef PFT_EMULATOR
#include "emulator.h"
#endif

namespace pft::bindings {

using Strides = std::array<int64_t, 3>;                 // window, head, row, in elements
using TensorArg = std::tuple<uintptr_t, int, Strides>;  // address, dtype (pft::cuda::DType), strides
using IndexArg = std::pair<uintptr_t, int>;             // address (0: none), bytes per element
using Place = std::pair<int, uintptr_t>;                // device, stream
using Extent = std::array<int64_t, 4>;                  // windows, heads, rows, columns

// Checks arguments and, in the emulator, registers their memory for the length of the call.
class Arguments {
 public:
  explicit Arguments(const char* kernel) : kernel_(kernel) {}

  cuda::Input input(const char* name, const TensorArg& t, const Extent& n) {
    const void* data = touch(name, t, n, false);
    const Strides& s = std::get<2>(t);
    return {{data, s[0], s[1], s[2]}, static_cast<cuda::DType>(std::get<1>(t))};
  }
  cuda::Output output(const char* name, const TensorArg& t, const Extent& n) {
    void* data = const_cast<void*>(touch(name, t, n, true));
    const Strides& s = std::get<2>(t);
    return {{data, s[0], s[1], s[2]}, static_cast<cuda::DType>(std::get<1>(t))};
  }
  cuda::Index index(const char* name, const IndexArg& index, int64_t elements) {
    if (index.first && index.second != 2 && index.second != 4) {
      throw std::invalid_argument(std::string(kernel_) + ": " + name + " must have 2 or 4 bytes per element");
    }
    return {array<const void>(name, index.first, elements, index.second, false), index.second == 4};
  }
  // A contiguous array; null means that it is not there.
  template <typename T>
  T* array(const char* name, uintptr_t address, int64_t elements, int element_bytes, bool writable) {
    if (address)
      expose(reinterpret_cast<const void*>(address), elements * element_bytes, element_bytes, writable);
    (void)name;
    return reinterpret_cast<T*>(address);
  }

 private:
  const void* touch(const char* name, const TensorArg& t, const Extent& n, bool writable) {
    const auto& [address, dtype, strides] = t;
    if (dtype < 0 || dtype > 2)
      throw std::invalid_argument(std::string(kernel_) + ": " + name + " has no such dtype");
    require_sizes(kernel_, {n[0], n[1], n[2], n[3]});
    const int64_t elements = n[0] * n[1] * n[2] * n[3], bytes = dtype == 0 ? 4 : 2;
    const void* data = pointer<const void>(kernel_, name, address, elements);
    int64_t low = 0, high = n[3] - 1;
    for (int i = 0; i < 3; ++i) (strides[i] < 0 ? low : high) += (n[i] - 1) * strides[i];
    if (elements)
      expose(static_cast<const char*>(data) + low * bytes, (high - low + 1) * bytes, int(bytes), writable);
    return data;
  }
  void expose(const void* begin, int64_t bytes, int element_bytes, bool writable) {
#ifdef PFT_EMULATOR
    buffers_.add(begin, size_t(bytes), unsigned(element_bytes), writable);
#else
    (void)begin, (void)bytes, (void)element_bytes, (void)writable;
#endif
  }

  const char* kernel_;
#ifdef PFT_EMULATOR
  emu::Buffers buffers_;
#endif
};

// Runs a launcher on a device and stream without the GIL, and turns its status into an exception. Kernels
// count rows, keys, channels and entries of a row in 32 bits.
template <typename Launcher>
void run(const char* kernel, std::initializer_list<int64_t> sizes, const Place& place, Launcher launcher) {
  for (int64_t size : sizes)
    if (size > 0x7fffffff) raise_on_failure(Status::kUnsupported, kernel, sizes);
  Status status;
  try {
    pybind11::gil_scoped_release release;
    cuda::DeviceGuard guard(place.first);
    status = launcher(reinterpret_cast<void*>(place.second));
  } catch (const cuda::LaunchError& error) {
    throw std::runtime_error(std::string(kernel) + " " + describe(sizes) + ": " + error.what());
  }
  raise_on_failure(status, kernel, sizes);
}

}  // namespace pft::bindings
