// The far side of `kvd-probe ping` and `mesh`: memory of its own that a client may write to and
// read from, and, where that is allowed, a writer back to the client. `kvd-probe serve` gives all
// it has; a kvd-prefill or kvd-decode gives so little that serving does not feel it
// (worker_limits).
//
// One session at a time; others wait in a bounded line and are told their place. A session ends
// with "close", when its client was silent for the time that it named itself, when a failed write
// broke its endpoint, or when it is old and others wait. While a session lasts its client may write
// to `buffer_bytes` of memory that nothing else uses; when it has ended the endpoint is closed.
//
// Calling thread: the event loop's. Nothing blocks, but for allocating memory: for the first
// session unless reserve() did, and where the kind changes.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "control/messenger.h"
#include "device/host_buffer.h"
#include "fabric/fabric.h"
#include "probe/plain_writes.h"
#include "probe/write_run.h"
#include "proto/ops_messages.h"

namespace kvd::probe {

struct TargetLimits {
  std::uint64_t buffer_bytes = 128u << 20;  // several times what caches hold
  // Asked of the client, 0: no limit.
  std::uint64_t max_inflight_bytes = 0, max_bytes_per_s = 0;
  std::uint32_t max_rounds_per_s = 0;
  // Enforced here: at most this share of the thread's time goes to the session's endpoint, whatever
  // the client does. On TCP and `local` that slows its writes down; the NIC of an RDMA provider
  // does not ask.
  double loop_share = 1;
  bool writes_back = true;  // writes to its client when asked (--reverse)
  bool own_process = true;  // the process has no other work: its processor time means something
};
// Of a process that serves a model.
TargetLimits worker_limits();

// A session that measures something else than plain writes to this memory. It takes its turn in the
// line as any other; what its client asks for between "pages" and "close" is its own business, but
// for "alive". Destroying it closes its endpoints.
class OtherSession {
 public:
  virtual ~OtherSession() = default;
  virtual void on_probe(const proto::Probe& probe) = 0;
  // As of node::LoopTask.
  virtual bool step() = 0;
  virtual void wait_fds(std::vector<int>* out) const = 0;
  virtual bool may_wait() = 0;
  virtual TimePoint next_deadline() const = 0;
  virtual Status health() const = 0;  // not ok: the session ends
};
// Who opens such sessions.
class OtherSessions {
 public:
  virtual ~OtherSessions() = default;
  // `result` is the answer. An error refuses the client: kInvalidArgument, kNoProvider, others.
  virtual Result<std::unique_ptr<OtherSession>> open(control::PeerRef peer, Incarnation client,
                                                     const proto::Probe& probe,
                                                     proto::ProbeResult* result) = 0;
};

class ProbeTarget {
 public:
  static constexpr std::size_t kMostWaiting = 16;  // further clients are refused
  // A session that is older ends when another client waits.
  static constexpr Duration kOld{600'000'000'000};

  // `domains`, one a provider, `messenger` and `clock` must outlive it.
  ProbeTarget(const TargetLimits& limits, std::vector<fabric::Domain*> domains,
              control::Messenger* messenger, const Clock* clock);
  ~ProbeTarget();

  // Whoever opens sessions of "pages"; must outlive this. Without one they are refused.
  void offer(OtherSessions* others) { others_ = others; }
  // Takes the memory now rather than when the first client waits for it. kResourceExhausted.
  Status reserve() { return allocate(false); }
  // True when the message was a Probe of a session, and has been answered.
  bool on_message(const control::Received& message);
  // True if anything happened.
  bool poll();
  void wait_fds(std::vector<int>* out) const;
  bool may_wait();
  TimePoint next_deadline() const;
  // Sessions that are open or wait.
  std::size_t sessions() const { return line_.size() + (session_ == nullptr ? 0 : 1); }

 private:
  struct Client {
    control::PeerRef peer = 0;
    Incarnation incarnation;
    proto::Probe open;
    TimePoint heard{0};
    bool silent(TimePoint now) const {
      return now - heard > std::chrono::milliseconds(open.dead_after_ms);
    }
  };
  struct Session;

  void on_open(const control::Received& message, proto::Probe probe);
  void on_session(const proto::Probe& probe);
  void begin(Client client);
  Status allocate(bool shared);
  Status open_session(Session* session, proto::ProbeResult* result);
  Status open_other(Session* session, proto::ProbeResult* result);
  Status health() const;
  void end(const std::string& why);
  void start_next();
  Status start_write(const proto::Probe& probe);
  void start_verify(const proto::Probe& probe);
  void step_verify();
  bool step_session();
  void drop_silent();
  proto::ProbeResult sample(const proto::Probe& probe) const;
  void answer(const Client& client, proto::ProbeResult result);
  void refuse(const Client& client, std::uint64_t request, const std::string& code,
              const std::string& text);
  bool throttled() const { return clock_->now() < not_before_; }
  // Accounts for time that the session took since `began`.
  void charge(TimePoint began);

  const TargetLimits limits_;
  const std::vector<fabric::Domain*> domains_;
  control::Messenger* messenger_;
  const Clock* clock_;
  OtherSessions* others_ = nullptr;
  device::HostBuffer buffer_;
  std::unique_ptr<Session> session_;
  std::deque<Client> line_;
  // Time that the session may still take from the thread, at `credited_`.
  Duration credit_{0};
  TimePoint credited_{0}, not_before_{0};
};

}  // namespace kvd::probe
