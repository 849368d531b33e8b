#include <algorithm>
#include <fstream>
#include <iostream>
#include <limits>
#include <string>

#include "contract/world.h"
#include "fabric/ofi/send_buffer.h"
#include "fabric/provider_details.h"

namespace kvd::fabric::contract {

TEST_CASE("contract: what this host lacks is said, with the reason and the remedy") {
  const std::vector<std::string> here = present(), missing = absent();
  std::cout << "contract suite runs on " << here.size() << " fabrics:";
  for (const std::string& name : here) std::cout << " " << name;
  std::cout << "\nskipped: " << missing.size() << "\n";
  for (const std::string& name : missing) {
    const Status why = explain_missing(name);
    std::cout << "  " << why.message() << "\n";
    CHECK(why.code() == StatusCode::kNoProvider);
    CHECK(why.message().find(name) != std::string::npos);
    const auto domain =
        open_domain({.provider = name, .source_address = "127.0.0.1", .device = ""});
    REQUIRE_FALSE(domain.ok());
    CHECK(domain.status().code() == StatusCode::kNoProvider);
  }
  CHECK(here.size() + missing.size() == provider_preference().size() + 2);
}

TEST_CASE("providers: loopback offers tcp in its libfabric form, and tcp over rxm") {
  const auto found = available_providers("127.0.0.1", "");
  const auto find = [&](const std::string& name) {
    return std::find_if(found.begin(), found.end(),
                        [&](const ProviderInfo& info) { return info.name == name; });
  };
  REQUIRE(find("tcp") != found.end());
  REQUIRE(find("tcp;ofi_rxm") != found.end());
  CHECK((find("tcp")->libfabric_name == "net" || find("tcp")->libfabric_name == "tcp"));
  CHECK(find("tcp")->address == "127.0.0.1");
  CHECK_FALSE(find("tcp")->rdma);
  CHECK(find("tcp") < find("tcp;ofi_rxm"));
  REQUIRE(find("local") == found.begin());
  CHECK_FALSE(find("local")->rdma);
  for (const ProviderInfo& info : found) {
    CHECK(info.libfabric_name.find("sockets") == std::string::npos);
    CHECK(info.libfabric_name.find("udp") == std::string::npos);
    CHECK(info.libfabric_name.find("shm") == std::string::npos);
  }
  CHECK(available_providers("203.0.113.77", "").empty());
  CHECK(available_providers("0.0.0.0", "").empty());
  CHECK(available_providers("127.0.0.1", "no such device").empty());
}

TEST_CASE("providers: tcp and rxm promise what was measured, and no more") {
  const std::string name = GENERATE(as<std::string>{}, "tcp", "tcp;ofi_rxm");
  INFO(name);
  auto domain = open_domain({.provider = name, .source_address = "127.0.0.1", .device = ""});
  REQUIRE(domain.ok());
  const Capabilities& what = (*domain)->capabilities();
  CHECK(what.provider == name);
  CHECK(what.write_after_write);
  CHECK(what.remote_cq_data);
  CHECK(what.delivery_complete);
  CHECK(what.endpoint_per_peer);
  CHECK(what.endpoint_close_fences);
  CHECK_FALSE(what.region_close_fences);
  CHECK_FALSE(what.rdma);
  CHECK(what.iov_limit == 4);
  CHECK(what.rma_iov_limit == 4);
  std::ifstream file("/proc/sys/net/ipv4/tcp_congestion_control");
  std::string congestion;
  file >> congestion;
  CHECK(what.max_write_bytes == 4u << 20);
  // bbr holds long writes up, except on the loopback with short send buffers.
  const bool bbr = congestion.starts_with("bbr");
  const auto best = [&](bool loopback) {
    const bool long_ones = !bbr || (loopback && ofi::may_shorten_send_buffers());
    return long_ones ? std::numeric_limits<std::uint64_t>::max() : 768u << 10;
  };
  CHECK(what.best_write_bytes == best(true));
  CHECK(what.packet_bytes == (bbr ? 65'483 : 0));
  int seen = 0;
  for (const ProviderDetails& there : list_providers()) {
    if (there.info.name != name) continue;
    INFO(there.info.address);
    const bool loopback = there.info.address.starts_with("127.") || there.info.address == "::1";
    CHECK(there.capabilities.best_write_bytes == best(loopback));
    const std::uint64_t packet = !loopback ? 65'160 : there.info.address == "::1" ? 65'464 : 65'483;
    CHECK(there.capabilities.packet_bytes == (bbr ? packet : 0));
    ++seen;
  }
  CHECK(seen != 0);
  CHECK(what.max_inflight_ops == 64);
  CHECK(what.max_inflight_bytes == 4u << 20);
}

TEST_CASE("providers: local proves delivery and fences, because the target itself copies") {
  auto domain = open_domain({.provider = "local", .source_address = "127.0.0.1", .device = ""});
  REQUIRE(domain.ok());
  const Capabilities& what = (*domain)->capabilities();
  CHECK(what.provider == "local");
  CHECK(what.target_copies);
  CHECK(what.shared_sources);
  CHECK_FALSE(what.remote_read);
  CHECK(what.write_after_write);
  CHECK(what.remote_cq_data);
  CHECK(what.delivery_complete);
  CHECK(what.endpoint_per_peer);
  CHECK(what.endpoint_close_fences);
  CHECK_FALSE(what.rdma);
  CHECK(check_local_scope(local_scope()).ok());
  const auto wrong =
      open_domain({.provider = "local", .source_address = "203.0.113.77", .device = ""});
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.status().message().find("--fabric-addr") != std::string::npos);
  const auto device = open_domain({.provider = "local", .source_address = "", .device = "eth0"});
  REQUIRE_FALSE(device.ok());
  CHECK(device.status().message().find("--device") != std::string::npos);
}

TEST_CASE("providers: local is for one host, one network namespace, one user") {
  const std::string here = local_scope();
  const auto with = [&](std::size_t part) {
    std::string other = here;
    char& digit = other[part * 17];
    digit = digit == '1' ? '2' : '1';
    return check_local_scope(other).message();
  };
  CHECK(with(0).find("another host") != std::string::npos);
  CHECK(with(1).find("network namespace") != std::string::npos);
  CHECK(with(2).find("another user") != std::string::npos);
  for (const std::string bad : {"", "/", "local"}) {
    CHECK_FALSE(check_local_scope(bad).ok());
  }
}

TEST_CASE("providers: an endpoint opened on loopback stays on loopback") {
  auto domain = open_domain({.provider = "tcp", .source_address = "", .device = ""});
  REQUIRE(domain.ok());
  const FabricAddress address = (*domain)->open_endpoint().value()->address();
  REQUIRE(address.size() == 16);  // sockaddr_in
  CHECK(address.substr(4, 4) == std::string("\x7f\x00\x00\x01", 4));
}

TEST_CASE("providers: both sides choose the best name they share") {
  const std::vector<std::string> all{"efa", "tcp", "tcp;ofi_rxm"}, tcp{"tcp;ofi_rxm", "tcp"};
  CHECK(*choose_provider(all, tcp, false) == "tcp");
  CHECK(*choose_provider(tcp, all, false) == "tcp;ofi_rxm");
  CHECK(*choose_provider(all, all, true) == "efa");
  const std::vector<std::string> verbs{"verbs;ofi_rxm"};
  const auto none = choose_provider(all, verbs, false);
  REQUIRE_FALSE(none.ok());
  CHECK(none.status().code() == StatusCode::kIncompatible);
  CHECK(none.status().message() ==
        "no provider in common (ours: efa, tcp, tcp;ofi_rxm; theirs: verbs;ofi_rxm)");
  const auto downgrade = choose_provider(tcp, tcp, true);
  REQUIRE_FALSE(downgrade.ok());
  CHECK(downgrade.status().message().find("--require-rdma") != std::string::npos);
  CHECK_FALSE(choose_provider({}, tcp, false).ok());
}

TEST_CASE("providers: names that kvd never uses are refused with the reason") {
  for (const std::string name : {"sockets", "udp;ofi_rxd", "shm", "carrier-pigeon", ""}) {
    INFO(name);
    const auto domain =
        open_domain({.provider = name, .source_address = "127.0.0.1", .device = ""});
    REQUIRE_FALSE(domain.ok());
    const bool known = !name.empty() && name != "carrier-pigeon";
    CHECK(domain.status().code() ==
          (known ? StatusCode::kNoProvider : StatusCode::kInvalidArgument));
    CHECK(domain.status().message().find('\n') == std::string::npos);
    CHECK(domain.status().message().find("choose") != std::string::npos);
  }
  for (const std::string address : {"203.0.113.77", "0.0.0.0", "::", "no such host"}) {
    INFO(address);
    const auto elsewhere =
        open_domain({.provider = "tcp", .source_address = address, .device = ""});
    REQUIRE_FALSE(elsewhere.ok());
    CHECK(elsewhere.status().code() == StatusCode::kNoProvider);
    CHECK(elsewhere.status().message().find("--fabric-addr") != std::string::npos);
    CHECK(elsewhere.status().message().find(address) != std::string::npos);
  }
}

}  // namespace kvd::fabric::contract
