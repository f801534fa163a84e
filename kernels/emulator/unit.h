// Single instructions and conversions, for tests to hold against torch.
#pragma once
#include <cstdint>
#include <vector>

namespace pft::unit {

// dtype 0 float16, 1 bfloat16 (16x16 times 16x8), 2 tf32 (16x8 times 8x8); row-major in and out.
std::vector<float> mma(int dtype, const std::vector<float>& a, const std::vector<float>& b);
int64_t head_offset(int64_t heads, int64_t stride_window, int64_t stride_head, int64_t b);
std::vector<uint16_t> round_trip(int dtype, const std::vector<float>& x);
std::vector<float> widen(int dtype, const std::vector<uint16_t>& bits);

}  // namespace pft::unit
