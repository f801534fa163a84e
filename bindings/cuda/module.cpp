// pft_bench._cuda and pft_bench._cuda_emu: the same kernels and bindings, for a GPU and for the emulator.
#include "register.hpp"

#ifdef PFT_EMULATOR
PYBIND11_MODULE(_cuda_emu, m) {
  m.doc() = "The CUDA kernels in the emulator: CPU addresses, the same functions as pft_bench._cuda.";
  pft::bindings::register_emulator(m);
#else
PYBIND11_MODULE(_cuda, m) {
  m.doc() =
      "CUDA kernels: device addresses, strides (in elements), sizes and a stream in; errors as exceptions.";
#endif
  pft::bindings::register_sparse(m);
  pft::bindings::register_attention(m);
  pft::bindings::register_device(m);
}
