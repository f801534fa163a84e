// What every binding checks before a kernel sees an argument. Python passes pointers as integers.
//
// Values and shapes of tensors are validated in pft_bench/ops; these checks only keep a wrong call of the
// module itself from touching memory: null pointers, negative sizes, and a launcher's own refusal.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "pft/tensor.h"

namespace pft::bindings {

// `Sizes`: an array, or a list in braces.
template <typename Sizes = std::initializer_list<int64_t>>
std::string describe(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

template <typename Sizes = std::initializer_list<int64_t>>
void require_sizes(const char* kernel, const Sizes& sizes) {
  for (int64_t size : sizes)
    if (size < 0) throw std::invalid_argument(std::string(kernel) + ": negative size in " + describe(sizes));
}

// windows, heads, queries, keys, dim_qk, dim_v, candidates, topk, window_size (0: no bias), patterns (0: no
// region)
using AttentionSizes = std::array<int64_t, 10>;

inline AttentionShape attention_shape(const char* kernel, const AttentionSizes& n, float scale = 1.0f,
                                      float region_penalty = 0.0f) {
  require_sizes(kernel, n);
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], scale, region_penalty};
}

// A null pointer is accepted for an empty tensor only.
template <typename T>
T* pointer(const char* kernel, const char* name, uintptr_t address, int64_t elements) {
  if (address == 0 && elements > 0)
    throw std::invalid_argument(std::string(kernel) + ": " + name + " is a null pointer");
  return reinterpret_cast<T*>(address);
}

// Address and strides, as Python tells them of a tensor whose rows the kernels read whole.
template <size_t kDims>
using Strided = std::pair<uintptr_t, std::array<int64_t, kDims>>;

template <typename T, size_t kDims>
T* rows_of(const char* kernel, const char* name, const Strided<kDims>& tensor, int64_t rows,
           int64_t columns) {
  const int64_t stride = tensor.second[kDims - 1];
  if (stride != 1 && rows > 0 && columns > 1)
    throw std::invalid_argument(std::string(kernel) + ": the last stride of " + name + " must be 1, got " +
                                std::to_string(stride));
  return pointer<T>(kernel, name, tensor.first, rows * columns);
}

// A tensor of four dimensions; its last but one is the rows.
template <typename T>
Matrices<T> matrices(const char* kernel, const char* name, const Strided<4>& tensor, int64_t rows,
                     int64_t columns) {
  T* data = rows_of<T>(kernel, name, tensor, rows, columns);
  return {data, tensor.second[0], tensor.second[1], tensor.second[2]};
}

template <typename Sizes = std::initializer_list<int64_t>>
void raise_on_failure(Status status, const char* kernel, const Sizes& sizes) {
  if (status == Status::kOk) return;
  const char* what = status == Status::kBadShape      ? "shape, index type or workspace is not acceptable"
                     : status == Status::kUnsupported ? "shape is too large for this kernel"
                                                      : "this kernel does not take these dtypes";
  throw std::runtime_error(std::string(kernel) + " " + describe(sizes) + ": " + what);
}

}  // namespace pft::bindings
