// Each file of this folder binds one group of functions.
#pragma once
#include <pybind11/pybind11.h>

namespace pft::bindings {

void register_sparse(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_emulator(pybind11::module_& m);
void register_counters(pybind11::module_& m);

}  // namespace pft::bindings
