#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
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

TEST_CASE("provider details: writes are read in place, unless the user wants it otherwise") {
  const char* value = std::getenv("FI_NET_PREFETCH_RBUF_SIZE");
  const char* other = std::getenv("FI_TCP_PREFETCH_RBUF_SIZE");
  REQUIRE(value != nullptr);
  REQUIRE(other != nullptr);
  CHECK(std::string(other) == "0");
  CHECK(is_own_setting("FI_NET_PREFETCH_RBUF_SIZE", "0"));
  CHECK(is_own_setting("FI_TCP_PREFETCH_RBUF_SIZE", "0"));
  CHECK_FALSE(is_own_setting("FI_NET_PREFETCH_RBUF_SIZE", "9000"));
  CHECK_FALSE(is_own_setting("FI_PROVIDER", "0"));
  const char* wanted = std::getenv("KVD_TEST_PREFETCH");
  CHECK(std::string(value) == (wanted == nullptr ? "0" : wanted));
}

}  // namespace kvd::fabric
