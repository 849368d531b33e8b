// SimFabric's inside, shared by its source files: sim_impl.cc (writes, connections, faults),
// sim_pull.cc (the same where the target copies) and sim_fabric.cc (the public objects).
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "fabric/sim/sim_fabric.h"

namespace kvd::fabric {

struct SimFabric::Impl : std::enable_shared_from_this<SimFabric::Impl> {
  using EndpointId = std::uint64_t;
  using OpId = std::uint64_t;
  using ConnKey = std::pair<EndpointId, EndpointId>;  // source, target

  struct RegionState {
    std::uint64_t domain = 0;
    EndpointId endpoint = 0;  // 0: a source only
    std::byte* data = nullptr;
    std::uint64_t base = 0, bytes = 0;
    bool alive = true;
  };

  struct EndpointState {
    std::string host;
    std::uint64_t domain = 0;
    std::deque<Completion> completions{};
    std::size_t inflight = 0;
    bool open = true;
  };

  struct Op {
    ConnKey conn;
    std::uint64_t context = 0;
    std::vector<LocalPiece> local;
    std::vector<RemotePiece> remote;
    std::byte* read_into = nullptr;  // a read: one remote piece
    std::vector<std::byte>
        snapshot;  // once the sender was told "done" the bytes are the fabric's own
    std::vector<std::byte*>
        targets;  // where each remote piece lands; filled when the header is accepted
    std::vector<std::uint64_t> keys;
    std::uint64_t total = 0, landed = 0;
    bool delivery_complete = false;
    bool reported = false;   // its completion is scheduled
    bool delivered = false;  // its completion was handed over
    bool finished = false;   // all landed, refused, or stopped
    bool late = false;       // reported as an error; the target has its bytes, and they still land
    bool may_copy = false;   // target_pulls: the next piece
    std::optional<std::uint64_t> remote_data;
  };

  struct Conn {
    std::deque<OpId> fifo;      // with order: the head is landing
    std::set<OpId> unfinished;  // all whose bytes are not all there
    bool dead = false;          // dropped, and there is no self-reconnect
    bool given_up = false;      // target_pulls: the sender's endpoint is closed
  };

  struct Event {
    enum class Kind { kPiece, kComplete } kind = Kind::kPiece;
    OpId op = 0;
    Status status;
  };

  Impl(std::uint64_t seed, ManualClock* manual, SimFaults chosen)
      : rng(seed), clock(manual), faults(chosen) {}

  Rng rng;
  ManualClock* clock;
  SimFaults faults;
  std::uint64_t next_id = 1;
  std::map<EndpointId, EndpointState> endpoints;
  std::map<std::uint64_t, RegionState> regions;  // by key
  std::map<ConnKey, Conn> conns;
  std::unordered_map<OpId, Op> ops;
  std::map<std::pair<std::int64_t, std::uint64_t>, Event>
      events;                                    // due, then in order of scheduling
  std::map<ConnKey, std::vector<Event>> parked;  // behind a partition or a dead host
  std::set<std::pair<std::string, std::string>> cuts;
  std::unordered_set<std::string> killed, again, woken;
  std::vector<Landing> landings;
  std::function<void(const Landing&)> pulled;
  Counts counts;

  bool cut(const std::string& a, const std::string& b) const {
    if (faults.target_pulls) return false;  // one host: there is nothing to cut
    return cuts.contains({std::min(a, b), std::max(a, b)});
  }
  bool blocked(const ConnKey& key) const {
    const std::string& from = endpoints.at(key.first).host;
    const std::string& to = endpoints.at(key.second).host;
    return killed.contains(from) || killed.contains(to) || cut(from, to);
  }
  Duration piece_time(std::uint64_t bytes) const {
    const std::uint64_t wire =
        bytes * 1'000'000'000 / std::max<std::uint64_t>(faults.bytes_per_s, 1);
    return faults.latency + Duration(static_cast<std::int64_t>(wire));
  }
  void schedule(Duration after, Event event) {
    const ConnKey key = ops.at(event.op).conn;
    if (blocked(key)) {
      parked[key].push_back(std::move(event));
      return;
    }
    events.emplace(std::pair{(clock->now() + after).ns, next_id++}, std::move(event));
  }

  // Moves what is scheduled on blocked connections aside; it comes back with heal().
  void park() {
    for (auto it = events.begin(); it != events.end();) {
      const auto op = ops.find(it->second.op);
      if (op != ops.end() && blocked(op->second.conn)) {
        parked[op->second.conn].push_back(std::move(it->second));
        it = events.erase(it);
      } else {
        ++it;
      }
    }
  }
  void unpark() {
    for (auto it = parked.begin(); it != parked.end();) {
      if (blocked(it->first)) {
        ++it;
        continue;
      }
      std::vector<Event> waiting = std::move(it->second);
      it = parked.erase(it);
      for (Event& event : waiting) {
        if (ops.contains(event.op)) schedule(faults.latency, std::move(event));
      }
    }
  }

  Status post(EndpointId from, EndpointId to, Op op);
  void start_next(const ConnKey& key);
  void report(OpId id, Status status, Duration after);
  void finish(OpId id);
  void release_if_over(OpId id);
  Status accept(Op& op);
  void land(OpId id);
  void land_read(OpId id);
  void copy_piece(Op& op, std::uint64_t bytes);
  // False when a closed key stops a write that was accepted.
  bool keys_alive(const Op& op) const {
    return faults.land_after_region_close ||
           std::all_of(op.keys.begin(), op.keys.end(),
                       [&](std::uint64_t key) { return regions.at(key).alive; });
  }
  void fail(const ConnKey& key);
  void fail_direction(const ConnKey& key);
  std::set<OpId> keep_landing(const ConnKey& key);
  void land_late(OpId id);
  void close_endpoint(EndpointId id);
  void perform(Event event);

  // sim_pull.cc
  void pull(EndpointId target);
  void pull_piece(const ConnKey& key);
  void end_pull(const ConnKey& key);
  void close_pulling(EndpointId id);
  void kill_pulling(const std::string& host);
  bool may_pull(EndpointId target) const;
};

}  // namespace kvd::fabric
