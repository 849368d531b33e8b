// A fabric inside one process, driven by a seed and an injected clock. It passes the contract
// suite, and on demand shows what real providers were measured to do (faults below).
//
// All domains made from one SimFabric can write to each other. Bytes move only in
// SimFabric::step(), one event at a time, so that a test chooses every interleaving. A write lands
// in pieces of `piece_bytes`.
//
// With `target_pulls` it is the `local` transport: the event only says that the next piece may be
// copied, and the target's poll() copies it, out of the sender's memory as it is then. A target
// that does not poll is stopped in the middle of its copy. See sim_pull.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "fabric/fabric.h"

namespace kvd::fabric {

struct SimFaults {
  bool land_after_region_close = true;  // an accepted write goes on landing (TCP, finding 1)
  bool endpoint_close_is_fence =
      true;               // nothing lands after the target's endpoint is gone (finding 2)
  bool false_ok = false;  // a refused write completes OK unless delivery-complete (finding 4)
  bool ordered = true;    // false: writes land and complete in any order (EFA, CXI)
  bool remote_cq_data = true;
  bool self_reconnect = true;  // after a connection drop later writes work again
  // Of the writes that a drop ends in errors some may land all the same, in pieces and late, until
  // the target's endpoint is closed: the target had them in its buffers.
  bool land_after_error = false;
  Duration latency{10'000};  // per piece, before bandwidth
  std::uint64_t bytes_per_s = 10'000'000'000;
  std::uint64_t piece_bytes = 64 * 1024;
  std::uint32_t max_inflight_ops = 64;
  std::uint64_t max_write_bytes = 1u << 20, best_write_bytes = 1u << 20;  // as Capabilities
  Duration look_time{0};  // of a poll(): the clock moves by it
  // `local`; the faults above that it cannot have must be off, and there is no partition.
  bool target_pulls = false;
  bool epoch_is_checked = true;  // after the copy: false is a defect, for tests of the tests
};

class SimFabric {
 public:
  SimFabric(std::uint64_t seed, ManualClock* clock, SimFaults faults);
  ~SimFabric();
  SimFabric(const SimFabric&) = delete;
  SimFabric& operator=(const SimFabric&) = delete;

  // `host` names who is cut off by partition().
  std::unique_ptr<Domain> open_domain(const std::string& host);

  // Performs the next due event (a piece lands, a completion is queued); false when nothing is due
  // at the clock's time.
  bool step();
  // When the next event is due; kNever if there is none.
  TimePoint next_event() const;

  // Between these hosts nothing moves and nothing is reported until heal() (finding 5).
  void partition(const std::string& a, const std::string& b);
  void heal(const std::string& a, const std::string& b);
  // Every connection of `host` drops: writes in flight end in errors, or silently with false_ok.
  void drop_connections(const std::string& host);
  // The process is gone without a word: its endpoints never answer; in-flight pieces stop.
  void kill(const std::string& host);
  // From now on every post on `host` returns kAgain, for ever, until lifted.
  void endless_again(const std::string& host, bool on);

  // What the last step() wrote into a target's memory.
  struct Landing {
    const std::byte* at = nullptr;
    std::uint64_t bytes = 0;
    bool stale = false;  // its sender had given the connection up: a copy that will be void
  };
  const std::vector<Landing>& landed() const;
  // With target_pulls: called for each piece, inside poll(), before anything is signalled.
  void on_pulled(std::function<void(const Landing&)> seen);
  // Writes of `host` that have not completed.
  std::size_t in_flight(const std::string& host) const;
  // Whether a completion was queued for an endpoint of `host` since the last call.
  bool take_woken(const std::string& host);

  // How often each fault has shown.
  struct Counts {
    std::uint64_t refused_posts = 0;      // endless_again
    std::uint64_t false_ok = 0;           // lost, and reported as done
    std::uint64_t errors = 0;             // writes that ended in an error
    std::uint64_t landed_late = 0;        // pieces that landed after their write's error
    std::uint64_t overtaken = 0;          // pieces that landed before an older write's last one
    std::uint64_t refused_by_target = 0;  // writes to an endpoint or key that was closed
    std::uint64_t void_copies = 0;        // copies that ended after their sender had given up
  };
  const Counts& counts() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvd::fabric
