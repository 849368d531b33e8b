// What no file tells of this host: libfabric's providers, the environment, what drivers say of
// their offloads and counters, and whether a write really arrives. Each becomes a file of the tree
// (tree.h), in the form of the tool that prints it elsewhere:
//
//   kvd/providers             NAME DOMAIN [hmem] [emulated] [regions=N], best first
//   kvd/environment           NAME=value
//   kvd/self-write            NAME ok|failed TEXT
//   kvd/offloads/DEVICE       as `ethtool -k DEVICE`
//   kvd/statistics/DEVICE     as `ethtool -S DEVICE`
//   kvd/dcb/DEVICE            as `dcb pfc show dev DEVICE`
//
// A file that cannot be had is left out. Calling thread: one; the writes take up to kWriteDeadline
// for each provider.
#pragma once

#include <map>
#include <string>

#include "base/clock.h"
#include "kvd-probe/doctor/host.h"

namespace kvd::doctor {

constexpr Duration kWriteDeadline{2'000'000'000};

using Facts = std::map<std::string, std::string>;

// `environment`: the variables to report.
Facts collect_facts(const Host& host, const std::map<std::string, std::string>& environment);
// kvd/statistics only: what is read a second time.
Facts collect_statistics(const Host& host);

}  // namespace kvd::doctor
