// Channel over ZeroMQ: one ROUTER for those who dial us, one DEALER for each peer we dial. CURVE with an
// allow-list (ZAP) when keys are given; every message bounded by proto::Bounds::kMaxBytes.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "control/channel.h"
#include "control/keys.h"

namespace kvd::control {

struct ZmqOptions {
  std::string listen;            // HOST:PORT, port 0 picks one; empty: a client that only dials
  std::optional<KeyRing> keys;   // CURVE on every socket
  std::uint32_t queue_messages = 1000;  // per peer and direction
};

// Errors: kInvalidArgument ("address already in use: ...", not an address).
Result<std::unique_ptr<Channel>> open_zmq_channel(const ZmqOptions& options);

}  // namespace kvd::control
