#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/units.h"
#include "common/measure.h"
#include "fabric/provider_details.h"
#include "kvd-probe/ping_report.h"

namespace kvd::tools {
namespace {

using doctor::Finding;
using doctor::Outcome;

constexpr double kPathShare = 0.9;  // of the payload that an interface must have carried
constexpr double kAsymmetry = 0.5;  // reads below this share of writes
constexpr double kColdRatio = 10, kColdNs = 50e6;
constexpr double kLineShare = 0.5;  // of the link's speed

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}
std::string gigabits(double bytes_per_s) { return format("%.2f Gbit/s", bytes_per_s * 8e-9); }
std::string nanoseconds(double ns) {
  return format_duration(Duration(static_cast<std::int64_t>(ns)));
}
std::string size_of(double bytes) { return format_bytes(static_cast<std::uint64_t>(bytes)); }

Finding finding(const char* id, const char* title) {
  Finding out;
  out.id = id;
  out.title = title;
  return out;
}
Finding& set(Finding& out, Outcome outcome, std::string evidence) {
  out.outcome = outcome;
  out.evidence.push_back(std::move(evidence));
  return out;
}

bool rdma(const PingResult& r) { return r.capabilities.rdma; }

Finding find_provider(const PingResult& r) {
  Finding out = finding("prov-tcp", "RDMA carries the bytes where both ends have it");
  const std::string ports = std::to_string(r.rdma_ports_here) + " RDMA ports are up here, " +
                            std::to_string(r.rdma_ports_there) + " there";
  const std::string what = r.provider.name + " was used; " + ports;
  if (rdma(r)) return set(out, Outcome::kPass, what);
  if (r.rdma_ports_here + r.rdma_ports_there == 0) return set(out, Outcome::kSkip, what);
  const bool both = r.rdma_ports_here > 0 && r.rdma_ports_there > 0;
  set(out, both ? Outcome::kFail : Outcome::kWarn, what + "; it is " + r.provider.why);
  out.consequence = "KV moves at the speed of TCP: time to first token grows by the difference";
  out.remedy = both ? "give both ends --require-rdma and --fabric-addr of the RDMA interface; "
                      "kvd-probe doctor tells what keeps it away"
                    : "bring up RDMA at the other end too; kvd-probe doctor there tells why not";
  return out;
}

Finding find_asymmetry(const PingResult& r, bool reverse) {
  Finding out = finding("rw-asym", "reads are about as fast as writes");
  if (!r.capabilities.remote_read) {
    return set(out, Outcome::kSkip, r.provider.name + " cannot read");
  }
  if (reverse) return set(out, Outcome::kSkip, "the far side wrote; nothing was read");
  out.outcome = Outcome::kSkip;
  for (const SizeResult& size : r.sizes) {
    if (size.read_rates.empty() || size.rates.empty()) continue;
    const double reads = percentile(size.read_rates, 0.5), writes = percentile(size.rates, 0.5);
    out.outcome =
        std::max(out.outcome, reads < kAsymmetry * writes ? Outcome::kWarn : Outcome::kPass);
    out.evidence.push_back(format_bytes(size.bytes) + ": reads " + gigabits(reads) + ", writes " +
                           gigabits(writes) + format(", ratio %.2f", reads / writes));
  }
  if (out.evidence.empty()) out.evidence.push_back("nothing was read");
  if (out.outcome == Outcome::kWarn) {
    out.consequence = "a system that pulls KV with reads is this much slower than one that pushes";
    out.remedy = "push: kvd always writes; in other systems choose their push mode";
  }
  return out;
}

Finding find_cold(const PingResult& r) {
  Finding out = finding("cold-first", "the first write is not much slower than the rest");
  if (r.sizes.empty() || r.sizes.front().latency_ns.empty() || r.first_write_ns == 0) {
    return set(out, Outcome::kUnknown, "no write was measured");
  }
  const double steady = percentile(r.sizes.front().latency_ns, 0.5);
  const double ratio = r.first_write_ns / steady;
  const bool slow = r.first_write_ns > kColdNs && ratio > kColdRatio;
  set(out, slow ? Outcome::kWarn : Outcome::kPass,
      "the first write took " + nanoseconds(r.first_write_ns) + ", later ones " +
          nanoseconds(steady) + format(": %.0f times", ratio));
  if (slow) {
    out.consequence = "the first request over a new connection waits this long for its KV";
    out.remedy =
        "connect before requests come: a kvd link is ready only after a verified test "
        "write, so start workers before clients; check name resolution and routes";
  }
  return out;
}

const proto::InterfaceCount* carrier(const std::vector<proto::InterfaceCount>& growth, bool sent,
                                     double payload, bool want_rdma) {
  const proto::InterfaceCount* best = nullptr;
  const auto carried = [&](const proto::InterfaceCount& one) {
    return static_cast<double>(sent ? one.sent_bytes : one.received_bytes);
  };
  for (const proto::InterfaceCount& one : growth) {
    if (carried(one) < kPathShare * payload) continue;
    if (best == nullptr || (one.rdma == want_rdma && best->rdma != want_rdma)) best = &one;
  }
  return best;
}

struct Path {
  const proto::InterfaceCount* here = nullptr;
  const proto::InterfaceCount* there = nullptr;
};
Path path_of(const PingResult& r, bool reverse) {
  if (r.payload_bytes == 0) return {};
  return {carrier(r.here, !reverse, r.payload_bytes, rdma(r)),
          carrier(r.there, reverse, r.payload_bytes, rdma(r))};
}

Finding find_path(const PingResult& r, const Path& path, bool reverse) {
  Finding out = finding("path", "the bytes went the way that the provider stands for");
  const std::string payload = size_of(r.payload_bytes) + " of payload";
  if (r.payload_bytes == 0) return set(out, Outcome::kUnknown, "no timed round ended");
  const auto told = [&](const proto::InterfaceCount& one, bool sent) {
    return one.name + (sent ? " sent " : " received ") +
           format_bytes(sent ? one.sent_bytes : one.received_bytes);
  };
  if (path.here == nullptr && path.there == nullptr) {
    if (r.provider.name == "local") {
      return set(out, Outcome::kPass, "no interface carried them (shared memory): " + payload);
    }
    set(out, Outcome::kUnknown, "no interface counted the " + payload);
    out.command = "ethtool -S INTERFACE, or perfquery, before and after, on both hosts";
    return out;
  }
  std::string evidence = "the bytes went over ";
  evidence += path.here != nullptr ? path.here->name + " here" : "an uncounted interface here";
  evidence += path.there != nullptr ? " and " + path.there->name + " there" : "";
  set(out, Outcome::kPass, evidence + ": " + payload);
  if (path.here != nullptr) out.evidence.push_back("here " + told(*path.here, !reverse));
  if (path.there != nullptr) out.evidence.push_back("there " + told(*path.there, reverse));
  const bool by_rdma =
      (path.here != nullptr && path.here->rdma) || (path.there != nullptr && path.there->rdma);
  if (rdma(r) && !by_rdma) {
    out.outcome = Outcome::kWarn;
    out.consequence =
        "an RDMA provider whose bytes the kernel's interface counts is emulated "
        "(software RDMA): each byte costs processor time";
    out.remedy = "choose the device of a NIC with --device; kvd-probe list names them";
  }
  if (r.provider.name == "local") {
    out.outcome = Outcome::kWarn;
    out.consequence = "other traffic hides what local did";
    out.remedy = "measure while nothing else uses " + evidence.substr(20);
  }
  return out;
}

Finding find_line_rate(const PingResult& r, const Path& path) {
  Finding out = finding("line-rate", "writes use the link's speed");
  double best = 0;
  for (const SizeResult& size : r.sizes) {
    if (!size.rates.empty()) best = std::max(best, percentile(size.rates, 0.5));
  }
  if (best == 0) return set(out, Outcome::kUnknown, "no timed round ended");
  if (r.limited()) {
    return set(out, Outcome::kSkip,
               "a worker was probed, which takes " +
                   size_of(static_cast<double>(r.opened.max_bytes_per_s)) +
                   " a second at most: bandwidth is that of single rounds");
  }
  std::uint64_t line = 0;
  for (const proto::InterfaceCount* one : {path.here, path.there}) {
    if (one == nullptr || one->bits_per_s == 0) continue;
    line = line == 0 ? one->bits_per_s : std::min(line, one->bits_per_s);
  }
  if (line == 0) {
    if (r.provider.name == "local") {
      return set(out, Outcome::kSkip, gigabits(best) + " through memory: there is no link");
    }
    set(out, Outcome::kUnknown,
        gigabits(best) +
            "; nothing tells the link's speed (loopback, a "
            "virtual interface, or its driver is silent)");
    out.command = "ethtool INTERFACE";
    return out;
  }
  const double share = best * 8 / static_cast<double>(line);
  const bool slow = share < kLineShare;
  set(out, slow ? Outcome::kWarn : Outcome::kPass,
      gigabits(best) + format(" is %.0f %% of the link's ", 100 * share) +
          gigabits(static_cast<double>(line) / 8));
  if (slow) {
    out.consequence = "KV takes that much longer than the link would allow";
    out.remedy =
        "kvd-probe doctor on both hosts: MTU, congestion control, PCIe, NUMA, other "
        "traffic on the link";
  }
  return out;
}

Finding find_mtu(const Path& path) {
  Finding out = finding("mtu", "both ends have the same MTU");
  if (path.here == nullptr || path.there == nullptr || path.here->mtu_bytes == 0 ||
      path.there->mtu_bytes == 0) {
    return set(out, Outcome::kSkip, "the interfaces of both ends are not known");
  }
  const std::string both = std::to_string(path.here->mtu_bytes) + " here (" + path.here->name +
                           "), " + std::to_string(path.there->mtu_bytes) + " there (" +
                           path.there->name + ")";
  if (path.here->mtu_bytes == path.there->mtu_bytes) return set(out, Outcome::kPass, both);
  set(out, Outcome::kWarn, both);
  out.consequence = "the smaller one counts; frames above it are lost where ICMP is filtered";
  out.remedy = "ip link set INTERFACE mtu N, the same on both ends and on each switch between";
  return out;
}

// Control gets through and no write does: what lies between lets TCP pass, and not the provider.
Finding find_blocked(const PingResult& r) {
  const bool efa = r.provider.name.starts_with("efa");
  Finding out = efa ? finding("efa-sg", "the security group lets EFA's writes through")
                    : finding("udp-4791", "nothing on the way holds up RoCE's UDP port 4791");
  if (!efa && !r.provider.name.starts_with("verbs")) {
    return set(out, Outcome::kSkip, r.provider.name + " was used");
  }
  if (r.first_write_ns > 0) return set(out, Outcome::kPass, "writes completed");
  if (r.status.ok()) return set(out, Outcome::kSkip, "nothing was written");
  set(out, Outcome::kFail, "a session was opened, and no write completed: " + r.status.message());
  out.consequence = "no KV can go this way, though the control channel and TCP work";
  out.remedy =
      efa ? "give the security group of both instances a rule, in and out, that allows all "
            "traffic from itself"
          : "RoCE: let UDP port 4791 through each firewall and switch between the hosts; "
            "InfiniBand: ibping the peer's LID";
  return out;
}

Finding find_skew(const PingResult& r, const std::string& version) {
  Finding out = finding("skew", "both ends run the same versions");
  const std::string ours = fabric::libfabric_version();
  const std::string both = "kvd " + version + " here, " + r.peer->version + " there; libfabric " +
                           ours + " here, " + r.opened.libfabric + " there";
  if (r.peer->version == version && r.opened.libfabric == ours) {
    return set(out, Outcome::kPass, both);
  }
  set(out, Outcome::kWarn, both);
  out.consequence = "providers of unlike versions may fall back to slower protocols, or not talk";
  out.remedy = "install the same versions on both hosts";
  return out;
}

}  // namespace

