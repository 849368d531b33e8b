#include "fabric/ofi/ofi_domain.h"

#include <rdma/fi_errno.h>

#include "base/log.h"
#include "base/rng.h"
#include "fabric/ofi/ofi_endpoint.h"

namespace kvd::fabric::ofi {
namespace {

void close_fid(const char* what, fid* object) {
  const int rc = fi_close(object);
  if (rc != 0)
    log_warn("libfabric did not close", {{"object", what}, {"reason", describe("fi_close", rc)}});
}

// A random key of the size the provider carries; 64 bits on TCP.
std::uint64_t random_key(std::size_t key_bytes) {
  const std::uint64_t bits = secure_random_u64();
  return key_bytes >= 8 ? bits : bits & ((std::uint64_t{1} << (8 * key_bytes)) - 1);
}

}  // namespace

FabricHandle::~FabricHandle() {
  if (fabric != nullptr) close_fid("fabric", &fabric->fid);
}

DomainHandle::~DomainHandle() {
  if (domain != nullptr) close_fid("domain", &domain->fid);
}

Result<std::shared_ptr<DomainHandle>> DomainHandle::open(std::shared_ptr<FabricHandle> fabric) {
  auto handle = std::make_shared<DomainHandle>();
  handle->fabric = std::move(fabric);
  fi_info* info = handle->fabric->offer.info.get();
  const int rc = fi_domain(handle->fabric->fabric, info, &handle->domain, nullptr);
  if (rc == 0) return handle;
  handle->domain = nullptr;
  const bool full = rc == -FI_EMFILE || rc == -FI_ENOMEM || rc == -FI_ENOSPC;
  return Status(full ? StatusCode::kResourceExhausted : StatusCode::kNoProvider,
                describe("fi_domain", rc) + (full ? " (raise the open files limit)" : ""));
}

bool DomainHandle::find_descriptor(const std::byte* data, std::uint64_t bytes,
                                   void** descriptor) const {
  auto it = local.upper_bound(data);
  if (it == local.begin()) return false;
  --it;
  const std::uint64_t offset = static_cast<std::uint64_t>(data - it->first);
  if (offset > it->second.first || bytes > it->second.first - offset) return false;
  *descriptor = it->second.second;
  return true;
}

OfiRegion::~OfiRegion() {
  if (bound_to_ != nullptr) bound_to_->forget(this);
  close();
}

void OfiRegion::close() {
  if (local_ != nullptr) domain_->local.erase(local_);
  local_ = nullptr;
  if (mr_ != nullptr) close_fid("memory region", &mr_->fid);
  mr_ = nullptr;
  bound_to_ = nullptr;
}

Result<std::unique_ptr<Domain>> OfiDomain::open(Offer offer) {
  auto fabric = std::make_shared<FabricHandle>();
  fabric->offer = std::move(offer);
  const int rc = fi_fabric(fabric->offer.info->fabric_attr, &fabric->fabric, nullptr);
  if (rc != 0) {
    fabric->fabric = nullptr;
    return Status(StatusCode::kNoProvider,
                  fabric->offer.capabilities.provider + ": " + describe("fi_fabric", rc));
  }
  auto domain = std::make_unique<OfiDomain>();
  domain->fabric_ = fabric;
  // Opened in any case: a provider that cannot is found out here, not at the first peer.
  auto first = DomainHandle::open(fabric);
  if (!first.ok()) return first.status().with_context(fabric->offer.capabilities.provider);
  if (!fabric->offer.capabilities.endpoint_per_peer) domain->shared_ = *first;
  return std::unique_ptr<Domain>(std::move(domain));
}

Result<std::unique_ptr<Endpoint>> OfiDomain::open_endpoint() {
  std::shared_ptr<DomainHandle> domain = shared_;
  if (domain == nullptr) {
    auto own = DomainHandle::open(fabric_);
    if (!own.ok()) return own.status().with_context(capabilities().provider);
    domain = *own;
  }
  return OfiEndpoint::open(std::move(domain));
}

Result<std::unique_ptr<MemoryRegion>> OfiDomain::register_memory(std::byte* data,
                                                                 std::uint64_t bytes,
                                                                 bool remote_write,
                                                                 Endpoint* endpoint) {
  const std::string& provider = capabilities().provider;
  if (data == nullptr || bytes == 0) {
    return invalid_argument(provider + ": cannot register an empty region");
  }
  auto* target = static_cast<OfiEndpoint*>(endpoint);
  if (remote_write && target == nullptr && shared_ == nullptr) {
    return invalid_argument(provider + ": name the endpoint that peers will write through");
  }
  auto region = std::make_unique<OfiRegion>();
  region->domain_ = target != nullptr ? target->domain() : shared_;
  region->remote_.bytes = bytes;
  // Without FI_MR_LOCAL a source needs no registration at all.
  if (!remote_write && (region->domain_ == nullptr || !region->domain_->needs(FI_MR_LOCAL))) {
    return std::unique_ptr<MemoryRegion>(std::move(region));
  }
  DomainHandle& domain = *region->domain_;
  std::uint64_t access = FI_WRITE | FI_READ;
  if (remote_write) access |= FI_REMOTE_WRITE | FI_REMOTE_READ;
  const bool own_key = !domain.needs(FI_MR_PROV_KEY);
  int rc = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::uint64_t key = own_key ? random_key(domain.info().domain_attr->mr_key_size) : 0;
    rc = fi_mr_reg(domain.domain, data, bytes, access, 0, key, 0, &region->mr_, nullptr);
    if (rc != -FI_ENOKEY) break;  // taken: draw another
  }
  if (rc != 0) {
    region->mr_ = nullptr;
    return Status(StatusCode::kResourceExhausted,
                  provider + ": " + describe("fi_mr_reg", rc) +
                      " (raise the locked memory limit, ulimit -l, or lower --kv-memory)");
  }
  if (domain.needs(FI_MR_ENDPOINT)) {
    if (target == nullptr) {
      return invalid_argument(provider + ": name the endpoint that peers will write through");
    }
    rc = target->bind(region->mr_, region.get());
    if (rc != 0) return internal_error(provider + ": " + describe("fi_mr_enable", rc));
    region->bound_to_ = target;
  }
  if (domain.needs(FI_MR_LOCAL)) {
    region->local_ = data;
    domain.local[data] = {bytes, fi_mr_desc(region->mr_)};
  }
  region->remote_.base = domain.needs(FI_MR_VIRT_ADDR) ? reinterpret_cast<std::uint64_t>(data) : 0;
  region->remote_.key = fi_mr_key(region->mr_);
  return std::unique_ptr<MemoryRegion>(std::move(region));
}

}  // namespace kvd::fabric::ofi
