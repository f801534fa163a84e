// pft_bench._cuda, _cuda_emu and _cuda_count: the same kernels and bindings, for a GPU and for the emulator,
// which checks or counts.
#include "../register.hpp"

#if defined(PFT_EMU_COUNTED)
PYBIND11_MODULE(_cuda_count, m) {
  m.doc() =
      "The CUDA kernels in the emulator, counting what a profiler would: functions as in "
      "pft_bench._cuda_emu.";
  pft::bindings::register_counters(m);
#elif defined(PFT_EMULATOR)
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
