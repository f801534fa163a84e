// The device that the launchers use: what bindings and tests ask about it. In the emulator there is one
// device, a CPU.
#pragma once
#include <stdexcept>
#include <string>

namespace pft::cuda {

// Empty if a kernel can run on some device here, else what the driver said.
std::string why_unavailable();

// What the device refused: a kernel's name or "device 1", and what CUDA said. Everything that a launcher can
// know by itself is a Status instead.
struct LaunchError : std::runtime_error {
  LaunchError(const std::string& what, const std::string& said) : std::runtime_error(what + ": " + said) {}
};

// Makes `device` current for the life of the object; LaunchError where it cannot be.
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
