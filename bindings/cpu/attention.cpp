#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "../checks.hpp"
#include "../register.hpp"
#include "pft/cpu.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Tensor = Strided<4>;                // window, head, row, column
using Index = std::pair<uintptr_t, int>;  // address (0: none) and bytes per element
using Sizes = AttentionSizes;

// The null pointer of an empty tensor would read as "no index".
cpu::ConstIndex index_of(const Index& index) {
  return {reinterpret_cast<const void*>(index.first), static_cast<cpu::IndexType>(index.second)};
}

// What forward and backward both read: sizes, scale, region_penalty, q, k, v, bias, region, index, logits.
using LayerArg =
    std::tuple<Sizes, float, float, Tensor, Tensor, Tensor, uintptr_t, uintptr_t, Index, uintptr_t>;

cpu::AttentionInputs inputs_of(const char* kernel, const LayerArg& layer) {
  const auto& [sizes, scale, region_penalty, q, k, v, bias, region, index, logits] = layer;
  cpu::AttentionInputs in;
  in.shape = attention_shape(kernel, sizes, scale, region_penalty);
  const AttentionShape& s = in.shape;
  const int64_t items = s.windows * s.heads;
  in.q = matrices<const float>(kernel, "q", q, items * s.queries, s.dim_qk);
  in.k = matrices<const float>(kernel, "k", k, items * s.keys, s.dim_qk);
  in.v = matrices<const float>(kernel, "v", v, items * s.keys, s.dim_v);
  in.bias = pointer<const float>(kernel, "bias", bias, s.window_size);
  in.region = pointer<const uint8_t>(kernel, "region", region, s.patterns);
  in.index = index_of(index);
  in.logits =
      pointer<const float>(kernel, "logits", logits, in.index.data ? items * s.queries * s.candidates : 0);
  return in;
}

void raise(Status status, const char* kernel, const AttentionShape& s) {
  raise_on_failure(status, kernel,
                   {s.windows, s.heads, s.queries, s.keys, s.dim_qk, s.dim_v, s.candidates, s.topk});
}

std::optional<std::array<double, 3>> bind_forward(const LayerArg& layer, Tensor out, Index new_index,
                                                  uintptr_t new_logits, uintptr_t lse, bool timed,
                                                  uintptr_t workspace, int64_t workspace_bytes, int threads) {
  const char* kernel = "attention_forward";
  cpu::AttentionForwardArgs args;
  args.in = inputs_of(kernel, layer);
  const AttentionShape& s = args.in.shape;
  const int64_t rows = s.windows * s.heads * s.queries;
  args.out = matrices<float>(kernel, "out", out, rows, s.dim_v);
  args.new_index = {reinterpret_cast<void*>(new_index.first), static_cast<cpu::IndexType>(new_index.second)};
  args.new_logits = reinterpret_cast<float*>(new_logits);
  args.lse = pointer<float>(kernel, "lse", lse, rows);
  std::array<double, 3> seconds = {0.0, 0.0, 0.0};
  if (timed) args.phase_seconds = seconds.data();
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::attention_forward(args, {reinterpret_cast<void*>(workspace), workspace_bytes}, threads);
  }
  raise(status, kernel, s);
  return timed ? std::optional(seconds) : std::nullopt;
}

void bind_backward(const LayerArg& layer, Tensor grad_out, uintptr_t grad_logits, Index new_index, Tensor out,
                   uintptr_t lse, Tensor grad_q, Tensor grad_k, Tensor grad_v, uintptr_t grad_bias,
                   uintptr_t grad_logits_prev, uintptr_t workspace, int64_t workspace_bytes, int threads) {
  const char* kernel = "attention_backward";
  cpu::AttentionBackwardArgs args;
  args.in = inputs_of(kernel, layer);
  const AttentionShape& s = args.in.shape;
  const int64_t items = s.windows * s.heads, rows = items * s.queries;
  args.grad_out = matrices<const float>(kernel, "grad_out", grad_out, rows, s.dim_v);
  args.out = matrices<const float>(kernel, "out", out, rows, s.dim_v);
  args.new_index = index_of(new_index);
  args.grad_logits = reinterpret_cast<const float*>(grad_logits);
  args.lse = pointer<const float>(kernel, "lse", lse, rows);
  args.grad_q = matrices<float>(kernel, "grad_q", grad_q, rows, s.dim_qk);
  args.grad_k = matrices<float>(kernel, "grad_k", grad_k, items * s.keys, s.dim_qk);
  args.grad_v = matrices<float>(kernel, "grad_v", grad_v, items * s.keys, s.dim_v);
  args.grad_bias = reinterpret_cast<float*>(grad_bias);
  args.grad_logits_prev = reinterpret_cast<float*>(grad_logits_prev);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::attention_backward(args, {reinterpret_cast<void*>(workspace), workspace_bytes}, threads);
  }
  raise(status, kernel, s);
}

int64_t forward_bytes(Sizes sizes, bool sparse, int threads) {
  return cpu::attention_forward_workspace_bytes(attention_shape("attention_forward", sizes), sparse, threads);
}
int64_t backward_bytes(Sizes sizes, bool sparse, int threads) {
  return cpu::attention_backward_workspace_bytes(attention_shape("attention_backward", sizes), sparse,
                                                 threads);
}

}  // namespace

void register_attention(py::module_& m) {
  using py::arg;
  m.def("attention_forward_workspace_bytes", forward_bytes, arg("sizes"), arg("sparse"), arg("threads"));
  m.def("attention_backward_workspace_bytes", backward_bytes, arg("sizes"), arg("sparse"), arg("threads"));
  m.def("attention_forward", bind_forward, arg("layer"), arg("out"), arg("new_index"), arg("new_logits"),
        arg("lse"), arg("timed"), arg("workspace"), arg("workspace_bytes"), arg("threads"));
  m.def("attention_backward", bind_backward, arg("layer"), arg("grad_out"), arg("grad_logits"),
        arg("new_index"), arg("out"), arg("lse"), arg("grad_q"), arg("grad_k"), arg("grad_v"),
        arg("grad_bias"), arg("grad_logits_prev"), arg("workspace"), arg("workspace_bytes"), arg("threads"));
}

}  // namespace pft::bindings
