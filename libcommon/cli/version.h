// What this build is.
#pragma once

#include <string>

namespace kvd::cli {

std::string version();     // "0.1.0"
std::string commit();      // twelve hex digits, or "unknown"
std::string build_type();  // "Release"

}  // namespace kvd::cli
