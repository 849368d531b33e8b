// Envelopes over a Channel, with the rules that do not depend on a link: malformed, foreign and
// stale messages are counted, logged once a second at most, answered where the sender can be told,
// dropped.
//
// Calling thread: the event loop's.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/metrics.h"
#include "control/channel.h"
#include "proto/envelope.h"
#include "proto/ops_messages.h"

namespace kvd::control {

struct Received {
  PeerRef from = 0;
  std::string identity;  // as Incoming::identity
  proto::Envelope envelope;
  // Of a type that nobody here knows: answered with Error already. Only its place in the link
  // counts (a refused message still counts as received); type and body mean nothing.
  bool refused = false;
};

class Messenger {
 public:
  // `channel`, `clock` and `metrics` (may be null) must outlive it.
  Messenger(Channel* channel, Incarnation self, const Clock* clock, Metrics* metrics);

  Channel& channel() { return *channel_; }
  Incarnation self() const { return self_; }

  // The next good message for us. A message whose `to` is another incarnation is answered
  // StaleIncarnation and dropped here; StaleIncarnation and Error themselves are passed on.
  std::optional<Received> receive();

  // Sends outside a link (epoch and seq 0).
  template <typename Message>
  Status send(PeerRef peer, Incarnation to, const Message& message, RoomId room = {}) {
    return send_in_link(peer, to, Epoch{}, 0, room, message);
  }
  template <typename Message>
  Status send_in_link(PeerRef peer, Incarnation to, Epoch epoch, std::uint64_t seq, RoomId room,
                      const Message& message) {
    proto::Envelope header;
    header.from = self_;
    header.to = to;
    header.epoch = epoch;
    header.seq = seq;
    header.room = room;
    return channel_->send(peer, proto::encode(std::move(header), message));
  }
  // Called with what receive() dropped because it could not be read, and why: kIncompatible is
  // another protocol version or no kvd at all. For a client that wants to tell what it talks to.
  void on_unreadable(std::function<void(PeerRef, const Status&)> handler) {
    unreadable_ = std::move(handler);
  }
  // Answers `offender` with Error and counts it.
  void refuse(const Received& offender, const std::string& code, const std::string& text);

 private:
  void reject(const Incoming& incoming, std::size_t size, const Status& why,
              const proto::Envelope& partial);

  Channel* channel_;
  Incarnation self_;
  const Clock* clock_;
  Counter malformed_, stale_;
  bool counted_ = false;
  RateLimit log_limit_;
  std::function<void(PeerRef, const Status&)> unreadable_;
};

}  // namespace kvd::control
