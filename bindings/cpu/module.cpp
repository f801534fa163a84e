// pft_bench._cpu: the CPU kernels as functions of addresses, strides and sizes.
#include "../register.hpp"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels: addresses, strides (in elements) and sizes in; errors as exceptions.";
  pft::bindings::register_sparse(m);
  pft::bindings::register_attention(m);
  pft::bindings::register_image(m);
  pft::bindings::register_index(m);
  pft::bindings::register_machine(m);
}
