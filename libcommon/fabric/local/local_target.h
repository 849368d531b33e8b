// The copying side of a `local` connection: it reads the peer's ring and memory, and is the only
// one that writes to ours.
//
// Nothing of the peer's is trusted: mappings are read-only and sealed, each entry is taken over
// once and checked as a whole (source, range, region, key) before its first byte is copied.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/local/local_memory.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::local {

class Target {
 public:
  // Takes over a connection whose Hello came with these descriptors, and answers it. kNoProvider
  // (told to the peer, too): its memory cannot be used.
  static Result<std::unique_ptr<Target>> accept(Fd socket, const Hello& hello,
                                                const std::vector<Fd>& descriptors);

  // Copies what the peer has put, at most about kCopyBudget bytes; signals and, last, a fault go to
  // `out`.
  std::size_t copy(const TargetTable& regions, std::span<Completion> out);
  // Reads the socket: doorbells, the end.
  void service();
  bool may_wait();
  void wake_up();
  int fd() const { return socket_.get(); }

 private:
  struct Piece {
    std::byte* to;
    const std::byte* from;
    std::uint32_t bytes;
  };
  // A whole entry of the peer, checked.
  struct Job {
    Piece pieces[kMaxSegments];
    std::uint32_t count = 0;
    std::uint64_t bytes = 0;
    std::optional<std::uint64_t> remote_data;
  };

  const SubmitRing* ring() const { return reinterpret_cast<const SubmitRing*>(ring_.data()); }
  AckBlock* ack() const { return reinterpret_cast<AckBlock*>(ack_.data()); }
  Fault take(const TargetTable& regions, Job* job) const;
  void break_off(Fault fault, Status why);
  void ring_doorbell();

  Fd socket_;
  Mapping ring_, ack_;
  std::vector<Mapping> sources_;
  std::uint64_t epoch_ = 0, done_ = 0, rung_ = 0;
  Status broken_;
  bool fault_owed_ = false;
};

}  // namespace kvd::fabric::local
