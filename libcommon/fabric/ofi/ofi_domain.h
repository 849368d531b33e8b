// libfabric's fabric, domains and memory registrations behind fabric::Domain.
//
// On TCP every Endpoint gets a libfabric domain of its own. Three reasons: a key opens only the
// endpoint it was made for; progress of one peer never runs inside another peer's poll(); and
// in 1.17 a connection request that `net` has accepted but not yet read keeps a pointer to its
// listener, so that progress after fi_close(ep) would follow a dangling pointer if the domain were
// shared (xnet_cm.c, "TODO: We need to hold a reference on the pep"). On RDMA NICs one domain
// serves all endpoints.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "fabric/fabric.h"
#include "fabric/ofi/ofi_info.h"

namespace kvd::fabric::ofi {

// fid_fabric with the offer it came from.
struct FabricHandle {
  ~FabricHandle();
  Offer offer;
  fid_fabric* fabric = nullptr;
};

// fid_domain, and the local registrations that its writes may read from (only with FI_MR_LOCAL).
struct DomainHandle {
  ~DomainHandle();
  static Result<std::shared_ptr<DomainHandle>> open(std::shared_ptr<FabricHandle> fabric);
  const fi_info& info() const { return *fabric->offer.info; }
  bool needs(std::uint64_t mr_mode) const { return (info().domain_attr->mr_mode & mr_mode) != 0; }
  // The descriptor of the registration around [data, data + bytes); false when there is none.
  bool find_descriptor(const std::byte* data, std::uint64_t bytes, void** descriptor) const;

  std::shared_ptr<FabricHandle> fabric;
  fid_domain* domain = nullptr;
  std::map<const std::byte*, std::pair<std::uint64_t, void*>> local;  // start -> bytes, descriptor
};

class OfiEndpoint;

class OfiRegion final : public MemoryRegion {
 public:
  ~OfiRegion() override;
  RemoteRegion remote() const override { return remote_; }
  // Before its endpoint goes, where registrations are bound to endpoints (cxi).
  void close();

 private:
  friend class OfiDomain;
  std::shared_ptr<DomainHandle> domain_;
  fid_mr* mr_ = nullptr;
  OfiEndpoint* bound_to_ = nullptr;
  const std::byte* local_ = nullptr;
  RemoteRegion remote_;
};

class OfiDomain final : public Domain {
 public:
  static Result<std::unique_ptr<Domain>> open(Offer offer);
  const Capabilities& capabilities() const override { return fabric_->offer.capabilities; }
  Result<std::unique_ptr<Endpoint>> open_endpoint() override;
  Result<std::unique_ptr<MemoryRegion>> register_memory(std::byte* data, std::uint64_t bytes,
                                                        bool remote_write,
                                                        Endpoint* endpoint) override;

 private:
  std::shared_ptr<FabricHandle> fabric_;
  std::shared_ptr<DomainHandle> shared_;  // null with endpoint_per_peer
};

}  // namespace kvd::fabric::ofi
