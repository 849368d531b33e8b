#include "peer/provider_choice.h"

#include <algorithm>

#include "cli/suggest.h"
#include "fabric/fabric.h"

namespace kvd::tools {
namespace {

std::vector<std::string> names_of(const std::vector<fabric::ProviderInfo>& found) {
  std::vector<std::string> out;
  for (const fabric::ProviderInfo& info : found) {
    if (std::find(out.begin(), out.end(), info.name) == out.end()) out.push_back(info.name);
  }
  return out;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out.empty() ? "none" : out;
}

// Why nothing, or not `wanted`, is to be had at this address and device.
Status explain_absence(const ProviderWish& wish, const std::string& wanted) {
  const auto anywhere = fabric::available_providers(wish.source, "");
  const bool other_device = std::any_of(anywhere.begin(), anywhere.end(), [&](const auto& info) {
    return wanted.empty() || info.name == wanted;
  });
  if (!wish.device.empty() && other_device) {
    return {StatusCode::kNoProvider, "--device " + wish.device + ": " +
                                         (wanted.empty() ? "no provider" : wanted) +
                                         " does not have it at " + wish.source +
                                         "; kvd-probe list names devices and their addresses"};
  }
  if (!wanted.empty() && !wanted.starts_with("tcp")) return fabric::explain_missing(wanted);
  // Of TCP the address is at fault, and opening it says how.
  return fabric::open_domain({wanted.empty() ? "tcp" : wanted, wish.source, wish.device}).status();
}

}  // namespace

std::string full_provider_name(const std::string& provider) {
  return provider == "verbs" ? "verbs;ofi_rxm" : provider;
}

Status check_provider_name(const std::string& provider) {
  const std::string wanted = full_provider_name(provider);
  std::vector<std::string> names;
  for (const std::string_view name : fabric::provider_preference()) names.emplace_back(name);
  if (wanted.empty() || std::find(names.begin(), names.end(), wanted) != names.end()) return {};
  const std::string near = cli::nearest(wanted, names);
  return invalid_argument("--provider: " + fabric::explain_missing(wanted).message() +
                          (near.empty() ? "" : "; did you mean " + near + "?"));
}

Result<ProviderChoice> choose_between(const ProviderWish& wish, const proto::Described& peer) {
  const auto found = fabric::available_providers(wish.source, wish.device);
  ProviderChoice out;
  out.ours = names_of(found);
  out.theirs = peer.providers;
  const std::string wanted = full_provider_name(wish.provider);
  std::vector<std::string> candidates = out.ours;
  if (!wanted.empty()) candidates = {wanted};
  std::string no_local;
  if (std::find(out.theirs.begin(), out.theirs.end(), "local") != out.theirs.end()) {
    const Status scope = fabric::check_local_scope(peer.scope);
    if (!scope.ok()) {
      no_local = scope.message();
      if (wanted == "local") {
        return Status(StatusCode::kIncompatible, "provider " + no_local + "; choose tcp");
      }
      std::erase(candidates, "local");
    }
  }
  const auto chosen = fabric::choose_provider(candidates, out.theirs, wish.require_rdma);
  if (!chosen.ok()) return chosen.status();
  out.name = *chosen;
  out.why = wanted.empty() ? "the best of what both have (here: " + joined(out.ours) +
                                 "; there: " + joined(out.theirs) + ")"
                           : "--provider";
  if (!no_local.empty()) out.why += "; not " + no_local;
  for (const fabric::ProviderInfo& info : found) {
    if (info.name == out.name) out.rdma = info.rdma;
  }
  return out;
}

Status check_provider(const ProviderWish& wish) {
  KVD_RETURN_IF_ERROR(check_provider_name(wish.provider));
  const std::string wanted = full_provider_name(wish.provider);
  const auto found = fabric::available_providers(wish.source, wish.device);
  const auto has = [&](auto wants) { return std::any_of(found.begin(), found.end(), wants); };
  if (!has([&](const auto& info) { return wanted.empty() || info.name == wanted; })) {
    return explain_absence(wish, wanted);
  }
  if (!wish.require_rdma) return {};
  const bool rdma = has([&](const fabric::ProviderInfo& info) {
    return info.rdma && (wanted.empty() || info.name == wanted);
  });
  if (rdma) return {};
  return {StatusCode::kNoProvider, "--require-rdma: no provider with RDMA at " + wish.source +
                                       "; " + fabric::explain_missing("verbs;ofi_rxm").message() +
                                       "; kvd-probe doctor --require-rdma says more"};
}

}  // namespace kvd::tools
