#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "../checks.hpp"
#include "../register.hpp"
#include "element.hpp"
#include "pft/cpu.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

using Tensor = Strided<3>;             // batch, row, column
using Sizes = std::array<int64_t, 5>;  // batch, queries, keys, head_dim, kept

SparseShape shape_of(const char* kernel, const Sizes& n) {
  require_sizes(kernel, n);
  return {n[0], n[1], n[2], n[3], n[4]};
}

int64_t size_of(const SparseShape& s, int64_t SparseShape::* size) { return size ? s.*size : 1; }

Matrices<const void> matrices(const cpu::SparseOp& op, const cpu::SparseMatrix& matrix, const Tensor& tensor,
                              const SparseShape& s) {
  const int64_t rows = s.batch * size_of(s, matrix.rows);
  const void* data = rows_of<const void>(op.name, matrix.name, tensor, rows, size_of(s, matrix.columns));
  return {data, tensor.second[0], 0, tensor.second[1]};
}

// False where an index that is not `checked` has a fault.
bool run(const cpu::SparseOp& op, const Tensor& left, const std::optional<Tensor>& right, uintptr_t index,
         int index_bytes, uintptr_t out, const Sizes& sizes, uintptr_t workspace, int64_t workspace_bytes,
         int threads, int element, bool checked) {
  cpu::SparseArgs args;
  args.element = element_of(op.name, element);
  args.shape = shape_of(op.name, sizes);
  const SparseShape& s = args.shape;
  args.left = matrices(op, op.left, left, s);
  if (op.right.rows) args.right = matrices(op, op.right, right.value_or(Tensor{0, {0, 0, 1}}), s);
  args.index = {pointer<const void>(op.name, "index", index, s.batch * s.queries * s.kept),
                static_cast<cpu::IndexType>(index_bytes)};
  args.out = pointer<void>(op.name, op.out.name, out,
                           s.batch * size_of(s, op.out.rows) * size_of(s, op.out.columns));
  Status status;
  {
    py::gil_scoped_release release;
    status = op.run(args, {reinterpret_cast<void*>(workspace), workspace_bytes}, threads, checked);
  }
  if (status == Status::kBadIndex) return false;
  raise_on_failure(status, op.name, sizes);
  return true;
}

int64_t workspace_bytes(Sizes sizes, int threads, int element) {
  return cpu::sparse_workspace_bytes(shape_of("workspace", sizes), element_of("workspace", element), threads);
}

}  // namespace

void register_sparse(py::module_& m) {
  using py::arg;
  for (const cpu::SparseOp* op = cpu::kSparseOps; op->name; ++op)
    m.def(
        op->name,
        [op](Tensor left, std::optional<Tensor> right, uintptr_t index, int index_bytes, uintptr_t out,
             Sizes sizes, uintptr_t workspace, int64_t workspace_bytes, int threads, int element,
             bool checked) {
          return run(*op, left, right, index, index_bytes, out, sizes, workspace, workspace_bytes, threads,
                     element, checked);
        },
        arg(op->left.name), arg(op->right.name), arg("index"), arg("index_bytes"), arg(op->out.name),
        arg("sizes"), arg("workspace"), arg("workspace_bytes"), arg("threads"), arg("element") = 0,
        arg("checked") = true);
  m.def("sparse_workspace_bytes", workspace_bytes, arg("sizes"), arg("threads"), arg("element") = 0);
}

}  // namespace pft::bindings
