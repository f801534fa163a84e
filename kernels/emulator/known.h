// Kernels whose counts are known by hand: tests/insight/counters/test_counters_known.py.
#pragma once
#include <string>
#include <vector>

namespace pft::known {

const std::vector<std::string>& names();
// Runs one of them. `stride`, in elements or units, where the kernel has one.
void run(const std::string& name, int stride = 1);

}  // namespace pft::known
