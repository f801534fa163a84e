#include "emulator.h"

#include <pybind11/stl.h>

#include "../register.hpp"
#include "planted.h"
#include "unit.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

void configure(uint32_t seed, bool races, bool poison, bool bounds, bool dry, size_t shared_limit,
               bool refuse) {
  emu::config() = {seed, races, poison, bounds, dry, shared_limit, refuse};
}

// Kernel, blocks, threads per block, dynamic shared bytes of the launches since the last call, in a dry run.
std::vector<std::tuple<std::string, uint64_t, unsigned, size_t>> take_dry_launches() {
  std::vector<std::tuple<std::string, uint64_t, unsigned, size_t>> all;
  for (const emu::LaunchRecord& r : emu::dry_launches())
    all.emplace_back(r.kernel, r.blocks, r.threads, r.dynamic_bytes);
  emu::dry_launches().clear();
  return all;
}

py::dict read_counters() {
  const emu::Counters& c = emu::counters();
  py::dict d;
  d["launches"] = c.launches;
  d["blocks"] = c.blocks;
  d["threads"] = c.threads;
  d["switches"] = c.switches;
  d["accesses"] = c.accesses;
  return d;
}

}  // namespace

void register_emulator(py::module_& m) {
  using py::arg;
  py::register_exception<emu::Error>(m, "EmulatorError", PyExc_RuntimeError);
  m.def("configure", configure, arg("seed") = 0, arg("races") = true, arg("poison") = true,
        arg("bounds") = true, arg("dry") = false, arg("shared_limit") = emu::Config{}.shared_limit,
        arg("refuse") = false,
        "What the next launches emulate; everything not named returns to its default.");
  m.def("take_dry_launches", take_dry_launches);
  m.def("counters", read_counters);
  m.def("planted_bugs", planted::names, "Names of the deliberate bugs.");
  m.def("run_planted", planted::run, arg("name"), arg("sound"), arg("kept") = 32);
  m.def("head_offset", unit::head_offset, arg("heads"), arg("stride_window"), arg("stride_head"), arg("b"),
        "Elements from the start of a strided tensor to window-head b, as every kernel computes them.");
  m.def("mma", unit::mma, arg("dtype"), arg("a"), arg("b"),
        "One mma.sync by fragments loaded with ldmatrix: a 16x16 times b 16x8 (tf32: 16x8 times 8x8), "
        "row-major.");
  m.def("round_trip", unit::round_trip, arg("dtype"), arg("x"),
        "float32 to the 16-bit type (0 float16, 1 bfloat16) bits.");
  m.def("widen", unit::widen, arg("dtype"), arg("bits"), "Bits of a 16-bit type as float32.");
}

}  // namespace pft::bindings
