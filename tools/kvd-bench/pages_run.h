// The measurement of `kvd-bench pages`: rounds of KV requests and of plain writes in turn, in the
// same two processes, until the ratio of the two is known well enough.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kvd-bench/pages_options.h"
#include "kvd-bench/pages_receiver.h"

namespace kvd::tools {

// A round of requests beside the round of plain writes that stood next to it.
struct RoundPair {
  double bytes_per_s = 0, ceiling_bytes_per_s = 0;
  double cpu_ns_per_gib = 0, ceiling_cpu_ns_per_gib = 0;
  CpuTimes cpu;
  std::uint64_t bytes = 0;
  double ratio() const { return bytes_per_s / ceiling_bytes_per_s; }
};

struct PagesResult {
  PagesPlan plan;
  std::string provider, libfabric_name;
  bool shared_clock = true;  // of both sides; else commit is half a round trip
  HugePages huge_pages;
  std::uint32_t copies = 0;  // of each byte, by the program itself
  // Of the two sides' CPUs: common/cpu_distance.h; nothing with a peer.
  std::optional<double> cpu_round_trip_before_ns, cpu_round_trip_after_ns;
  ColdTimes cold;

  // A request, in the mean.
  double pages = 0, runs = 0, writes = 0, bytes = 0;
  probe::PlainOrder ceiling;  // its writes: bytes, pieces, and the depth that was best
  std::vector<RoundPair> pairs;
  std::vector<double> ceiling_1mib;  // bytes a second
  std::vector<RequestTimes> requests;
  std::vector<double>
      isolated_commit_ns;      // of records that were posted with nothing else in flight
  std::uint64_t verified = 0;  // pages
  bool tight = false;          // the interval was narrow enough before a limit was reached
  bool partial = false;        // a signal ended it, or a peer had no second turn
};

struct PagesWatch {
  std::function<bool()> stop;                      // true: end now, with what there is
  std::function<void(const PagesResult&)> paired;  // after each pair
};

Result<PagesResult> run_pages(const PagesPlan& plan, const PagesWatch& watch);

}  // namespace kvd::tools
