#include <algorithm>
#include <catch2/catch.hpp>

#include "fabric/provider_details.h"
#include "kvd-probe/ping_report.h"

namespace kvd::tools {
namespace {

using doctor::Finding;
using doctor::Outcome;

// Two hosts with one provider, of which nothing is amiss.
PingResult healthy(const std::string& provider, bool rdma) {
  PingResult out;
  out.peer.emplace();
  out.peer->version = "1";
  out.opened.region_bytes = 1;
  out.opened.libfabric = fabric::libfabric_version();
  out.provider.name = provider;
  out.provider.why = "--provider";
  out.capabilities.rdma = rdma;
  out.capabilities.remote_read = true;
  out.first_write_ns = 1e6;
  SizeResult size;
  size.bytes = 1u << 20;
  size.latency_ns = std::vector<double>(100, 1e5);
  size.rates = std::vector<double>(10, 1e10);
  size.read_rates = std::vector<double>(10, 9e9);
  out.sizes.push_back(size);
  out.payload_bytes = 1e9;
  proto::InterfaceCount port;
  port.name = rdma ? "mlx5_0/1" : "eth0";
  port.rdma = rdma;
  port.bits_per_s = 100'000'000'000;
  port.sent_bytes = port.received_bytes = 1'010'000'000;
  out.here = out.there = {port};
  out.rdma_ports_here = out.rdma_ports_there = rdma ? 1 : 0;
  return out;
}

Finding found(const PingResult& result, const std::string& id) {
  const auto all = ping_findings(result, "1");
  const auto one = std::find_if(all.begin(), all.end(),
                                [&](const Finding& f) { return std::string(f.id) == id; });
  REQUIRE(one != all.end());
  if (one->outcome == Outcome::kWarn || one->outcome == Outcome::kFail) {
    CHECK(!one->evidence.empty());
    CHECK(!one->consequence.empty());
    CHECK(!one->remedy.empty());
  }
  return *one;
}

}  // namespace

TEST_CASE("ping findings: of two healthy hosts nothing warns or fails") {
  for (const bool rdma : {false, true}) {
    for (const Finding& f : ping_findings(healthy(rdma ? "verbs;ofi_rxm" : "tcp", rdma), "1")) {
      CAPTURE(f.id);
      CHECK((f.outcome == Outcome::kPass || f.outcome == Outcome::kSkip));
    }
  }
}

TEST_CASE("ping findings: reads at a hundredth of writes warn, with the ratio") {
  PingResult result = healthy("tcp", false);
  result.sizes[0].read_rates = std::vector<double>(10, 1e8);
  const Finding f = found(result, "rw-asym");
  CHECK(f.outcome == Outcome::kWarn);
  CHECK(f.evidence[0] == "1 MiB: reads 0.80 Gbit/s, writes 80.00 Gbit/s, ratio 0.01");
}

TEST_CASE("ping findings: a session over RDMA in which no write completes is a blocked path") {
  for (const std::string provider : {"verbs;ofi_rxm", "efa"}) {
    const std::string id = provider == "efa" ? "efa-sg" : "udp-4791";
    PingResult result = healthy(provider, true);
    CHECK(found(result, id).outcome == Outcome::kPass);
    result.first_write_ns = 0;
    result.status = Status(StatusCode::kFailed, "the first write did not complete");
    CHECK(found(result, id).outcome == Outcome::kFail);
  }
  CHECK(found(healthy("tcp", false), "udp-4791").outcome == Outcome::kSkip);
}

TEST_CASE("ping findings: a first write of 300 ms warns, and one that is as slow as all does not") {
  PingResult result = healthy("tcp", false);
  result.first_write_ns = 3e8;
  CHECK(found(result, "cold-first").outcome == Outcome::kWarn);
  result.sizes[0].latency_ns = std::vector<double>(100, 2.9e8);
  CHECK(found(result, "cold-first").outcome == Outcome::kPass);
}

TEST_CASE("ping findings: TCP between two hosts with active RDMA ports fails, with one it warns") {
  PingResult result = healthy("tcp", false);
  result.rdma_ports_here = 1;
  CHECK(found(result, "prov-tcp").outcome == Outcome::kWarn);
  result.rdma_ports_there = 1;
  CHECK(found(result, "prov-tcp").outcome == Outcome::kFail);
}

TEST_CASE("ping findings: a provider of RDMA that the kernel's interface counts warns") {
  PingResult result = healthy("verbs;ofi_rxm", true);
  for (auto* side : {&result.here, &result.there}) {
    side->front().name = "eth0";
    side->front().rdma = false;
  }
  CHECK(found(result, "path").outcome == Outcome::kWarn);
}

TEST_CASE("ping findings: a payload that no interface counted is unknown, not passed") {
  PingResult result = healthy("verbs;ofi_rxm", true);
  result.here.clear();
  result.there.clear();
  const Finding f = found(result, "path");
  CHECK(f.outcome == Outcome::kUnknown);
  CHECK(!f.command.empty());
}

TEST_CASE("ping findings: writes below half of the link's speed and unlike versions warn") {
  PingResult result = healthy("tcp", false);
  result.sizes[0].rates = std::vector<double>(10, 1e9);
  CHECK(found(result, "line-rate").outcome == Outcome::kWarn);
  result.opened.libfabric = "0.1";
  CHECK(found(result, "skew").outcome == Outcome::kWarn);
}

}  // namespace kvd::tools
