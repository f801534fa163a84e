#include "pft/cuda_device.h"

#include <pybind11/stl.h>

#include <map>
#include <string>

#include "../register.hpp"
#ifdef PFT_CUDA_BUILD
#include "cuda_build_info.hpp"
#endif

namespace pft::bindings {

void register_device(pybind11::module_& m) {
  m.def("why_unavailable", cuda::why_unavailable,
        "Empty if a kernel can run here, else what the driver said.");
#ifdef PFT_CUDA_BUILD
  m.attr("architectures") = PFT_CUDA_BUILD;
  m.def("build_info", [] {
    return std::map<std::string, std::string>{{"architectures", PFT_CUDA_BUILD}, {"flags_user", kUserFlags}};
  });
#endif
}

}  // namespace pft::bindings
