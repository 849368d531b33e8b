// Send buffers of short connections, as within a host, under bbr.
//
// bbr paces what waits in a send buffer at the rate that it measured. With the 4 MiB that Linux
// lets wait, bytes always do, and what it measures is its own pacing: the writes of several rooms
// fall to 0.8 of what the processors can move, between network namespaces to 0.6, and stay there.
// With 1 MiB the buffer is the limit (bbr does not count such samples) and the pacing stays out of
// the way. A buffer must hold what is on its way, so that only connections are touched whose
// fastest round trip is below 20 us: 1 MiB in that time is 50 GB/s. libfabric has no option for it:
// the sockets are found among the process's descriptors by the peer's address.
//
// Calling thread: that of the endpoint, which alone closes the sockets found here.
#pragma once

#include <chrono>
#include <cstddef>

#include "fabric/fabric.h"

namespace kvd::fabric::ofi {

// Bytes of a buffer, as Linux counts them.
constexpr int kBbrSendBuffer = 1 << 20;
constexpr std::chrono::microseconds kShortRoundTrip{20};

// Whether net.core.wmem_max allows such a buffer. One of 416 KiB is worse than the long one.
bool may_shorten_send_buffers();

// Goes through the process's descriptors, some system calls each: not for every write.
// Every TCP socket of this process that is connected to `peer` (a socket address) and has a short
// round trip: returns how many. None where that may not be.
std::size_t shorten_send_buffers(const FabricAddress& peer);

}  // namespace kvd::fabric::ofi
