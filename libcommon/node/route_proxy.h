// Completion requests on their way through the router: a pair is picked, the client's body is sent
// to decode (decode-first) or to both halves (standalone), the answer is passed on.
//
// Invariants: nothing is retried once a byte of the answer has been passed on; a stream that breaks
// ends with an error event and a cut connection, never silently; a failed attempt is over on all
// its connections before the next one begins. Each request is answered exactly once.
//
// Threads: handle() on HTTP server threads, answers of workers on the client's thread, tick() and
// worker_lost() on the control thread. Nothing blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "base/clock.h"
#include "base/metrics.h"
#include "http/client.h"
#include "http/server.h"
#include "node/options.h"
#include "node/route_members.h"

namespace kvd::node {

struct RouteProxyOptions {
  Flow flow = Flow::kDecodeFirst;
  std::uint32_t retries = 3;  // attempts in all
  Duration request_timeout{600'000'000'000};
  std::string api_key;  // for the workers, empty: the client's own is passed on
  // --timeout: how long after the start a request may wait for the first usable pair. Once there
  // was one, nobody waits for a worker that is silent.
  Duration first_pair_timeout{0};
};

class RouteProxy {
 public:
  static constexpr std::size_t kMaxAnswerBytes = 64u << 20;  // of an answer that is not streamed

  // `members`, `metrics` and `clock` must outlive it. `wake` asks for a tick() soon; any thread.
  RouteProxy(RouteProxyOptions options, RouteMembers* members, Metrics* metrics, const Clock* clock,
             std::function<void()> wake);
  ~RouteProxy();  // cancels what runs
  RouteProxy(const RouteProxy&) = delete;
  RouteProxy& operator=(const RouteProxy&) = delete;

  // POST /v1/completions or /v1/chat/completions.
  void handle(http::Request request, std::shared_ptr<http::Responder> responder);
  // What was asked of this worker is lost: cancels it and goes on as after a broken connection.
  void worker_lost(const std::string& address);
  // Starts the attempts that are due; returns when the next one is.
  TimePoint tick(TimePoint now);
  std::size_t inflight() const;

 private:
  struct Leg;
  struct Attempt;
  struct Exchange;
  using Shared = std::shared_ptr<Exchange>;
  enum class Side { kPrefill, kDecode };

  void start_attempt(const Shared& exchange);
  Status launch(const Shared& exchange, Assignment pair, TimePoint now);
  http::ClientRequest leg_request(const Exchange& exchange, const std::string& url,
                                  std::string body, Duration left) const;
  http::ClientCallbacks leg_callbacks(const Shared& exchange,
                                      const std::shared_ptr<Attempt>& attempt, Side side);
  void on_data(const Shared& exchange, const std::shared_ptr<Attempt>& attempt, Side side,
               std::string_view bytes);
  void on_end(const Shared& exchange, const std::shared_ptr<Attempt>& attempt, Side side,
              const Status& end);
  void blame(Exchange& exchange, Attempt& attempt, Side side);
  void conclude(const Shared& exchange, const std::shared_ptr<Attempt>& attempt);
  void act_on(const Shared& exchange, const Attempt& attempt, Leg& leg);
  void try_later(const Shared& exchange, Duration delay);
  void answer(const Shared& exchange, Leg& leg);
  void answer_error(const Shared& exchange, const Status& why);
  static bool is_relayed(const Shared& exchange);
  void client_gone(const Shared& exchange);
  void finish(const Shared& exchange, const char* outcome);

  const RouteProxyOptions options_;
  RouteMembers* members_;
  const Clock* clock_;
  const std::function<void()> wake_;
  std::map<std::string, Counter> outcomes_;
  Counter retries_;
  Gauge inflight_gauge_;

  mutable std::mutex mutex_;
  std::set<Shared> running_;                  // guarded by mutex_
  std::multimap<TimePoint, Shared> delayed_;  // guarded by mutex_
  std::unique_ptr<http::Client> client_;      // last: its callbacks use all of the above
  std::atomic<bool> had_pair_{false};
  TimePoint started_;
};

}  // namespace kvd::node
