// One endpoint of the `local` transport: it listens for the one peer that writes to it, and holds a
// ring for each peer that it writes to.
//
// The wait descriptor is an epoll of all its sockets. Once both sides are set up, poll() makes a
// system call only after may_wait() found no work, and every kLookEvery polls, for the end of a
// peer.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/local/local_initiator.h"
#include "fabric/local/local_target.h"

namespace kvd::fabric::local {

class LocalEndpoint final : public Endpoint {
 public:
  static Result<std::unique_ptr<Endpoint>> open(std::shared_ptr<SourceTable> sources);

  FabricAddress address() const override { return address_.encode(); }
  // An endpoint without regions connects here and now (a Unix socket does not wait), so that a peer
  // that cannot be reached is known at once: kNoProvider. One with regions is written to; it
  // connects when it writes itself.
  Result<PeerHandle> insert(const FabricAddress& peer) override;
  Status write(PeerHandle peer, const WriteRequest& request) override;
  Status read(PeerHandle peer, std::byte* into, const RemotePiece& from,
              std::uint64_t context) override;
  std::size_t poll(std::span<Completion> out) override;
  int wait_fd() const override { return epoll_.get(); }
  bool may_wait() override;

  const std::shared_ptr<TargetTable>& regions() const { return regions_; }

 private:
  struct Peer {
    Address address;
    std::unique_ptr<Initiator> initiator;  // null until connected
  };

  Status connect(Peer* peer);
  bool watch(int fd);
  bool set_up() const;
  bool has_work() const;
  void look();
  void accept();
  bool greet(Fd* socket);

  Address address_;
  std::shared_ptr<SourceTable> sources_;
  std::shared_ptr<TargetTable> regions_ = std::make_shared<TargetTable>();
  Fd epoll_, listener_;
  std::vector<Fd> strangers_;  // connected, and have not said Hello
  std::unique_ptr<Target> target_;
  std::vector<Peer> peers_;
  std::deque<Status> faults_;  // of a peer that could not be taken in
  std::uint64_t polls_ = 0;
  bool slept_ = false;
};

}  // namespace kvd::fabric::local
