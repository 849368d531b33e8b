// How far two CPUs are apart: the time a cache line takes from one to the other and back.
//
// What two processes tell each other goes that way, and so do the bytes between them. Seen: 80 to
// 350 ns while the CPUs share a last-level cache, 500 to 800 ns when they do not; loopback TCP is
// then two to four times slower. On a virtual machine it changes when the hypervisor moves a CPU.
#pragma once

#include <optional>
#include <vector>

namespace kvd::tools {

// The best of some rounds, in about a millisecond, with two threads of its own. `pin`: the two CPUs
// in question; with fewer than two given, the two that this process may use, if it may use just
// two. Nothing where it is not known which two matter.
std::optional<double> cpu_round_trip_ns(const std::vector<int>& pin);

}  // namespace kvd::tools
