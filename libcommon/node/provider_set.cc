#include "node/provider_set.h"

#include <algorithm>

#include "base/log.h"

namespace kvd::node {

Result<std::string> fabric_source(const std::string& fabric_addr, const std::string& listen) {
  if (!fabric_addr.empty()) return fabric_addr;
  const auto parsed = parse_host_port(listen);
  if (!parsed.ok()) return parsed.status().with_context("--listen");
  if (parsed->host == "*" || parsed->host == "0.0.0.0" || parsed->host == "::") {
    return invalid_argument("--listen " + listen +
                            " names no interface for the KV transfer; give --fabric-addr HOST");
  }
  return parsed->host;
}

Result<ProviderSet> ProviderSet::open(const ProviderOptions& options) {
  std::vector<fabric::ProviderInfo> found =
      fabric::available_providers(options.source, options.device);
  // As most people call it.
  const std::string wanted = options.provider == "verbs" ? "verbs;ofi_rxm" : options.provider;
  if (!wanted.empty()) {
    std::erase_if(found, [&](const auto& p) { return p.name != wanted; });
    if (found.empty()) return fabric::explain_missing(wanted);
  }
  const bool local = !found.empty() && found.front().name == "local";
  if (wanted.empty() && !local) {
    log_info("local is not offered", {{"why", fabric::explain_missing("local").message()}});
  }
  if (options.require_rdma) {
    std::erase_if(found, [](const auto& p) { return !p.rdma; });
    if (found.empty()) {
      return Status(StatusCode::kNoProvider,
                    "no RDMA provider at " + options.source +
                        " and --require-rdma forbids TCP and local; check the device, or drop "
                        "--require-rdma");
    }
  }
  ProviderSet out;
  Status last{
      StatusCode::kNoProvider,
      "no provider at " + options.source +
          (options.device.empty() ? ": give --fabric-addr an address of this host"
                                  : " has the device " + options.device +
                                        ": kvd-probe list names devices and their addresses")};
  for (const fabric::ProviderInfo& info : found) {
    if (out.offers(info.name)) continue;
    auto domain = fabric::open_domain({info.name, options.source, options.device});
    if (!domain.ok()) {
      last = domain.status();
      log_warn("provider not usable", {{"provider", info.name}, {"why", last.message()}});
      continue;
    }
    if ((*domain)->capabilities().emulated) {
      log_warn("provider only emulates RMA: expect a fraction of the link's speed",
               {{"provider", info.name}});
    }
    out.domains_.push_back(std::move(*domain));
    out.names_.push_back(info.name);
  }
  if (out.domains_.empty()) return last;
  return out;
}

std::vector<fabric::Domain*> ProviderSet::domains() const {
  std::vector<fabric::Domain*> out;
  for (const auto& domain : domains_) out.push_back(domain.get());
  return out;
}

bool ProviderSet::offers(std::string_view provider) const {
  return std::find(names_.begin(), names_.end(), provider) != names_.end();
}

void ProviderSet::drop(std::string_view provider) {
  std::erase(names_, provider);
  std::erase_if(domains_, [&](const std::unique_ptr<fabric::Domain>& domain) {
    return domain->capabilities().provider == provider;
  });
}

std::string ProviderSet::scope() const { return offers("local") ? fabric::local_scope() : ""; }

}  // namespace kvd::node
