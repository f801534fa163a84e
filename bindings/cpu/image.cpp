#include <pybind11/stl.h>

#include <array>

#include "../checks.hpp"
#include "../register.hpp"
#include "pft/cpu.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Image = Strided<4>;              // image, row, pixel, channel
using Sizes = std::array<int64_t, 7>;  // batch, height, width, channels, kernel, first_row, rows

constexpr const char* kKernel = "depthwise_gelu_add";

cpu::DepthwiseArgs sized(const Sizes& sizes) {
  const auto [batch, height, width, channels, side, first_row, rows] = sizes;
  require_sizes(kKernel, sizes);
  cpu::DepthwiseArgs args;
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.channels = channels;
  args.kernel = side;
  args.first_row = first_row;
  args.rows = rows;
  return args;
}

int64_t workspace_bytes(const Sizes& sizes, int threads) {
  return cpu::depthwise_workspace_bytes(sized(sizes), threads);
}

void bind_depthwise(Image x, uintptr_t weight, uintptr_t bias, Image residual, Image out, Sizes sizes,
                    uintptr_t workspace, int64_t workspace_bytes, int threads) {
  cpu::DepthwiseArgs args = sized(sizes);
  const int64_t pixels = args.batch * args.rows * args.width;
  args.x = matrices<const float>(kKernel, "x", x, args.batch * args.height * args.width, args.channels);
  args.weight = pointer<const float>(kKernel, "weight", weight, args.kernel * args.kernel * args.channels);
  args.bias = reinterpret_cast<const float*>(bias);
  args.residual = matrices<const float>(kKernel, "residual", residual, pixels, args.channels);
  args.out = matrices<float>(kKernel, "out", out, pixels, args.channels);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::depthwise_gelu_add(args, {reinterpret_cast<void*>(workspace), workspace_bytes}, threads);
  }
  raise_on_failure(status, kKernel, sizes);
}

}  // namespace

void register_image(py::module_& m) {
  m.attr("MAX_DEPTHWISE_KERNEL") = cpu::kMaxDepthwiseKernel;
  m.def("depthwise_gelu_add", bind_depthwise, py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("residual"), py::arg("out"), py::arg("sizes"), py::arg("workspace"),
        py::arg("workspace_bytes"), py::arg("threads"));
  m.def("depthwise_workspace_bytes", workspace_bytes, py::arg("sizes"), py::arg("threads"));
}

}  // namespace pft::bindings
