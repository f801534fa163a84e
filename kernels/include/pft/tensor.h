// Plain descriptions of the tensors that kernels read and write. No Python, no torch, no ownership.
#pragma once
#include <cstdint>

namespace pft {

// Result of a launcher. Anything but kOk becomes a Python error that names the kernel and its shape.
enum class Status : int { kOk = 0, kBadShape = 1, kUnsupported = 2, kBadDType = 3, kBadIndex = 4 };

// [windows, heads, rows, cols] with unit stride along cols; strides in elements, zero or negative allowed.
// A plain [batch, rows, cols] tensor is described with heads = 1.
template <typename T>
struct Matrices {
  T* data = nullptr;
  int64_t stride_window = 0;
  int64_t stride_head = 0;
  int64_t stride_row = 0;

  T* at(int64_t window, int64_t head) const { return data + window * stride_window + head * stride_head; }
};

// Sizes of one sparse product: `batch` window-heads, `queries` rows, `keys` rows to gather from, `kept`
// entries a row.
struct SparseShape {
  int64_t batch = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t kept = 0;
};

// Sizes of one progressive-attention layer (docs/concepts.md, "Layer"). `candidates` equals `keys` while the
// chain is dense.
struct AttentionShape {
  int64_t windows = 0;
  int64_t heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t dim_qk = 0;
  int64_t dim_v = 0;
  int64_t candidates = 0;
  int64_t topk = 0;
  int64_t window_size = 0;  // 0 without a bias table, else queries = keys = window_size^2
  int64_t patterns = 0;     // rows of the region map, 0 without one
  float scale = 1.0f;
  float region_penalty = 0.0f;
};

}  // namespace pft
