#pragma once
#include "workspace.hpp"
namespace pft::cpu {
namespace {
struct AttentionBuffers {};
inline int64_t carve(const AttentionShape&, bool, bool, void*, AttentionBuffers*) { return 0; }
}
}
