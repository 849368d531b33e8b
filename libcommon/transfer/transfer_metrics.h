// The metrics of one side of the transfers; the names are contract (kvd-metrics.7). Null Metrics:
// every call does nothing. Calling thread: the event loop's.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "base/clock.h"
#include "base/metrics.h"
#include "room/room.h"

namespace kvd::transfer {

class TransferMetrics {
 public:
  // `metrics` may be null and must outlive this.
  explicit TransferMetrics(Metrics* metrics);

  // A room came (from none), moved, or was forgotten (to none).
  void enter(room::RoomState state, room::Drain drain) { count(state, drain, 1); }
  void leave(room::RoomState state, room::Drain drain) { count(state, drain, -1); }
  void ignored_event();
  void violation();
  void stale_commit();
  void link_ended();
  void bytes(const std::string& provider, const std::string& peer, std::uint64_t bytes);
  void stage(const std::string& stage, Duration duration);
  // 0 down, 1 being set up, 2 ready, 3 refused.
  void link_state(const std::string& peer, int state);

  std::uint64_t stale_commits() const { return stale_commits_; }
  std::uint64_t ignored_events() const { return ignored_events_; }

 private:
  void count(room::RoomState state, room::Drain drain, int delta);

  Metrics* metrics_;
  std::array<std::int64_t, 5> rooms_{};
  std::int64_t drains_ = 0;
  std::uint64_t stale_commits_ = 0, ignored_events_ = 0;
  std::array<Gauge, 5> room_gauges_;
  Gauge drains_gauge_;
  Counter stale_, ignored_, violations_, links_ended_;
  std::map<std::pair<std::string, std::string>, Counter> bytes_;
  std::map<std::string, Histogram> stages_;
  std::map<std::string, Gauge> link_states_;
};

}  // namespace kvd::transfer
