// The device that the launchers use: what bindings and tests ask about it. In the emulator there is one
// device, a CPU.
#pragma once
#include <string>

namespace pft::cuda {

// Empty if a kernel can run on some device here, else what the driver said.
std::string why_unavailable();

// Makes `device` current for the life of the object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace pft::cuda
