// The receiving process of `kvd-bench pages`, which drives: the daemons' KvReceiver, the target of
// plain writes, and the far side: a process of ours or a kvd-probe serve.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "device/host_buffer.h"
#include "fabric/fabric.h"
#include "kvd-bench/pages_options.h"
#include "probe/plain_writes.h"

namespace kvd::tools {

// One request, in nanoseconds. The stages add up to the latency.
struct RequestTimes {
  double latency = 0;  // from the intended start until the sequence has its pages
  double control = 0;  // until prefill had Allocate and its source pages
  double post = 0;     // until the first write was posted
  double wire = 0;     // until the record was posted
  double commit = 0;   // until decode had seen and checked it, the digest apart
  double digest = 0;
  double visible = 0;  // until the sequence heard of it
  std::uint64_t bytes = 0, writes = 0, pieces = 0, pages = 0;
};

struct CpuTimes {
  double sender_ns = 0, receiver_ns = 0;
  double total() const { return sender_ns + receiver_ns; }
};

struct KvRound {
  double seconds = 0;  // first request opened until the last was committed
  std::uint64_t bytes = 0, writes = 0, pieces = 0;
  std::uint64_t pages = 0, verified = 0, runs = 0;  // runs: counted while verifying
  CpuTimes cpu;
  std::vector<RequestTimes> requests;
  double bytes_per_s() const { return static_cast<double>(bytes) / seconds; }
};

struct PlainRound {
  double seconds = 0;  // first write posted until the last has landed
  std::uint64_t bytes = 0;
  CpuTimes cpu;
  double bytes_per_s() const { return static_cast<double>(bytes) / seconds; }
};

// What it costs before the first byte moves.
struct ColdTimes {
  double start_ns = 0;     // of both processes: pools, providers, control; a peer's queue, too
  double register_ns = 0;  // of the pool, with the provider
  double connect_ns = 0;   // dial until the link has had its verified test write
  double first_request_ns = 0;
};

// Of the two pools.
struct HugePages {
  device::HugePages sender = device::HugePages::kNone, receiver = device::HugePages::kNone;
  bool both() const {
    return sender != device::HugePages::kNone && receiver != device::HugePages::kNone;
  }
};

// One pair of processes, from start to end. One thread; without --peer the process must have no
// other thread when start() is called, for it forks.
class PagesPair {
 public:
  // The record waits for the delivery of its pages where `isolated`.
  static Result<std::unique_ptr<PagesPair>> start(const PagesPlan& plan, bool isolated);
  ~PagesPair();  // ends the other process, or the session with it

  const std::string& provider() const;
  // Stages of the two sides are on one clock; otherwise each is on that of the side it belongs to,
  // and `commit` is half a round trip.
  bool shares_clock() const;
  const fabric::Capabilities& capabilities() const;
  const ColdTimes& cold() const;
  HugePages huge_pages() const;

  // `count` requests. `verify`: not to be timed. `rate` 0: closed loop of `concurrency`.
  Result<KvRound> kv_round(std::uint32_t count, std::uint32_t concurrency, bool verify,
                           double rate);
  Result<PlainRound> plain_round(const probe::PlainOrder& order);

 private:
  PagesPair();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd::tools
