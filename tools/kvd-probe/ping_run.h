// What `kvd-probe ping` measures, in order, and what comes of it. The `serve` of a mesh runs the
// short form.
//
// Calling thread: any; blocks. Rates are bytes a second, times nanoseconds.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "kvd-probe/ping_session.h"
#include "peer/provider_choice.h"

namespace kvd::tools {

struct PingOptions {
  SessionOptions session;
  std::string provider, device;
  std::string fabric_addr;  // empty: the address that the way to the peer begins at
  std::vector<std::uint64_t> bytes;
  Duration time{1'000'000'000};  // of one size
  std::optional<std::uint32_t> depth;
  bool require_rdma = false;
  bool brief = false;  // latency of the first size, bandwidth of the last, nothing else
};

struct SizeResult {
  std::uint64_t bytes = 0;
  std::vector<double> latency_ns;       // one write, delivered
  std::uint32_t depth = 0, writes = 0;  // of a round
  std::vector<double> rates, read_rates;
};

struct PingResult {
  std::optional<proto::Described> peer;
  proto::ProbeResult opened;
  ProviderChoice provider;
  fabric::Capabilities capabilities;
  std::string source;         // address of this host that was used
  double open_ns = 0;         // from asking for a session to being able to write; its line included
  double first_write_ns = 0;  // with the connection of the provider
  std::vector<SizeResult> sizes;
  std::uint64_t verified_pages = 0, verified_bytes = 0, epoch = 0;
  // Of the timed rounds.
  double payload_bytes = 0;
  double cpu_here_ns = 0, cpu_there_ns = 0;
  bool cpu_there_known = false;
  std::vector<proto::InterfaceCount> here, there;
  std::uint32_t rdma_ports_here = 0, rdma_ports_there = 0;
  bool reverse = false;  // the far side wrote
  Status status;         // why it is not complete
  bool limited() const { return opened.max_bytes_per_s != 0; }
};

// `result` has whatever was measured when it ends early; result->status says why.
void run_ping(const PingOptions& options, PingResult* result,
              const std::function<void(const PingResult&)>& progress);

}  // namespace kvd::tools
