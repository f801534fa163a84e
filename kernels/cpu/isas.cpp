#include "isas.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

PFT_CPU_DECLARE_ITEMS(scalar)
#ifdef PFT_CPU_X86
PFT_CPU_DECLARE_ITEMS(avx2)
PFT_CPU_DECLARE_ITEMS(avx512)
#endif

namespace pft::cpu {
namespace {

#define PFT_CPU_KERNELS(isa, supported)                                                              \
  Kernels {                                                                                          \
    #isa, supported, isa::sddmm_item, isa::spmm_item, isa::spmm_transpose_item, isa::row_reads_item, \
        isa::depthwise_item, isa::attention_forward_item, isa::attention_backward_item,              \
        isa::index_rows_item, isa::peak_fma_flops, isa::peak_load_bytes, isa::peak_gather_bytes      \
  }

bool always() { return true; }
#ifdef PFT_CPU_X86
// __builtin_cpu_supports asks the operating system too: an AVX-512 processor whose registers are not saved
// counts as none.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Widest last.
const Kernels kCompiled[] = {
    PFT_CPU_KERNELS(scalar, always),
#ifdef PFT_CPU_X86
    PFT_CPU_KERNELS(avx2, has_avx2),
    PFT_CPU_KERNELS(avx512, has_avx512),
#endif
};
constexpr int kCount = sizeof(kCompiled) / sizeof(kCompiled[0]);

struct Names {
  const char* name[kCount + 1] = {};
  Names() {
    int n = 0;
    for (const Kernels& k : kCompiled)
      if (k.supported()) name[n++] = k.name;
  }
};

const Kernels& choose() {
  const char* wanted = std::getenv("PFT_CPU_ISA");
  const Kernels* best = nullptr;
  for (const Kernels& k : kCompiled) {
    const bool named = wanted && *wanted && std::string(wanted) == k.name;
    if (named && !k.supported())
      throw std::runtime_error(std::string("PFT_CPU_ISA=") + wanted + ": this processor does not support it");
    if (named) return k;
    if (k.supported()) best = &k;
  }
  if (wanted && *wanted) {
    std::string known;
    for (const Kernels& k : kCompiled) known += std::string(known.empty() ? "" : ", ") + k.name;
    throw std::runtime_error(std::string("PFT_CPU_ISA=") + wanted + " is unknown here; known: " + known);
  }
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* isa() { return kernels().name; }

const char* const* isas() {
  static const Names names;
  return names.name;
}

}  // namespace pft::cpu
