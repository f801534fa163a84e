// The number by which Python names an element type: pft_bench/backends/cpu.py.
#pragma once
#include <stdexcept>
#include <string>

#include "pft/cpu.h"

namespace pft::bindings {

inline cpu::Element element_of(const char* kernel, int element) {
  if (element < 0 || element > static_cast<int>(cpu::Element::kFloat16))
    throw std::invalid_argument(std::string(kernel) +
                                ": element must be 0 (float32), 1 (bfloat16) or 2 (float16), got " +
                                std::to_string(element));
  return static_cast<cpu::Element>(element);
}

}  // namespace pft::bindings
