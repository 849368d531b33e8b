// What both sides of a transfer are told at start.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"

namespace kvd::transfer {

enum class Digest { kSample, kFull, kOff };

struct TransferOptions {
  std::string model;                   // served name, for messages
  std::string fingerprint;             // what makes KV interchangeable: model file digest
  std::vector<std::string> providers;  // transport names this worker may use, best first
  bool require_rdma = false;
  bool stream = true;  // false: --no-stream, whole pages after compute
  Digest digest = Digest::kSample;
  Duration heartbeat{500'000'000};
  Duration dead_after{2'000'000'000};
  Duration fence_after{1'000'000'000};
  Duration drain_timeout{2'000'000'000};  // an abort unanswered for so long fences the peer
  Duration reconnect{200'000'000};        // first pause after a link ended; doubles to 2 s
  std::uint32_t max_rooms = 4096;         // per worker
  std::uint32_t max_waiting_halves = 1024;
  std::uint32_t slots = 4096;
};

}  // namespace kvd::transfer
