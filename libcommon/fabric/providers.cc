#include <algorithm>
#include <array>

#include "fabric/fabric.h"

namespace kvd::fabric {
namespace {

constexpr std::array<std::string_view, 6> kPreference = {"local",         "efa", "cxi",
                                                         "verbs;ofi_rxm", "tcp", "tcp;ofi_rxm"};

bool is_rdma(std::string_view name) {
  return name == "efa" || name == "cxi" || name == "verbs;ofi_rxm";
}

std::string join(std::span<const std::string> names) {
  if (names.empty()) return "none";
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

}  // namespace

std::span<const std::string_view> provider_preference() { return kPreference; }

Result<std::string> choose_provider(std::span<const std::string> ours,
                                    std::span<const std::string> theirs, bool require_rdma) {
  for (const std::string& name : ours) {
    if (require_rdma && !is_rdma(name)) continue;
    if (std::find(theirs.begin(), theirs.end(), name) != theirs.end()) return name;
  }
  std::string message =
      "no provider in common (ours: " + join(ours) + "; theirs: " + join(theirs) + ")";
  if (require_rdma) message += "; --require-rdma refuses tcp and local";
  return Status(StatusCode::kIncompatible, std::move(message));
}

}  // namespace kvd::fabric
