// Channel over ZeroMQ: one ROUTER for those who dial us, one DEALER for each peer we dial. CURVE
// with an allow-list (ZAP) when keys are given; every message bounded by proto::Bounds::kMaxBytes.
//
// A peer that is not there yet, or went away, is tried again every 50 to 500 ms for as long as it
// is not forgotten. A host name in a dialled address is resolved to IPv4, at every try, on libzmq's
// own thread; IPv6 peers are named by their address. Key handshakes are answered inside receive().
//
// The last 4,096 of those who dialled us can be answered; the one that was silent longest is
// dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "control/channel.h"
#include "control/keys.h"

namespace kvd::control {

struct ZmqOptions {
  std::string listen;           // HOST:PORT, port 0 picks one; empty: a client that only dials
  std::optional<KeyRing> keys;  // CURVE on every socket
  std::uint32_t queue_messages = 1000;  // per peer and direction
  // A dialled peer that was down for so long is dialled afresh: libzmq gives a connection up for
  // good when the far side once spoke another protocol or refused the handshake.
  Duration redial_after{2'000'000'000};
};

// Errors: kInvalidArgument ("address already in use: ...", not an address); kNoProvider (no
// permission).
Result<std::unique_ptr<Channel>> open_zmq_channel(const ZmqOptions& options);

}  // namespace kvd::control
