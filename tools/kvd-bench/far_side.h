// The sending side of `kvd-bench pages` as the receiver, which drives, sees it: a process that was
// forked, or a session with a `kvd-probe serve` elsewhere. One order at a time.
//
// Calling thread: the receiver's loop, which calls step() and hands it control messages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/messenger.h"
#include "device/host_buffer.h"
#include "peer/pages_sender.h"
#include "probe/plain_writes.h"

namespace kvd::tools {

// kSync: carried out when no request is left; then take_times() has them. kSample: cpu_ns() is of
// now.
enum class Order : std::uint32_t { kNone, kPlain, kFillOn, kFillOff, kSync, kSample, kExit };

class FarSide {
 public:
  virtual ~FarSide() = default;  // ends it

  // Opens it; done() tells when. `place` is where its plain writes go.
  virtual Status begin(const PlainPlace& place) = 0;
  virtual std::string control_address() const = 0;
  // Of the endpoint that plain writes come from; empty: nobody needs to know.
  virtual fabric::FabricAddress plain_address() const = 0;
  virtual device::HugePages huge_pages() const = 0;
  // Its CLOCK_MONOTONIC is ours.
  virtual bool shares_clock() const = 0;

  virtual Status give(Order order, const probe::PlainOrder& plain) = 0;
  // The order given last was carried out.
  virtual bool done() const = 0;
  // Why it is of no use any more.
  virtual Status failure() const = 0;

  virtual double cpu_ns() const = 0;
  // Of the last kPlain: the first was posted (on its clock), and until the last had landed.
  virtual TimePoint plain_began() const = 0;
  virtual Duration plain_took() const = 0;
  virtual std::vector<SentTimes> take_times() = 0;

  // True if the message was meant for it.
  virtual bool take(const control::Received& message) = 0;
  // True if anything happened.
  virtual bool step() = 0;
  virtual void wait_fds(std::vector<int>* out) const = 0;
  virtual TimePoint next_deadline() const = 0;
  // It hears and tells by control messages, while plain writes go, too.
  virtual bool uses_messages() const = 0;
};

}  // namespace kvd::tools
