#include "kvd-bench/pages_domain.h"

#include <sched.h>

namespace kvd::tools {

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

SenderSpec sender_spec(const PagesPlan& plan, bool isolated) {
  SenderSpec out;
  out.model = plan.shape.name.substr(0, 64);
  out.layout = plan.layout;
  out.pages_each = plan.pages_each;
  out.sets = plan.sets;
  out.open = plan.options.concurrency;
  out.fragmentation = plan.options.fragmentation;
  out.seed = plan.options.seed;
  out.digest = plan.options.digest;
  out.groups = plan.options.groups;
  out.isolated = isolated;
  out.timeout = plan.options.timeout;
  return out;
}

void pin_to(const std::vector<int>& pin, std::size_t index) {
  if (index >= pin.size()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(pin[index]), &set);
  (void)sched_setaffinity(0, sizeof set, &set);
}

}  // namespace kvd::tools
