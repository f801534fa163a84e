// The compiled instruction sets, and which one is in use.
#pragma once
#include "items.hpp"

namespace pft::cpu {

struct Kernels {
  const char* name;
  bool (*supported)();
#define PFT_CPU_SPARSE_MEMBER(name, ...) void (*name##_item)(const SparseArgs&, int64_t, void*);
#define PFT_CPU_MEMBER(result, name, ...) result (*name)(__VA_ARGS__);
  PFT_CPU_ITEMS(PFT_CPU_SPARSE_MEMBER, PFT_CPU_MEMBER)
};

// Chosen once, at the first call. Throws std::runtime_error for a PFT_CPU_ISA that cannot be used.
const Kernels& kernels();

}  // namespace pft::cpu
