// The free functions of fabric.h that ask libfabric, and for `local` the kernel.
#include <rdma/fabric.h>

#include <algorithm>
#include <filesystem>

#include "fabric/fabric.h"
#include "fabric/local/local_domain.h"
#include "fabric/ofi/ofi_domain.h"
#include "fabric/ofi/ofi_info.h"
#include "fabric/provider_details.h"

namespace kvd::fabric {
namespace {

bool has_device(const std::string& directory, const std::string& prefix) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().filename().string().starts_with(prefix)) return true;
  }
  return false;
}

// An address or device that libfabric would refuse must not go unnoticed because `local` needs
// none.
Status check_local(const std::string& source_address, const std::string& device) {
  if (!device.empty()) {
    return {StatusCode::kNoProvider,
            "provider local: it has no devices; drop --device, or choose tcp"};
  }
  KVD_RETURN_IF_ERROR(ofi::check_source("tcp", source_address));
  const Status works = local::probe();
  if (works.ok()) return {};
  return {works.code(), "provider " + works.message() + "; choose tcp"};
}

std::string known_names() {
  std::string out;
  for (const std::string_view name : provider_preference()) {
    out += (out.empty() ? "" : ", ") + std::string(name);
  }
  return out;
}

std::string rdma_reason(const std::string& provider) {
  const std::string lib = "libfabric " + libfabric_version();
  if (provider == "cxi") {
    if (!has_device("/dev", "cxi")) {
      return "no /dev/cxi* device: install the Slingshot driver, or choose tcp";
    }
    return lib + " offers no cxi here: install a libfabric built with cxi";
  }
  if (!has_device("/sys/class/infiniband", "")) {
    return "no device in /sys/class/infiniband: load the NIC's driver, or choose tcp";
  }
  if (provider == "efa") return lib + " offers no efa here: check fi_info -p efa";
  return lib +
         " offers no verbs at this address: give --fabric-addr an address of the RDMA interface";
}

}  // namespace

std::vector<ProviderInfo> available_providers(const std::string& source_address,
                                              const std::string& device) {
  std::vector<ProviderInfo> out;
  for (const std::string_view name : provider_preference()) {
    if (name == "local" && check_local(source_address, device).ok()) {
      out.push_back({.name = "local", .libfabric_name = "", .domain = "", .address = ""});
    }
    for (const ofi::Offer& offer : ofi::find_offers(std::string(name), source_address, device)) {
      out.push_back({.name = std::string(name),
                     .libfabric_name = offer.capabilities.libfabric_name,
                     .domain = offer.info->domain_attr->name,
                     .address = offer.address,
                     .rdma = offer.capabilities.rdma});
    }
  }
  return out;
}

Status explain_missing(const std::string& provider) {
  const auto no = [&](const std::string& why) {
    return Status(StatusCode::kNoProvider, "provider " + provider + ": " + why);
  };
  if (provider == "sockets" || provider.starts_with("udp")) {
    return no("never used for KV (too slow, and unreliable); choose tcp");
  }
  if (provider.starts_with("shm")) {
    return no("refused: before libfabric 2.6 it writes past closed keys; choose tcp");
  }
  const auto names = provider_preference();
  if (std::find(names.begin(), names.end(), provider) == names.end()) {
    return invalid_argument("provider " + provider + ": unknown; choose one of " + known_names());
  }
  if (provider == "local") {
    const Status why = check_local("", "");
    return why.ok() ? no("not with this address or device; give --fabric-addr an address of this "
                         "host, and no "
                         "--device")
                    : why;
  }
  if (!provider.starts_with("tcp")) return no(rdma_reason(provider));
  return no("libfabric " + libfabric_version() +
            " does not offer it here: give --fabric-addr an address of this host, and see that "
            "FI_PROVIDER does not exclude it");
}

Result<std::unique_ptr<Domain>> open_domain(const DomainOptions& options) {
  if (options.provider == "local") {
    KVD_RETURN_IF_ERROR(check_local(options.source_address, options.device));
    return std::unique_ptr<Domain>(std::make_unique<local::LocalDomain>());
  }
  std::vector<ofi::Offer> offers =
      ofi::find_offers(options.provider, options.source_address, options.device);
  if (offers.empty()) {
    KVD_RETURN_IF_ERROR(ofi::check_source(options.provider, options.source_address));
    return explain_missing(options.provider);
  }
  return ofi::OfiDomain::open(std::move(offers.front()));
}

std::string local_scope() { return local::to_string(local::Scope::here()); }

Status check_local_scope(const std::string& theirs) {
  return local::check_scope(local::Scope::here(), theirs);
}

}  // namespace kvd::fabric
