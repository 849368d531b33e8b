// The control plane's only door: framed messages between workers, over ZeroMQ (zmq_channel.h) or
// inside one process (sim_channel.h). A channel carries bytes; what they mean is Messenger's
// business.
//
// Calling thread: the event loop's. Nothing here blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/shared_bytes.h"
#include "base/status.h"

namespace kvd::control {

// The other end of a conversation on this channel: somebody who dialled us, or whom we dialled.
// Never re-used within a process. 0 is nobody.
using PeerRef = std::uint64_t;

struct Incoming {
  PeerRef from = 0;
  SharedBytes bytes;
  std::string identity;  // CURVE public key (Z85) when keys are configured, else empty
};

class Channel {
 public:
  virtual ~Channel() = default;
  // HOST:PORT where others reach us ("" when not bound).
  virtual std::string address() const = 0;
  // Starts connecting; messages can be sent once the peer is there. The same address gives the same
  // ref until forget().
  virtual Result<PeerRef> dial(const std::string& address) = 0;
  // kUnavailable: not connected (now); kResourceExhausted: the peer does not read and its queue is
  // full. In both cases the message is dropped.
  virtual Status send(PeerRef peer, std::string bytes) = 0;
  // Whether a peer that was dialled is there, as far as receive() and send() have seen; wait_fd()
  // becomes readable when that changes.
  virtual bool connected(PeerRef peer) const = 0;
  virtual std::optional<Incoming> receive() = 0;
  // Closes a dialled connection and drops what is queued for it.
  virtual void forget(PeerRef peer) = 0;
  // Appends descriptors for poll(2); readable means receive() may have something. Edge-triggered
  // for ZeroMQ: call receive() until empty before waiting.
  virtual int wait_fd() const = 0;  // -1: none
};

}  // namespace kvd::control
