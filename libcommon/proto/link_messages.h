// Who are you, and the set-up of a link: Describe/Described, Register/Registered/Refused,
// Heartbeat.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "proto/envelope.h"

namespace kvd::proto {

// A worker's load as heartbeats carry it.
struct Load {
  std::uint32_t queue = 0;    // requests waiting for pages or compute
  std::uint32_t running = 0;  // requests being computed
  std::uint32_t free_pages = 0;
  std::uint32_t total_pages = 0;
  bool draining = false;
  bool operator==(const Load&) const = default;
};

// The KV layout on the wire; kv::KvLayout is the same in memory. All strides, in bytes.
struct LayoutInfo {
  std::uint32_t layers = 0, kv_heads = 0, head_dim = 0, page_size = 0, element_bytes = 0;
  std::string dtype;
  std::uint64_t page_stride = 0, layer_stride = 0, value_offset = 0, head_stride = 0;
  bool operator==(const LayoutInfo&) const = default;
};

struct Describe {
  static constexpr MessageType kType = MessageType::kDescribe;
};

struct Described {
  static constexpr MessageType kType = MessageType::kDescribed;
  std::string role;     // "prefill", "decode", "route", "probe"
  std::string program;  // "kvd-decode"
  std::string version;
  std::string http;         // "http://HOST:PORT", empty if none
  std::string model;        // served model name
  std::string fingerprint;  // hex digest of what makes KV interchangeable
  LayoutInfo layout;
  std::vector<std::string> providers;  // transport names, best first
  std::uint32_t context = 0;           // longest prompt + output, tokens
  Load load;
  std::string
      scope{};  // where `local` reaches (fabric::local_scope), empty where it is not offered
};

// Decode -> prefill: what prefill needs to write here. `epoch` of the body is the highest epoch
// that decode has used with this peer.
struct Register {
  static constexpr MessageType kType = MessageType::kRegister;
  std::uint64_t epoch = 0;
  std::string fingerprint;
  std::string model;
  LayoutInfo layout;
  std::string provider;  // transport name chosen by decode out of Described.providers
  std::string address;   // bin: fabric address of the endpoint that decode opened for this peer
  std::uint64_t region_base = 0, region_bytes = 0, region_key = 0;
  std::uint32_t page_count = 0;
  std::uint64_t slots_offset = 0;  // of slot 0, from region_base
  std::uint32_t slot_bytes = 0, slot_count = 0;
  std::uint32_t test_slot = 0, test_generation = 0;  // where the verified test write goes
  std::uint64_t test_nonce = 0;
  std::string digest;  // "sample", "full", "off"
  std::uint32_t dead_after_ms = 0;
};

// Prefill -> decode: accepted. The envelope's epoch is the link's. A test write follows.
struct Registered {
  static constexpr MessageType kType = MessageType::kRegistered;
  std::string provider;
  std::string address;  // bin: fabric address of prefill's endpoint for this peer
  std::uint32_t dead_after_ms = 0;
};

// Prefill -> decode: no link. `diff` names each field that differs: "page_size: 64 here, 32 there".
struct Refused {
  static constexpr MessageType kType = MessageType::kRefused;
  std::string code;  // "incompatible", "no_provider", "draining", "unauthorized"
  std::string text;
  std::string diff;
};

struct Heartbeat {
  static constexpr MessageType kType = MessageType::kHeartbeat;
  Load load;
};

}  // namespace kvd::proto
