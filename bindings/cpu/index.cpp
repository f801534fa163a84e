#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.hpp"
#include "../register.hpp"
#include "pft/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace pft::bindings {
namespace {

// As many as OpenMP would use, which is what torch.set_num_threads sets.
int default_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

using Found = std::optional<std::tuple<int64_t, int64_t, int64_t, std::string>>;

Found bind_index_error(uintptr_t index, int index_bytes, int64_t rows, int64_t kept, int64_t keys,
                       int threads, uintptr_t to, int to_bytes) {
  require_sizes("index_error", {rows, kept, keys});
  if (index_bytes != 2 && index_bytes != 4 && index_bytes != 8)
    throw std::invalid_argument("index_error: index_bytes must be 2, 4 or 8, got " +
                                std::to_string(index_bytes));
  if (to_bytes != 4 && (to_bytes != 2 || keys > 32767))
    throw std::invalid_argument("index_error: to_bytes must be 4, or 2 for up to 32767 keys, got " +
                                std::to_string(to_bytes));
  if (threads < 1) threads = default_threads();
  cpu::IndexRowsArgs args;
  args.rows = rows;
  args.kept = kept;
  args.keys = keys;
  args.index = {pointer<const void>("index_error", "index", index, rows * kept),
                static_cast<cpu::IndexType>(index_bytes)};
  args.to = {reinterpret_cast<void*>(to), static_cast<cpu::IndexType>(to_bytes)};
  cpu::IndexError error;
  {
    py::gil_scoped_release release;
    std::vector<char> scratch(static_cast<size_t>(cpu::index_scratch_bytes(keys, threads)));
    error = cpu::index_error(args, {scratch.data(), static_cast<int64_t>(scratch.size())}, threads);
  }
  if (error.kind == cpu::IndexError::Kind::kNone) return std::nullopt;
  const bool range = error.kind == cpu::IndexError::Kind::kOutOfRange;
  return std::make_tuple(error.row, error.position, error.value, std::string(range ? "range" : "duplicate"));
}

}  // namespace

void register_index(py::module_& m) {
  m.def("index_error", bind_index_error, py::arg("index"), py::arg("index_bytes"), py::arg("rows"),
        py::arg("kept"), py::arg("keys"), py::arg("threads") = 0, py::arg("to") = 0, py::arg("to_bytes") = 4);
}

}  // namespace pft::bindings
