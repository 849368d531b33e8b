#include "kvd-bench/pages_domain.h"

#include <sched.h>

#include <utility>

namespace kvd::tools {
namespace {

class UnorderedDomain final : public fabric::Domain {
 public:
  explicit UnorderedDomain(std::unique_ptr<fabric::Domain> domain)
      : domain_(std::move(domain)), capabilities_(domain_->capabilities()) {
    capabilities_.write_after_write = false;
  }
  const fabric::Capabilities& capabilities() const override { return capabilities_; }
  Result<std::unique_ptr<fabric::Endpoint>> open_endpoint() override {
    return domain_->open_endpoint();
  }
  Result<std::unique_ptr<fabric::MemoryRegion>> register_memory(
      std::byte* data, std::uint64_t bytes, bool remote_write,
      fabric::Endpoint* endpoint) override {
    return domain_->register_memory(data, bytes, remote_write, endpoint);
  }

 private:
  std::unique_ptr<fabric::Domain> domain_;
  fabric::Capabilities capabilities_;
};

}  // namespace

Result<std::string> choose_pages_provider(const PagesOptions& options) {
  const std::string wanted = options.provider == "verbs" ? "verbs;ofi_rxm" : options.provider;
  for (const fabric::ProviderInfo& info :
       fabric::available_providers(options.fabric_addr, options.device)) {
    if (wanted.empty() || info.name == wanted) return info.name;
  }
  if (!wanted.empty()) return fabric::explain_missing(wanted);
  return Status(StatusCode::kNoProvider, "no libfabric provider can use " + options.fabric_addr +
                                             ": give --fabric-addr an address of this host");
}

Result<std::unique_ptr<fabric::Domain>> open_pages_domain(const PagesOptions& options,
                                                          const std::string& provider,
                                                          bool isolated) {
  auto domain = fabric::open_domain({provider, options.fabric_addr, options.device});
  if (!domain.ok() || !isolated) return domain;
  return std::unique_ptr<fabric::Domain>(std::make_unique<UnorderedDomain>(std::move(*domain)));
}

transfer::TransferOptions pages_transfer_options(const PagesPlan& plan,
                                                 const std::string& provider) {
  transfer::TransferOptions out;
  out.model = plan.shape.name;
  out.fingerprint = pages_fingerprint(plan);
  out.providers = {provider};
  out.stream = plan.options.groups;
  out.digest = plan.options.digest;
  // Verification and a busy host may hold a loop up; nothing here tests liveness.
  out.dead_after = plan.options.timeout;
  out.drain_timeout = plan.options.timeout;
  return out;
}

std::string pages_fingerprint(const PagesPlan& plan) { return "bench:" + plan.shape.name; }

void pin_to(const std::vector<int>& pin, std::size_t index) {
  if (index >= pin.size()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(pin[index]), &set);
  (void)sched_setaffinity(0, sizeof set, &set);
}

}  // namespace kvd::tools
