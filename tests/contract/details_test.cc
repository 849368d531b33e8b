#include <rdma/fabric.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "fabric/provider_details.h"

namespace kvd::fabric {

TEST_CASE("provider details: every offer is listed once, with what kvd relies on") {
  const std::vector<ProviderDetails> all = list_providers();
  std::set<std::tuple<std::string, std::string, std::string>> seen;
  for (const ProviderDetails& details : all) {
    INFO(details.info.name << " " << details.info.domain << " " << details.info.address);
    CHECK(seen.insert({details.info.name, details.info.domain, details.info.address}).second);
    CHECK(details.rma_write);
    CHECK(details.info.name == details.capabilities.provider);
    CHECK(details.capabilities.iov_limit <= details.iov_limit);
    CHECK(details.capabilities.max_write_bytes <= details.max_message_bytes);
    CHECK((details.progress == "auto" || details.progress == "manual"));
  }
  // What workers choose from is a part of it.
  for (const ProviderInfo& info : available_providers("127.0.0.1", "")) {
    INFO(info.name);
    CHECK(std::any_of(all.begin(), all.end(), [&](const ProviderDetails& details) {
      return details.info.name == info.name && details.info.domain == info.domain;
    }));
  }
}

TEST_CASE("provider details: what is missing has a reason, and nothing is both here and missing") {
  const std::vector<ProviderDetails> all = list_providers();
  std::size_t here = 0;
  const auto missing = missing_providers(all, "");
  for (const std::string_view name : provider_preference()) {
    const bool found = std::any_of(all.begin(), all.end(), [&](const ProviderDetails& details) {
      return details.info.name == name;
    });
    here += found ? 1 : 0;
    const bool lacks = std::any_of(missing.begin(), missing.end(),
                                   [&](const MissingProvider& one) { return one.name == name; });
    CHECK(found != lacks);
  }
  CHECK(here + missing.size() == provider_preference().size());
  for (const MissingProvider& one : missing) {
    INFO(one.message);
    CHECK(one.reason != MissingReason::kFiltered);
    CHECK(one.message.find(one.name) != std::string::npos);
  }
}

TEST_CASE("provider details: a filter that leaves a provider out is the reason that is given") {
  for (const MissingProvider& one : missing_providers({}, "^verbs,efa")) {
    INFO(one.message);
    const bool named = one.name == "efa" || one.name == "verbs;ofi_rxm";
    CHECK((one.reason == MissingReason::kFiltered) == named);
    CHECK((one.message.find("FI_PROVIDER=^verbs,efa") != std::string::npos) == named);
  }
}

TEST_CASE("provider details: FI_PROVIDER names what stays, or behind ^ what goes") {
  CHECK_FALSE(is_filtered("", "tcp"));
  CHECK_FALSE(is_filtered("tcp,net", "net"));
  CHECK_FALSE(is_filtered("tcp;ofi_rxm", "tcp"));
  CHECK(is_filtered("tcp", "net"));
  CHECK(is_filtered("verbs;ofi_rxm", "tcp"));
  CHECK(is_filtered("^net,tcp", "tcp"));
  CHECK_FALSE(is_filtered("^net", "tcp"));
  CHECK_FALSE(is_filtered("^", "tcp"));
}

// What libfabric takes a parameter to be; nothing where it has none of that name.
std::optional<std::string> parameter(const std::string& name) {
  fi_param* all = nullptr;
  int count = 0;
  REQUIRE(fi_getparams(&all, &count) == 0);
  std::optional<std::string> out;
  for (int i = 0; i < count; ++i) {
    if (all[i].name == name) out = all[i].value == nullptr ? "" : all[i].value;
  }
  fi_freeparams(all);
  return out;
}

// Later versions of libfabric have no provider `net`.
TEST_CASE("provider details: libfabric reads writes in place, and that is no override") {
  const auto net = parameter("FI_NET_PREFETCH_RBUF_SIZE");
  const auto tcp = parameter("FI_TCP_PREFETCH_RBUF_SIZE");
  REQUIRE((net || tcp));
  CHECK(net.value_or("0") == "0");
  CHECK(tcp.value_or("0") == "0");
  CHECK(is_own_setting("FI_NET_PREFETCH_RBUF_SIZE", "0"));
  CHECK(is_own_setting("FI_TCP_PREFETCH_RBUF_SIZE", "0"));
  CHECK_FALSE(is_own_setting("FI_NET_PREFETCH_RBUF_SIZE", "9000"));
  CHECK_FALSE(is_own_setting("FI_PROVIDER", "0"));
}

// Run with both set to 64, see CMakeLists.txt.
TEST_CASE("provider details: what the user sets of reading in place stands", "[.set]") {
  const auto net = parameter("FI_NET_PREFETCH_RBUF_SIZE");
  const auto tcp = parameter("FI_TCP_PREFETCH_RBUF_SIZE");
  REQUIRE((net || tcp));
  CHECK(net.value_or("64") == "64");
  CHECK(tcp.value_or("64") == "64");
}

}  // namespace kvd::fabric
