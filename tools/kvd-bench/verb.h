// The name of the program, for its verbs.
#pragma once

#include "common/verb.h"

namespace kvd::tools {

constexpr const char* kBenchProgram = "kvd-bench";

}  // namespace kvd::tools
