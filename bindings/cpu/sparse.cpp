#include <pybind11/stl.h>

#include <array>

#include "../checks.hpp"
#include "pft/cpu.h"
#include "register.hpp"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Tensor = Strided<3>;             // batch, row, column
using Sizes = std::array<int64_t, 5>;  // batch, queries, keys, head_dim, kept

SparseShape shape_of(const char* kernel, const Sizes& n) {
  require_sizes(kernel, {n[0], n[1], n[2], n[3], n[4]});
  return {n[0], n[1], n[2], n[3], n[4]};
}

Matrices<const float> matrices(const char* kernel, const char* name, const Tensor& tensor, int64_t rows,
                               int64_t columns) {
  const float* data = rows_of<const float>(kernel, name, tensor, rows, columns);
  return {data, tensor.second[0], 0, tensor.second[1]};
}

template <typename Launcher, typename Args>
void launch(const char* kernel, Launcher launcher, const Args& args, uintptr_t workspace,
            int64_t workspace_bytes, int threads) {
  const SparseShape& s = args.shape;
  Status status;
  {
    py::gil_scoped_release release;
    status = launcher(args, {reinterpret_cast<void*>(workspace), workspace_bytes}, threads);
  }
  raise_on_failure(status, kernel, {s.batch, s.queries, s.keys, s.head_dim, s.kept});
}

cpu::ConstIndex index_of(const char* kernel, uintptr_t index, int index_bytes, const SparseShape& s) {
  return {pointer<const void>(kernel, "index", index, s.batch * s.queries * s.kept),
          static_cast<cpu::IndexType>(index_bytes)};
}

void bind_sddmm(Tensor q, Tensor k, uintptr_t index, int index_bytes, uintptr_t out, Sizes sizes,
                uintptr_t workspace, int64_t workspace_bytes, int threads) {
  cpu::SddmmArgs args;
  args.shape = shape_of("sddmm", sizes);
  const SparseShape& s = args.shape;
  args.q = matrices("sddmm", "q", q, s.batch * s.queries, s.head_dim);
  args.k = matrices("sddmm", "k", k, s.batch * s.keys, s.head_dim);
  args.index = index_of("sddmm", index, index_bytes, s);
  args.out = pointer<float>("sddmm", "out", out, s.batch * s.queries * s.kept);
  launch("sddmm", cpu::sddmm, args, workspace, workspace_bytes, threads);
}

void bind_spmm(Tensor a, Tensor v, uintptr_t index, int index_bytes, uintptr_t out, Sizes sizes,
               uintptr_t workspace, int64_t workspace_bytes, int threads) {
  cpu::SpmmArgs args;
  args.shape = shape_of("spmm", sizes);
  const SparseShape& s = args.shape;
  args.a = matrices("spmm", "a", a, s.batch * s.queries, s.kept);
  args.v = matrices("spmm", "v", v, s.batch * s.keys, s.head_dim);
  args.index = index_of("spmm", index, index_bytes, s);
  args.out = pointer<float>("spmm", "out", out, s.batch * s.queries * s.head_dim);
  launch("spmm", cpu::spmm, args, workspace, workspace_bytes, threads);
}

void bind_spmm_transpose(Tensor a, Tensor x, uintptr_t index, int index_bytes, uintptr_t out, Sizes sizes,
                         uintptr_t workspace, int64_t workspace_bytes, int threads) {
  cpu::SpmmTransposeArgs args;
  args.shape = shape_of("spmm_transpose", sizes);
  const SparseShape& s = args.shape;
  args.a = matrices("spmm_transpose", "a", a, s.batch * s.queries, s.kept);
  args.x = matrices("spmm_transpose", "x", x, s.batch * s.queries, s.head_dim);
  args.index = index_of("spmm_transpose", index, index_bytes, s);
  args.out = pointer<float>("spmm_transpose", "out", out, s.batch * s.keys * s.head_dim);
  launch("spmm_transpose", cpu::spmm_transpose, args, workspace, workspace_bytes, threads);
}

void bind_row_reads(Tensor rows, uintptr_t index, int index_bytes, uintptr_t out, Sizes sizes,
                    uintptr_t workspace, int64_t workspace_bytes, int threads) {
  cpu::RowReadsArgs args;
  args.shape = shape_of("row_reads", sizes);
  const SparseShape& s = args.shape;
  args.rows = matrices("row_reads", "rows", rows, s.batch * s.keys, s.head_dim);
  args.index = index_of("row_reads", index, index_bytes, s);
  args.out = pointer<float>("row_reads", "out", out, s.batch * s.head_dim);
  launch("row_reads", cpu::row_reads, args, workspace, workspace_bytes, threads);
}

template <int64_t (*Bytes)(const SparseShape&, int)>
int64_t workspace_bytes(Sizes sizes, int threads) {
  return Bytes(shape_of("workspace", sizes), threads);
}

}  // namespace

void register_sparse(py::module_& m) {
  const auto w = py::arg("workspace");
  const auto wb = py::arg("workspace_bytes");
  const auto threads = py::arg("threads");
  m.def("sddmm", bind_sddmm, py::arg("q"), py::arg("k"), py::arg("index"), py::arg("index_bytes"),
        py::arg("out"), py::arg("sizes"), w, wb, threads);
  m.def("spmm", bind_spmm, py::arg("a"), py::arg("v"), py::arg("index"), py::arg("index_bytes"),
        py::arg("out"), py::arg("sizes"), w, wb, threads);
  m.def("spmm_transpose", bind_spmm_transpose, py::arg("a"), py::arg("x"), py::arg("index"),
        py::arg("index_bytes"), py::arg("out"), py::arg("sizes"), w, wb, threads);
  m.def("row_reads", bind_row_reads, py::arg("rows"), py::arg("index"), py::arg("index_bytes"),
        py::arg("out"), py::arg("sizes"), w, wb, threads);
  m.def("sddmm_workspace_bytes", workspace_bytes<cpu::sddmm_workspace_bytes>, py::arg("sizes"), threads);
  m.def("spmm_workspace_bytes", workspace_bytes<cpu::spmm_workspace_bytes>, py::arg("sizes"), threads);
  m.def("spmm_transpose_workspace_bytes", workspace_bytes<cpu::spmm_transpose_workspace_bytes>,
        py::arg("sizes"), threads);
  m.def("row_reads_workspace_bytes", workspace_bytes<cpu::row_reads_workspace_bytes>, py::arg("sizes"),
        threads);
}

}  // namespace pft::bindings
