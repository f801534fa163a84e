#include "isas.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#define PFT_CPU_SPARSE_NAME(name, ...) name##_item,
#define PFT_CPU_NAME(result, name, ...) name,
#define PFT_CPU_COMPILED(isa)                                                   \
  PFT_CPU_DECLARE_ITEMS(isa)                                                    \
  namespace pft::cpu::isa {                                                     \
  static Kernels kernels(bool (*supported)()) {                                 \
    return {#isa, supported, PFT_CPU_ITEMS(PFT_CPU_SPARSE_NAME, PFT_CPU_NAME)}; \
  }                                                                             \
  }

PFT_CPU_COMPILED(scalar)
#ifdef PFT_CPU_X86
PFT_CPU_COMPILED(avx2)
PFT_CPU_COMPILED(avx512)
#endif

namespace pft::cpu {
namespace {

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
    scalar::kernels(always),
#ifdef PFT_CPU_X86
    avx2::kernels(has_avx2),
    avx512::kernels(has_avx512),
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
