// The `local` transport behind fabric::Domain: two processes of one user on one host. The
// initiator's memory is a sealed memfd (device::HostBuffer, kShared) that the target maps
// read-only; the target pulls, so it is the only writer of its own memory.
//
// Sources are registered before a peer is inserted: their memfds go with the Hello.
#pragma once

#include <memory>

#include "fabric/fabric.h"
#include "fabric/local/local_endpoint.h"

namespace kvd::fabric::local {

class LocalDomain final : public Domain {
 public:
  LocalDomain();
  const Capabilities& capabilities() const override { return capabilities_; }
  Result<std::unique_ptr<Endpoint>> open_endpoint() override;
  Result<std::unique_ptr<MemoryRegion>> register_memory(std::byte* data, std::uint64_t bytes,
                                                        bool remote_write,
                                                        Endpoint* endpoint) override;

 private:
  Capabilities capabilities_;
  std::shared_ptr<SourceTable> sources_ = std::make_shared<SourceTable>();
};

// Tries all of it within this process: a sealed memfd, an abstract socket, a passed descriptor, a
// read-only mapping, a write that arrives. kNoProvider with the reason.
Status probe();

}  // namespace kvd::fabric::local
