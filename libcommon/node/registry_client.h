// A worker's (or a router's) side of the built-in registry: it joins every 500 ms and keeps the
// members that the registry lists.
//
// Loss of discovery is not death: when the registry is gone, the last known members stay as they
// are; when a registry that restarted lists a member no longer, that member stays as long as seen()
// is called for it (its heartbeats arrive), and is dropped dead_after later otherwise.
//
// Calling thread: the event loop's. Nothing here blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/messenger.h"
#include "proto/ops_messages.h"

namespace kvd::node {

class RegistryClient {
 public:
  static constexpr Duration kJoinInterval{500'000'000};
  static constexpr std::size_t kMaxMembers = 4096;

  // `messenger` and `clock` must outlive it. `registry` is HOST:PORT.
  RegistryClient(control::Messenger* messenger, std::string registry, const Clock* clock,
                 Duration dead_after = Duration(2'000'000'000));

  // Dials. kInvalidArgument: not an address. The registry need not be there yet.
  Status open();
  // What Join says of us. Without a role (the default) we only ask for the members.
  void set_self(proto::Join self) { self_ = std::move(self); }
  void set_load(const proto::Load& load) { self_.load = load; }

  // True when the message was the registry's and has been dealt with. Errors and StaleIncarnation
  // that come from the registry are taken too.
  bool on_message(const control::Received& received);
  // Sends Join when it is due; drops members that are neither listed nor seen.
  void poll(TimePoint now);
  TimePoint next_deadline() const { return next_join_; }

  // The known members, ourselves included, ordered by control address.
  std::vector<proto::Member> members() const;
  // Grows whenever members() has changed (load aside).
  std::uint64_t version() const { return version_; }
  // A heartbeat or an answer came from the member at this control address.
  void seen(const std::string& control, TimePoint now);
  // The registry has answered within dead_after.
  bool connected(TimePoint now) const;
  // Says good-bye, best effort; no Join is sent after it.
  void leave();

 private:
  struct Known {
    proto::Member member;
    bool listed = true;
    TimePoint last_sign;  // listed, or seen()
  };
  void take(const proto::Members& members);

  control::Messenger* messenger_;
  std::string registry_;
  const Clock* clock_;
  Duration dead_after_;
  proto::Join self_;
  control::PeerRef peer_ = 0;
  TimePoint next_join_{0};
  TimePoint last_answer_{0};
  bool answered_ = false;
  bool left_ = false;
  bool reported_gone_ = false;
  bool reported_refusal_ = false;
  std::uint64_t version_ = 0;
  std::map<std::string, Known> known_;  // by control address
};

}  // namespace kvd::node
