// Each file of bindings/cpu and bindings/cuda binds one group of kernels; each module.cpp calls those it has.
#pragma once
#include <pybind11/pybind11.h>

namespace pft::bindings {

void register_sparse(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_image(pybind11::module_& m);
void register_index(pybind11::module_& m);
void register_machine(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_emulator(pybind11::module_& m);
void register_counters(pybind11::module_& m);

}  // namespace pft::bindings
