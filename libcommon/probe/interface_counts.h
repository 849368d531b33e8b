// Which way bytes took, by the kernel's and the NICs' own counters: what a path is proven by,
// rather than by what was configured.
//
// Linux: /proc/net/dev (of the calling thread's network namespace), /sys/class/net and
// /sys/class/infiniband. Any thread; costs some file reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/ops_messages.h"

namespace kvd::probe {

// Every interface and RDMA port that has counters, at most proto::ProbeBounds::kInterfaces, those
// that carried most first. Speed and MTU are those of a device of its own: a virtual interface
// names a speed that means nothing.
std::vector<proto::InterfaceCount> read_interface_counts();
// What went through between the two readings; an interface that was not there before is left out.
std::vector<proto::InterfaceCount> interface_growth(
    const std::vector<proto::InterfaceCount>& before,
    const std::vector<proto::InterfaceCount>& after);
// RDMA ports whose link is up.
std::uint32_t active_rdma_ports();

// The lines of /proc/net/dev: for tests.
std::vector<proto::InterfaceCount> parse_net_dev(const std::string& text);

}  // namespace kvd::probe
