#include "../register.hpp"
#include "arguments.hpp"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Sizes = std::array<int64_t, 6>;  // windows, heads, queries, keys, head_dim, kept

SparseShape shape_of(const char* kernel, const Sizes& n) {
  require_sizes(kernel, n);
  return {n[0] * n[1], n[2], n[3], n[4], n[5]};
}

void bind_sddmm(Sizes n, TensorArg q, TensorArg k, IndexArg index, TensorArg out, float scale, int version,
                Place place) {
  const char* kernel = "sddmm";
  const SparseShape s = shape_of(kernel, n);
  Arguments args(kernel);
  const auto q_ = args.input("q", q, {n[0], n[1], n[2], n[4]});
  const auto k_ = args.input("k", k, {n[0], n[1], n[3], n[4]});
  const auto index_ = args.index("index", index, s.batch * s.queries * s.kept);
  const auto out_ = args.output("out", out, {n[0], n[1], n[2], n[5]});
  run(kernel, {s.batch, s.queries, s.keys, s.head_dim, s.kept}, place, [&](void* stream) {
    return cuda::sddmm(s, n[1], q_, k_, index_, out_, scale, static_cast<cuda::Version>(version), stream);
  });
}

// spmm and spmm_transpose: `from` and `to` are the rows of the matrix read and of the result. `how`: what
// else the launcher is told, after the scale.
template <class Launcher, class... How>
void multiply(const char* kernel, Launcher launcher, const Sizes& n, TensorArg a,
              std::pair<const char*, TensorArg> x, int64_t from, IndexArg index, uintptr_t initial,
              TensorArg out, int64_t to, float scale, Place place, How... how) {
  const SparseShape s = shape_of(kernel, n);
  Arguments args(kernel);
  const auto a_ = args.input("a", a, {n[0], n[1], n[2], n[5]});
  const auto x_ = args.input(x.first, x.second, {n[0], n[1], from, n[4]});
  const auto index_ = args.index("index", index, s.batch * s.queries * s.kept);
  const auto* initial_ = args.array<const float>("initial", initial, s.batch * to * s.head_dim, 4, false);
  const auto out_ = args.output("out", out, {n[0], n[1], to, n[4]});
  run(kernel, {s.batch, s.queries, s.keys, s.head_dim, s.kept}, place,
      [&](void* stream) { return launcher(s, n[1], a_, x_, index_, initial_, out_, scale, how..., stream); });
}

void bind_spmm(Sizes n, TensorArg a, TensorArg v, IndexArg index, uintptr_t initial, TensorArg out,
               float scale, int version, Place place) {
  multiply("spmm", cuda::spmm, n, a, {"v", v}, n[3], index, initial, out, n[2], scale, place,
           static_cast<cuda::Version>(version));
}

void bind_spmm_transpose(Sizes n, TensorArg a, TensorArg x, IndexArg index, uintptr_t initial, TensorArg out,
                         float scale, int version, int float32, Place place) {
  multiply("spmm_transpose", cuda::spmm_transpose, n, a, {"x", x}, n[2], index, initial, out, n[3], scale,
           place, static_cast<cuda::Version>(version), static_cast<cuda::Float32>(float32));
}

}  // namespace

void register_sparse(py::module_& m) {
  using py::arg;
  m.def("sddmm", bind_sddmm, arg("sizes"), arg("q"), arg("k"), arg("index"), arg("out"), arg("scale"),
        arg("version"), arg("place"));
  m.def("spmm", bind_spmm, arg("sizes"), arg("a"), arg("v"), arg("index"), arg("initial"), arg("out"),
        arg("scale"), arg("version"), arg("place"));
  m.def("spmm_transpose", bind_spmm_transpose, arg("sizes"), arg("a"), arg("x"), arg("index"), arg("initial"),
        arg("out"), arg("scale"), arg("version"), arg("float32"), arg("place"));
}

}  // namespace pft::bindings