std::vector<Finding> ping_findings(const PingResult& result, const std::string& version) {
  std::vector<Finding> out;
  if (!result.peer || result.opened.region_bytes == 0) return out;
  const bool reverse = result.reverse;
  const Path path = path_of(result, reverse);
  out.push_back(find_provider(result));
  out.push_back(find_path(result, path, reverse));
  out.push_back(find_line_rate(result, path));
  out.push_back(find_asymmetry(result, reverse));
  out.push_back(find_cold(result));
  out.push_back(find_mtu(path));
  out.push_back(find_blocked(result));
  out.push_back(find_skew(result, version));
  return out;
}

std::vector<GateOutcome> check_gates(const PingGates& gates, const PingResult& result) {
  std::vector<GateOutcome> out;
  if (gates.min_gbps) {
    double best = 0;
    for (const SizeResult& size : result.sizes) {
      if (!size.rates.empty()) best = std::max(best, percentile(size.rates, 0.5) * 8e-9);
    }
    out.push_back({"min_gbps", *gates.min_gbps, best, best >= *gates.min_gbps});
  }
  if (gates.max_p99_us) {
    const bool known = !result.sizes.empty() && !result.sizes.front().latency_ns.empty();
    const double p99 = known ? percentile(result.sizes.front().latency_ns, 0.99) / 1e3 : 0;
    out.push_back({"max_p99_us", *gates.max_p99_us, p99, known && p99 <= *gates.max_p99_us});
  }
  return out;
}

}  // namespace kvd::tools
