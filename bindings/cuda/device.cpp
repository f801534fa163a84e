#include "pft/cuda_device.h"

#include "register.hpp"

namespace pft::bindings {

void register_device(pybind11::module_& m) {
  m.def("why_unavailable", cuda::why_unavailable,
        "Empty if a kernel can run here, else what the driver said.");
#ifdef PFT_CUDA_BUILD
  m.attr("architectures") = PFT_CUDA_BUILD;
#endif
}

}  // namespace pft::bindings
