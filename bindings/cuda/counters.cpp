#include "counters.h"

#include <dlfcn.h>
#include <pybind11/stl.h>

#include "../register.hpp"
#include "known.h"

namespace py = pybind11;

namespace pft::bindings {
namespace {

void configure(size_t shared_limit, int multiprocessors, unsigned parts, unsigned stride,
               size_t most_events) {
  if (!parts || !stride) throw py::value_error("parts and stride must be at least 1");
  emu::Config& c = emu::config() = {};
  c.races = c.poison = false;
  c.shared_limit = shared_limit;
  c.multiprocessors = multiprocessors;
  c.parts = parts;
  c.stride = stride;
  emu::observer = emu::counting_observer();
  emu::set_most_events(most_events);
}

// A code address as an offset in this module, as addr2line takes it.
uintptr_t offset_of(uintptr_t code) {
  static const int here = 0;
  Dl_info module{};
  dladdr(&here, &module);
  return code - reinterpret_cast<uintptr_t>(module.dli_fbase);
}

py::dict describe_site(const emu::SiteKey& key, const emu::SiteCounts& c) {
  static const char* const kinds[] = {"load", "store", "atomic", "ldmatrix", "async"};
  py::dict d;
  d["offset"] = offset_of(key.code);
  d["kind"] = kinds[unsigned(key.kind)];
  d["space"] = key.shared ? "shared" : "global";
  d["bytes"] = unsigned(key.bytes);
  d["requests"] = c.requests;
  d["lanes"] = c.lanes;
  d["wavefronts"] = c.wavefronts;
  d["unmerged"] = c.unmerged;
  d["conflict_free"] = c.conflict_free;
  d["sectors"] = c.sectors;
  d["sectors_ideal"] = c.sectors_ideal;
  d["l1_cycles"] = c.l1_cycles;
  return d;
}

py::dict describe_launch(const emu::LaunchCounts& c) {
  static const char* const steps[] = {"barrier", "syncwarp", "shuffle", "vote", "reduce", "mma"};
  static const char* const ops[] = {"fma", "exp", "log", "convert"};
  py::dict d, by_op;
  d["kernel"] = c.kernel;
  d["blocks"] = c.blocks;
  d["blocks_run"] = c.blocks_run;
  d["threads"] = c.threads;
  d["warps"] = c.warps;
  d["shared_bytes"] = c.shared_bytes;
  d["requests"] = c.requests;
  d["parted"] = c.parted;
  d["doubtful"] = c.doubtful;
  d["bytes_read_once"] = c.bytes_read_once;
  d["bytes_read_by_many"] = c.bytes_read_by_many;
  d["bytes_written"] = c.bytes_written;
  d["sectors_of_blocks"] = c.sectors_of_blocks;
  for (unsigned o = 0; o < emu::kOps; ++o) by_op[ops[o]] = c.ops[o];
  d["ops"] = by_op;
  py::list sites, taken;
  for (const auto& [key, counts] : c.sites) sites.append(describe_site(key, counts));
  for (const auto& [key, count] : c.steps)
    taken.append(py::make_tuple(offset_of(key.first), steps[unsigned(key.second)], count));
  d["sites"] = sites;
  d["steps"] = taken;
  return d;
}

py::list take_counts() {
  py::list all;
  for (const emu::LaunchCounts& c : emu::take_counts()) all.append(describe_launch(c));
  return all;
}

}  // namespace

void register_counters(py::module_& m) {
  using py::arg;
  // Local: _cuda_emu has a class of that name for its own.
  py::register_local_exception<emu::Error>(m, "EmulatorError", PyExc_RuntimeError);
  m.def("configure", configure, arg("shared_limit") = emu::Config{}.shared_limit,
        arg("multiprocessors") = emu::Config{}.multiprocessors, arg("parts") = 1, arg("stride") = 1,
        arg("most_events") = size_t(8) << 20,
        "How the next launches are emulated; everything not named returns to its default. With parts or "
        "stride, only "
        "some of their blocks run, so that what they compute is incomplete.");
  m.def("take_counts", take_counts, "One dict for each launch since the last call.");
  m.def("known_kernels", known::names, "Names of the kernels whose counts are known by hand.");
  m.def("run_known", known::run, arg("name"), arg("stride") = 1);
}

}  // namespace pft::bindings
