// One libfabric RDM endpoint with its own CQ, EQ and AV.
//
// Receives are always posted, though kvd never sends: on `net` a send that finds none would stall
// every write of that peer. Their buffers live as long as the endpoint.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_rma.h>

#include <array>
#include <memory>
#include <vector>

#include "fabric/ofi/ofi_domain.h"

namespace kvd::fabric::ofi {

class OfiEndpoint final : public Endpoint {
 public:
  static Result<std::unique_ptr<Endpoint>> open(std::shared_ptr<DomainHandle> domain);
  ~OfiEndpoint() override;

  FabricAddress address() const override { return address_; }
  Result<PeerHandle> insert(const FabricAddress& peer) override;
  Status write(PeerHandle peer, const WriteRequest& request) override;
  Status read(PeerHandle peer, std::byte* into, const RemotePiece& from,
              std::uint64_t context) override;
  std::size_t poll(std::span<Completion> out) override;
  void keep_moving() override;
  int wait_fd() const override { return wait_fd_; }
  bool may_wait() override;

  const std::shared_ptr<DomainHandle>& domain() const { return domain_; }
  // FI_MR_ENDPOINT: binds and enables; the region is closed before the endpoint.
  int bind(fid_mr* mr, OfiRegion* region);
  void forget(OfiRegion* region);

 private:
  static constexpr std::size_t kReceives = 16;
  static constexpr std::size_t kReceiveBytes = 64;
  static constexpr std::size_t kCqEntries = 32;

  // libfabric may write into `scratch` while the operation is in flight (FI_CONTEXT2).
  struct Op {
    fi_context2 scratch;
    std::uint64_t context;
  };
  struct Receive {
    fi_context2 scratch;
    std::array<std::byte, kReceiveBytes> bytes;
  };

  // A post that was told EAGAIN may become possible by progress that yields no completion (a
  // connection came up). So that nobody blocks over that, may_wait() says no once, and the
  // descriptor is waited for only when the post was refused again with no progress made since.
  enum class Refusal { kNone, kRefused, kRetryOwed, kRefusedAgain };

  Status open_queues();
  Status open_cq();
  Status enable();
  int post_receive(Receive* receive);
  Op* take_op(std::uint64_t context);
  void give_back(Op* op);
  Op* op_of(void* op_context);
  Receive* receive_of(void* op_context);
  Status posted(const char* call, long rc, Op* op);
  bool on_entry(const fi_cq_data_entry& entry, Completion* out);
  void shorten_new_peers();
  bool on_error(Completion* out);
  bool on_event(Completion* out);
  bool descriptor_is_readable() const;
  bool provider_may_wait();

  std::shared_ptr<DomainHandle> domain_;
  fid_ep* ep_ = nullptr;
  fid_cq* cq_ = nullptr;
  fid_eq* eq_ = nullptr;
  fid_av* av_ = nullptr;
  fid_wait* wait_ = nullptr;  // only with `net`, see open_cq
  int wait_fd_ = -1;
  bool enabled_ = false;  // before that, progress on a half-open rxm endpoint crashes
  bool cq_broken_ = false;
  Refusal refusal_ = Refusal::kNone;
  FabricAddress address_;
  // Under bbr, until its connection has the short send buffer or enough writes have completed.
  struct NewPeer {
    FabricAddress address;
    int tries = 0;
  };
  std::vector<NewPeer> new_peers_;
  std::vector<Op> ops_;
  std::vector<Op*> free_ops_;
  std::vector<Receive> receives_;
  fid_mr* receive_mr_ = nullptr;  // only with FI_MR_LOCAL
  std::vector<OfiRegion*> bound_;
};

}  // namespace kvd::fabric::ofi
