// How much memory can be had. Linux: /proc/meminfo and the control group's files. Any thread.
#pragma once

#include <cstdint>

namespace kvd::tools {

// Bytes that can be had without swapping, of the host and of this control group, whose file pages
// that nobody used lately count as free; the largest number where the kernel does not say.
std::uint64_t available_memory();

}  // namespace kvd::tools
