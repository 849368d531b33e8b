// The writing side of a `local` connection: one submission ring to one peer.
//
// A write completes when the peer says that it has copied it, in the order of posting. Once the
// connection is broken the epoch word is raised, every write that was not acknowledged by then
// completes with an error, and a kFault tells of it when there was none. It is never made anew.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/local/local_line.h"
#include "fabric/local/local_memory.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::local {

class Initiator {
 public:
  // Connects and sends the Hello with the memory of `sources`; waits for nothing. kNoProvider with
  // the reason when this peer cannot be reached so.
  static Result<std::unique_ptr<Initiator>> connect(const Address& peer,
                                                    const SourceTable& sources);
  explicit Initiator(Fd socket) : line_(std::move(socket)) {}
  // Raises the epoch word first: what the peer has not acknowledged is void from here on.
  ~Initiator();

  Status write(const WriteRequest& request);
  std::size_t reap(std::span<Completion> out);
  // Reads the socket: the Welcome, doorbells, the end.
  void service();
  // reap() has something to do.
  bool has_work() const;
  void fall_asleep();
  void wake_up();
  bool settled() const { return ack_.data() != nullptr || !broken_.ok(); }
  int fd() const { return line_.fd(); }

 private:
  struct KnownSource {
    const std::byte* data;
    std::uint64_t bytes;
  };

  SubmitRing* ring() const { return reinterpret_cast<SubmitRing*>(ring_.data()); }
  const AckBlock* ack() const { return reinterpret_cast<const AckBlock*>(ack_.data()); }
  Status fill(const WriteRequest& request, Entry* entry) const;
  bool locate(const std::byte* data, std::uint64_t bytes, Segment* segment) const;
  Status take(const Packet& packet);
  void break_off(Status why);
  void look_at_acks();
  void ring_doorbell();

  Line line_;
  Mapping ring_, ack_;
  std::vector<KnownSource> sources_;
  std::array<std::uint64_t, kDepth> contexts_{};
  std::uint64_t posted_ = 0, completed_ = 0, reaped_ = 0;
  Status broken_;
  bool fault_owed_ = false;
};

}  // namespace kvd::fabric::local
