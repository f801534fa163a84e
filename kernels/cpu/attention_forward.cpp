#include "items.hpp"
#include "rows.hpp"
namespace pft::cpu::PFT_ISA {
void attention_forward_item(const AttentionForwardArgs&, int64_t, void*, double*) {}
}
