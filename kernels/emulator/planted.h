// Deliberate bugs, one per name, for the emulator's own test.
#pragma once
#include <string>
#include <vector>

namespace pft::planted {

const std::vector<std::string>& names();
// Runs the bug (or, `sound`, its correct twin) and returns the output. Throws emu::Error when the emulator
// finds it.
std::vector<float> run(const std::string& name, bool sound, int kept = 32);

}  // namespace pft::planted
