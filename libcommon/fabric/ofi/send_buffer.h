// Send buffers of short connections, as within a host, under bbr.
//
// bbr paces what waits in a send buffer at the rate that it measured. With the 4 MiB that Linux
// lets wait, bytes always do, and what it measures is its own pacing: the writes of several rooms
// fall to 0.8 of what the processors can move, between network namespaces to 0.6, and stay there.
// With 1 MiB the buffer is the limit (bbr does not count such samples) and the pacing stays out of
// the way. A buffer must hold what is on its way, so that only connections on the loopback are
// touched, and others whose fastest round trip is below 20 us: 1 MiB in that time is 50 GB/s.
// libfabric has no option for it: the sockets are found among the process's descriptors by the
// peer's address.
//
// Calling thread: of shorten_send_buffers() that of the endpoint, which alone closes the sockets
// found there; else any.
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
// Whether a socket address is of 127.0.0.0/8 or ::1, so that its peers are here, too.
bool is_loopback(const FabricAddress& address);

// Shortens those of the TCP sockets of this process that are connected to `peer` (a socket address)
// and on the loopback or with a fastest round trip below `round_trip`: returns how many, 0 where it
// may not be. Goes through the process's descriptors, some system calls each: not for every write.
std::size_t shorten_send_buffers(const FabricAddress& peer,
                                 std::chrono::microseconds round_trip = kShortRoundTrip);

}  // namespace kvd::fabric::ofi
