// Rounds of plain writes, one after another for a time: what an order of a session carries out, on
// whichever side writes.
//
// Calling thread: that of the writer's endpoint. Nothing blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "probe/plain_writes.h"

namespace kvd::probe {

struct RunOptions {
  PlainOrder order;
  Duration time{0};          // no further round begins after that; 0: one round
  std::size_t most = 65536;  // rounds
  Duration least_gap{0};     // from the beginning of one round to that of the next
};

class WriteRun {
 public:
  WriteRun(PlainWriter* writer, const Clock* clock) : writer_(writer), clock_(clock) {}

  Status start(const RunOptions& options);
  // True if anything happened.
  bool step();
  // Also true when a write failed: see status().
  bool done() const { return done_; }
  const Status& status() const { return writer_->health(); }
  // When the round that is under way began.
  TimePoint round_began() const { return writer_->began(); }
  bool between_rounds() const { return !done_ && waiting_; }
  TimePoint next_round() const { return next_; }
  // From the first post of a round to its last completion, in nanoseconds.
  const std::vector<std::uint64_t>& rounds() const { return rounds_; }

 private:
  void begin_round();

  PlainWriter* writer_;
  const Clock* clock_;
  RunOptions options_;
  TimePoint end_{0}, next_{0};
  bool done_ = true, waiting_ = false;
  std::vector<std::uint64_t> rounds_;
};

}  // namespace kvd::probe
