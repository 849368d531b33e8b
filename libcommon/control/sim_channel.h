// A network of channels inside one process, driven by a seed and a manual clock: delay, reordering
// between peers, duplicates, loss, partitions, restarts at the same address. For tests and
// simulation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "control/channel.h"

namespace kvd::control {

struct SimChannelFaults {
  Duration latency{50'000};
  Duration jitter{0};  // added uniformly; messages of one direction may overtake with `reorder`
  bool reorder = false;
  double loss = 0;       // probability a message vanishes
  double duplicate = 0;  // probability it comes twice
};

class SimNetwork {
 public:
  SimNetwork(std::uint64_t seed, ManualClock* clock, SimChannelFaults faults);
  ~SimNetwork();
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  // A channel bound at `address` ("a:1"), replacing a dead one there. `host` names it for
  // partition().
  std::unique_ptr<Channel> open(const std::string& host, const std::string& address);
  void set_faults(SimChannelFaults faults);
  void partition(const std::string& a, const std::string& b);
  void heal(const std::string& a, const std::string& b);
  // Delivers the next due message into its receiver's queue; false when none is due.
  bool step();
  TimePoint next_event() const;
  // Whether a message was delivered to a channel of `host` since the last call.
  bool take_woken(const std::string& host);

  // How often each fault has shown.
  struct Counts {
    std::uint64_t lost = 0, duplicated = 0, overtaken = 0, cut = 0;
  };
  const Counts& counts() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvd::control
