// Posts the writes of many rooms to one peer: flow control by bytes and operations, rooms take
// turns (one write each), EAGAIN is polled with a deadline.
//
// Invariants: writes of one stream are posted in the order they were queued; never more than the
// limits of Capabilities are in flight; each queued write ends in exactly one callback: completed,
// or purged. A write whose completion is an error breaks the pipeline: nothing is posted
// afterwards.
//
// Calling thread: the event loop's. Ownership: refers to an Endpoint that must outlive it; the
// memory of a queued write must stay untouched until its callback, or until the Endpoint is closed.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "fabric/fabric.h"

namespace kvd::fabric {

// Key of a stream of ordered writes: a room, or the link's own control writes.
using StreamId = std::uint64_t;

struct QueuedWrite {
  // TCP providers take four pieces: those need no memory of their own.
  template <typename Piece>
  using Pieces = boost::container::small_vector<Piece, 4>;
  Pieces<LocalPiece> local{};    // at most iov_limit
  Pieces<RemotePiece> remote{};  // at most rma_iov_limit
  bool delivery_complete = false;
  std::optional<std::uint64_t> remote_data{};
  std::uint64_t tag = 0;  // the caller's, comes back
  // Some hundred bytes that somebody waits for, as a commit record: it has the next turn, if
  // nothing of its stream is queued before it, and is no part of the bytes in flight, so that it
  // neither waits for large writes nor makes them wait.
  bool urgent = false;
};

struct WriteResult {
  StreamId stream = 0;
  std::uint64_t tag = 0;
  std::uint64_t bytes = 0;
  Status status;
  TimePoint posted;
};

class WritePipeline {
 public:
  // `post_timeout`: how long EAGAIN may last while nothing completes before the pipeline is broken.
  WritePipeline(Endpoint* endpoint, PeerHandle peer, const Capabilities& capabilities,
                const Clock* clock, Duration post_timeout);

  void enqueue(StreamId stream, QueuedWrite write);
  // Drops what is queued and not posted; returns how many. Posted writes of the stream still
  // complete.
  std::size_t purge(StreamId stream);
  // Posted writes of the stream that have not completed.
  std::size_t inflight(StreamId stream) const;
  std::size_t queued(StreamId stream) const;

  // Posts what flow control allows.
  void pump();
  // Feed a kWrite completion of the endpoint; the result if the context is ours.
  std::optional<WriteResult> on_completion(const Completion& completion);

  bool idle() const { return inflight_ops_ == 0 && queued_ops_ == 0; }
  // Not ok once a completion was an error, a post failed, or EAGAIN outlasted its deadline.
  const Status& health() const { return health_; }
  std::uint64_t bytes_completed() const { return bytes_completed_; }
  std::uint64_t writes_completed() const { return writes_completed_; }

 private:
  struct Stream {
    std::vector<QueuedWrite> queue;
    std::size_t next = 0;  // those before it are posted
    std::size_t inflight = 0;

    std::size_t queued() const { return queue.size() - next; }
    void clear() {
      queue.clear();
      next = 0;
    }
  };
  struct Posted {
    std::uint64_t context = 0;  // 0: free
    StreamId stream = 0;
    std::uint64_t tag = 0;
    std::uint64_t bytes = 0;
    bool urgent = false;
    TimePoint posted{0};
  };
  Posted& cell_of(std::uint64_t context) { return posted_[context & (posted_.size() - 1)]; }

  Endpoint* endpoint_;
  PeerHandle peer_;
  Capabilities capabilities_;
  const Clock* clock_;
  Duration post_timeout_;
  std::map<StreamId, Stream> streams_;
  std::deque<StreamId> turn_;  // streams with queued writes, next first
  std::vector<Posted>
      posted_;  // by context, modulo its size: a power of two, never more than half full
  std::uint64_t next_context_ = 1;
  std::size_t inflight_ops_ = 0, queued_ops_ = 0;
  std::uint64_t inflight_bytes_ = 0;  // without urgent ones
  std::uint64_t bytes_completed_ = 0, writes_completed_ = 0;
  TimePoint stuck_since_{0};
  Status health_;
};

}  // namespace kvd::fabric
