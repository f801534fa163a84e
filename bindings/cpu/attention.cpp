#include "register.hpp"
namespace pft::bindings {
void register_attention(pybind11::module_&) {}
}  // namespace pft::bindings
