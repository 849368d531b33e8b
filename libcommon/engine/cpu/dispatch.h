// Which kernels this processor can run.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu {

// Best last.
std::vector<std::string> available_kernels();
// `name` empty: the best. kInvalidArgument names what is available.
Result<const Kernels*> select_kernels(const std::string& name);

}  // namespace kvd::engine::cpu
