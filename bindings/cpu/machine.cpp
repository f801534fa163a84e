// What the module knows of its build and of this machine.
#include <pybind11/stl.h>

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "../checks.hpp"
#include "../register.hpp"
#include "build_info.hpp"
#include "pft/cpu.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const char* const* name = cpu::isas(); *name; ++name) names.emplace_back(*name);
  return names;
}

// Compiler and kind of build; the flags of all files and of each instruction set; and, under flags_user and
// flags_user_link, those that came from outside and that ours follow.
std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#endif
#ifdef _OPENMP
  info["openmp"] = std::to_string(_OPENMP);
#endif
  std::istringstream lines(kBuild);  // each "name=text"
  for (std::string line; std::getline(lines, line);) {
    const size_t end = line.find('=');
    info[line.substr(0, end)] = line.substr(end + 1);
  }
  return info;
}

double bind_peak(const std::string& what, int64_t block_bytes, int threads) {
  const std::map<std::string, cpu::Peak> known = {{"fma_flops", cpu::Peak::kFmaFlops},
                                                  {"load_bytes", cpu::Peak::kLoadBytes},
                                                  {"gather_bytes", cpu::Peak::kGatherBytes}};
  const auto found = known.find(what);
  if (found == known.end())
    throw std::invalid_argument("what must be fma_flops, load_bytes or gather_bytes, got " + what);
  if (block_bytes < 0 || threads < 1)
    throw std::invalid_argument("block_bytes must be >= 0 and threads >= 1, got " +
                                describe({block_bytes, threads}));
  py::gil_scoped_release release;
  return cpu::peak_per_second(found->second, block_bytes, threads);
}

}  // namespace

void register_machine(py::module_& m) {
  m.def("isa", cpu::isa);
  m.def("isas", supported_isas);
  m.def("build_info", build_info);
  m.def("peak_per_second", bind_peak, py::arg("what"), py::arg("block_bytes"), py::arg("threads"));
}

}  // namespace pft::bindings
