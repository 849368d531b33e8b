// What the router knows of its workers, and the choice of a pair: discovery puts workers in,
// Described keeps them alive, requests take pairs out and report what came of them.
//
// A worker is *usable* when it has described itself within dead_after, is of the role it is listed
// for, is not draining, and its breaker lets a request through. Only transport failures and 5xx
// answers open a breaker, and only that of the worker to blame.
//
// Thread-safe: discovery belongs to the control thread, requests to the HTTP threads. Time is
// passed in.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/rng.h"
#include "base/status.h"
#include "proto/link_messages.h"
#include "proto/ops_messages.h"
#include "router/policy.h"

namespace kvd::node {

// Opens after kThreshold failures in a row; then one probe at a time, first after kFirstWait, twice
// as long after each probe that fails. While it is open only the probe counts: requests that began
// before say nothing new.
class Breaker {
 public:
  static constexpr std::uint32_t kThreshold = 5;
  static constexpr Duration kFirstWait{1'000'000'000};
  static constexpr Duration kLongestWait{30'000'000'000};
  using Probe = std::uint64_t;  // 0: the request is none

  bool allows(TimePoint now) const { return !open_ || (probing_ == 0 && now >= next_probe_); }
  // A request goes to this worker: on an open breaker it is the probe. It ends with one of success,
  // failure and neutral, which get what this returned.
  Probe take() { return open_ ? probing_ = ++last_probe_ : 0; }
  void success(Probe probe);
  void failure(Probe probe, TimePoint now);
  // The request ended without saying anything of the worker.
  void neutral(Probe probe);
  // Another run of the worker; probes of the one before count no longer.
  void reset();
  const char* state() const { return !open_ ? "closed" : probing_ != 0 ? "half-open" : "open"; }

 private:
  bool counts(Probe probe) const { return !open_ || (probe != 0 && probe == probing_); }

  std::uint32_t failures_ = 0;
  bool open_ = false;
  Probe probing_ = 0, last_probe_ = 0;
  Duration wait_ = kFirstWait;
  TimePoint next_probe_{0};
};

// One pair given to one attempt. The prefill's address is empty when the choice is left to decode.
struct Assignment {
  std::string prefill, decode;            // control addresses
  std::string prefill_http, decode_http;  // "http://HOST:PORT"
  Breaker::Probe prefill_probe = 0, decode_probe = 0;
  std::string key() const { return prefill + ">" + decode; }
};

// kBroken: a failure of the connection itself. kDoubtful: somebody else could not reach it; it is
// asked again before it gets more, and its breaker does not count it.
enum class Outcome { kSuccess, kFailure, kBroken, kDoubtful, kNeutral };

class RouteMembers {
 public:
  static constexpr std::size_t kMaxWorkers = 4096;

  // `standalone`: both halves are sent over HTTP, so a prefill is always needed.
  // `seed` is for the policy. kInvalidArgument: no such policy.
  static Result<std::unique_ptr<RouteMembers>> create(std::string_view policy, bool standalone,
                                                      Duration dead_after, std::uint64_t seed);

  // Discovery. Listed workers stay for ever; set_discovered() names all that discovery knows now,
  // and those it no longer names are dropped once they are silent.
  void add_listed(const std::string& role, const std::string& address);
  void set_discovered(const std::vector<proto::Member>& members);
  std::vector<std::string> addresses() const;

  // `from` answered at `address`. True when its last run is over: it was silent, or is another
  // incarnation now, so what was asked of the run before is lost.
  bool on_described(const std::string& address, Incarnation from, const proto::Described& described,
                    TimePoint now);
  // Workers that have become silent since the last call. Forgets those that discovery forgot.
  std::vector<std::string> take_silent(TimePoint now);

  // A pair for a request for `model` (empty: any). `tried` holds the keys of former attempts,
  // `avoid` the workers that were to blame for their failures: both are avoided while others are
  // left. kNotFound: no worker serves this model; kUnavailable: no pair is usable, the text says
  // why.
  Result<Assignment> pick(const std::string& model, std::span<const std::string> tried,
                          std::span<const std::string> avoid, TimePoint now);
  // Exactly once for each pick.
  void release(const Assignment& pair, Outcome prefill, Outcome decode, TimePoint now);
  // Whether pick() would find a pair for any model.
  bool usable(TimePoint now) const;

  // Those who must be asked now whether they are there.
  std::vector<std::string> suspects() const;
  std::vector<std::string> models(TimePoint now) const;  // of workers alive
  std::string json(TimePoint now) const;                 // /workers
  // "prefill ready" -> 2 and so on; all states of both roles, zeros included.
  std::map<std::pair<std::string, std::string>, int> counts(TimePoint now) const;

 private:
  struct Worker {
    std::string role;
    bool listed = false;
    bool discovered = false;
    bool suspect = false;
    bool described = false;
    bool alive = false;
    Incarnation incarnation;
    TimePoint last_answer;
    proto::Described info;
    Breaker breaker;
    std::uint32_t assigned = 0;
  };
  using Table = std::map<std::string, Worker>;
  using Workers = std::vector<Table::const_iterator>;

  RouteMembers(bool standalone, Duration dead_after, std::uint64_t seed);
  // "ready", "draining", "silent", "unknown" (never answered), "wrong-role", "suspect", "tripped"
  // (its breaker is open).
  std::string state(const Worker& worker, TimePoint now) const;
  Workers usable_workers(const std::string& role, const std::string& model, TimePoint now) const;
  Status match_kinds(Workers* prefills, Workers* decodes, TimePoint now);
  Status no_decode(const std::string& model, TimePoint now) const;
  bool knows(const std::string& role) const;
  std::string why_none(const std::string& role, TimePoint now) const;
  std::string worker_json(const std::string& address, const Worker& worker, TimePoint now) const;
  void settle(const std::string& address, Breaker::Probe probe, Outcome outcome, TimePoint now);

  mutable std::mutex mutex_;
  const bool standalone_;
  const Duration dead_after_;
  Rng rng_;
  std::unique_ptr<router::RoutingPolicy> policy_;
  std::uint64_t group_turn_ = 0;
  Table workers_;  // by control address
};

}  // namespace kvd::node
