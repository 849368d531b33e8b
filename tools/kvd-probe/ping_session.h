// The near side of one session with a ProbeTarget (probe/probe_target.h): a loop of its own that
// writes, reads or is written to, and watches that the far side is alive meanwhile.
//
// Calling thread: the one that made it, which blocks in each call until the step is done, the peer
// is dead, a deadline passed or `stop` said so. The memory that the far side may write to belongs
// to the session and lives until it is destroyed, which closes the endpoint first.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/messenger.h"
#include "device/host_buffer.h"
#include "fabric/fabric.h"
#include "node/event_loop.h"
#include "probe/write_run.h"
#include "proto/link_messages.h"
#include "proto/ops_messages.h"

namespace kvd::tools {

struct SessionOptions {
  std::string peer;  // HOST:PORT
  std::string keys;  // --keys FILE
  Duration timeout{30'000'000'000};
  Duration dead_after{2'000'000'000};
  std::uint64_t buffer_bytes = 128u << 20;  // at most; a worker has less
  bool reverse = false;                     // the far side writes
  bool spin = false;
  std::function<bool()> stop;                      // true: give up; may be null
  std::function<void(const std::string&)> notice;  // what is waited for; may be null
};

class PingSession final : node::LoopTask {
 public:
  explicit PingSession(const SessionOptions& options);
  ~PingSession() override;

  // Waits until the peer says who it is. kUnavailable, kDeadline: nobody there; kIncompatible: not
  // kvd, or another version; kNoProvider: it refuses our key.
  Result<proto::Described> meet();
  // Opens the session over `domain`, which must outlive this. Waits its turn.
  Status open(fabric::Domain* domain);
  const proto::ProbeResult& opened() const { return opened_; }
  std::uint64_t memory_bytes() const { return memory_bytes_; }  // of this side
  // From asking for the session to being able to write; its line included.
  Duration opening() const { return opening_; }
  // Writes, or has the far side write, rounds for `time` (0: one). Nanoseconds of each round.
  Result<std::vector<double>> run(const probe::PlainOrder& order, Duration time);
  // Sends `pages` pages of `bytes` with the pattern of `epoch` and has them checked where they
  // landed, then reads them back where the provider can. kCorrupted names the first wrong word.
  Status verify(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch);
  Result<proto::ProbeResult> sample();
  void close();

  const Clock& clock() const { return clock_; }

 private:
  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override;
  TimePoint next_deadline() const override;
  bool finished() const override;

  // Loops until `done`, a fault, or `deadline`; `what` is named when it passes.
  Status loop(std::function<bool()> done, Duration deadline, const std::string& what);
  Status ask(proto::Probe probe, Duration deadline, const std::string& what);
  bool move_bytes();
  bool control();
  void take(const control::Received& received);
  void watch(TimePoint now);
  Status check_read_back(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch);
  Status check_pages(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch,
                     const std::string& where) const;

  const SessionOptions options_;
  SteadyClock clock_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  node::EventLoop loop_;
  control::PeerRef peer_ = 0;
  Incarnation incarnation_;
  proto::Described described_;
  TimePoint next_control_{0}, next_alive_{0}, heard_{0}, deadline_{0};
  bool open_ = false;
  std::uint64_t request_ = 0, awaited_ = 0;
  std::optional<proto::ProbeResult> answer_;
  std::function<bool()> done_;
  Status fault_;
  std::string notice_;
  // Declared so that endpoints are closed before the memory goes.
  device::HostBuffer buffer_;
  std::uint64_t memory_bytes_ = 0;
  fabric::Domain* domain_ = nullptr;
  std::unique_ptr<fabric::MemoryRegion> source_;
  std::unique_ptr<probe::PlainTarget> target_;
  std::unique_ptr<probe::PlainWriter> writer_;
  std::optional<probe::WriteRun> run_;
  proto::ProbeResult opened_;
  Duration opening_{0};
};

}  // namespace kvd::tools
