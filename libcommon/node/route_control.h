// The router's control thread: discovery (lists, a registry, or being the registry itself) and
// Describe to each worker every 500 ms, as liveness and load. It feeds RouteMembers and ticks the
// proxy.
//
// Calling thread: start() and stop() any; hooks are called on the control thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "control/messenger.h"
#include "control/zmq_channel.h"
#include "node/event_loop.h"
#include "node/registry.h"
#include "node/registry_client.h"
#include "node/route_members.h"

namespace kvd::node {

struct RouteControlOptions {
  std::string program, version;
  std::string listen;  // not empty: bound there, and the registry
  std::string join;
  std::vector<std::string> prefills, decodes;
  std::optional<control::KeyRing> keys;
  Duration dead_after{2'000'000'000};
};

struct RouteControlHooks {
  std::function<void(const std::string& address)> on_lost;  // what was asked of this worker is lost
  std::function<TimePoint(TimePoint now)> tick;  // returns when it wants to be called next
  std::function<void()> on_drain;                // Drain came
};

class RouteControl final : LoopTask {
 public:
  static constexpr Duration kDescribeInterval{500'000'000};
  // Workers that are not there (yet) are asked more often.
  static constexpr Duration kSearchInterval{50'000'000};

  // Opens the channel and starts the thread. `members`, `metrics` (may be null) and `clock` must
  // outlive it. Errors: kInvalidArgument (an address, a port in use, key file).
  static Result<std::unique_ptr<RouteControl>> start(RouteControlOptions options,
                                                     RouteMembers* members, Metrics* metrics,
                                                     const Clock* clock, RouteControlHooks hooks);
  ~RouteControl() override;
  RouteControl(const RouteControl&) = delete;
  RouteControl& operator=(const RouteControl&) = delete;

  const std::string& address() const { return address_; }  // "" when not bound
  Incarnation incarnation() const { return incarnation_; }
  void wake() const { loop_.waker().wake(); }  // tick() wants to be called earlier
  void set_http(const std::string& url);
  // Waits until `condition`, looked at after each message, is true; false when `timeout` has
  // passed.
  bool wait_for(const std::function<bool()>& condition, Duration timeout);
  void stop();

 private:
  struct Peer {
    control::PeerRef ref = 0;
    TimePoint next_describe{0};
    TimePoint next_redial{0};
    bool alive = false;
    bool reported = false;
  };

  RouteControl(RouteControlOptions options, RouteMembers* members, const Clock* clock,
               RouteControlHooks hooks);
  Status open(Metrics* metrics);

  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override { return true; }
  TimePoint next_deadline() const override { return next_; }
  bool finished() const override { return stopping_; }

  void dispatch(const control::Received& received, TimePoint now);
  void on_described(const control::Received& received, TimePoint now);
  void answer_describe(const control::Received& received);
  void sync_discovered();
  void sync_peers();
  void ask(const std::string& address, Peer& peer, TimePoint now);
  void notify();

  RouteControlOptions options_;
  RouteMembers* members_;
  const Clock* clock_;
  RouteControlHooks hooks_;
  Incarnation incarnation_;
  std::string address_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<RegistryClient> client_;
  EventLoop loop_;
  std::atomic<bool> stopping_{false};
  bool draining_ = false;
  std::uint64_t discovered_version_ = 0;
  TimePoint next_{0};
  std::map<std::string, Peer> peers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t changes_ = 0;  // guarded by mutex_
  std::string http_;           // guarded by mutex_
  std::thread thread_;
  TimePoint last_step_{0}, silence_counts_from_{0};
};

}  // namespace kvd::node
