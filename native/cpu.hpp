// Which instruction sets this processor has.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace backgpt {

// The kernels that can run here, fastest first; the last is plain C++.
std::vector<const Kernels*> usable_kernels();

}  // namespace backgpt
