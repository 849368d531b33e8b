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
#include "fabric/local/local_line.h"
#include "fabric/local/local_memory.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::local {

class Target {
 public:
  // Takes over a connection whose Hello came in this packet, and answers it. Told to the peer, too:
  // kNoProvider, its memory cannot be used; kResourceExhausted, not now.
  static Result<std::unique_ptr<Target>> accept(Fd socket, const Hello& hello,
                                                const Packet& packet);
  explicit Target(Fd socket) : line_(std::move(socket)) {}

  // Copies what the peer has put, write by write until kCopyBudget bytes are copied; signals and,
  // last, a fault go to `out`.
  std::size_t copy(const TargetTable& regions, std::span<Completion> out);
  // Reads the socket: doorbells, the end.
  void service();
  // copy() has something to do.
  bool has_work() const;
  void fall_asleep();
  void wake_up();

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
  Status answer(const Hello& hello, const Packet& packet);
  Status prepare(const Hello& hello, const Packet& packet, Fd* ack);

  Line line_;
  Mapping ring_, ack_;
  std::vector<Mapping> sources_;
  std::uint64_t epoch_ = 0, done_ = 0;
  Status broken_;
  bool fault_owed_ = false;
};

}  // namespace kvd::fabric::local
