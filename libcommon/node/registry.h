// The built-in registry: workers Join it every 500 ms, whoever asks gets Members. It knows nothing
// of links or requests, and losing it loses nothing (registry_client.h).
//
// Calling thread: the event loop's. Time is passed in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "control/keys.h"
#include "control/messenger.h"
#include "proto/ops_messages.h"

namespace kvd::node {

class Registry {
 public:
  static constexpr std::size_t kMaxMembers = 1024;  // further ones are refused

  // `messenger` and `keys` (may be null: nobody's role is checked) must outlive it. A member that
  // has not joined again within `dead_after` is listed no longer.
  Registry(control::Messenger* messenger, Duration dead_after,
           const control::KeyRing* keys = nullptr);

  // True when the message was Join or Leave and has been dealt with; a wrong one is answered with
  // Error.
  bool on_message(const control::Received& received, TimePoint now);
  void poll(TimePoint now);
  TimePoint next_deadline() const;

  // Ordered by control address.
  std::vector<proto::Member> members() const;
  // Grows whenever members() has changed (load aside).
  std::uint64_t version() const { return version_; }

 private:
  struct Entry {
    proto::Member member;
    std::string identity;  // the key that it joined with
    TimePoint last_seen;
  };
  void join(const control::Received& received, TimePoint now);
  void leave(const control::Received& received);
  // Empty when `join` may be taken, else what is wrong with it.
  std::string objection(const proto::Join& join, const control::Received& received) const;

  control::Messenger* messenger_;
  Duration dead_after_;
  const control::KeyRing* keys_;
  std::uint64_t version_ = 0;
  std::map<std::string, Entry> entries_;  // by control address
};

}  // namespace kvd::node
