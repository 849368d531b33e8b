// Operations and discovery: Error, StaleIncarnation, Drain, Leases, Probe/ProbeResult,
// Join/Leave/Members.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "proto/envelope.h"
#include "proto/link_messages.h"

namespace kvd::proto {

struct StaleIncarnation {
  static constexpr MessageType kType = MessageType::kStaleIncarnation;
  std::uint64_t incarnation = 0;  // who answers here now
};

struct Error {
  static constexpr MessageType kType = MessageType::kError;
  std::string code;  // "malformed", "version", "unknown_type", "unexpected", "unauthorized"
  std::string text;
  std::uint64_t seq = 0;  // of the offender
};

// Asks a worker to drain; answered with Described (load.draining true), and again when asked.
struct Drain {
  static constexpr MessageType kType = MessageType::kDrain;
};

struct LeaseReport {
  std::uint64_t room = 0, peer = 0;
  bool quarantined = false;
  std::uint64_t age_ms = 0;
  std::uint32_t pages = 0;
  std::string ranges;   // "14-44,60"
  std::string missing;  // the proof that is waited for
};
// Request: empty. Reply: the leases and the counts.
struct Leases {
  static constexpr MessageType kType = MessageType::kLeases;
  bool reply = false;
  std::vector<LeaseReport> leases;
  std::uint32_t free = 0, leased = 0, sealed = 0, quarantined = 0;
};

// Limits of Probe and ProbeResult. A message beyond them is malformed.
struct ProbeBounds {
  static constexpr std::uint64_t kBytes = 1u << 30;
  static constexpr std::uint32_t kCount = 1u << 24;  // writes of a round, pages
  static constexpr std::uint32_t kDepth = 1024;
  static constexpr std::uint32_t kMs = 600'000;
  static constexpr std::size_t kRounds = 65536;
  static constexpr std::size_t kInterfaces = 64;
  static constexpr std::uint32_t kPieces = 16;
  static constexpr std::size_t kTimesBytes = 64;  // of one request in ProbeResult.times
  static constexpr std::size_t kTimes = 1024;     // requests of one ProbeResult
};

// What `kvd-bench pages` has the sending side open. Numbers mean what its options of these names
// do; what they may be depends on each other, so the sending side checks them.
struct PagesProbe {
  std::string model;
  std::uint32_t layers = 0, kv_heads = 0, head_dim = 0, page_size = 0;  // of the layout, bf16
  std::uint32_t pages = 0;                                              // of the longest request
  std::uint32_t sets = 0;  // of so many pages each in the pool
  std::uint32_t open = 0;  // of which so many are free at any time
  float fragmentation = 0;
  std::uint64_t seed = 0;
  std::string digest;  // "sample", "full", "off"
  bool groups = false;
  bool isolated = false;  // the record waits for the delivery of its pages
  std::uint32_t timeout_ms = 0;
};

// `ping`, `mesh` and `pages`: one step that the far side is asked for. A session begins with "open"
// or "pages" and ends with "close", or when its client was silent for dead_after_ms; "dial" stands
// alone.
struct Probe {
  static constexpr MessageType kType = MessageType::kProbe;
  std::uint64_t request = 0;  // repeated in the answer; a repeated one is answered alike
  // "open", "pages", "write", "verify", "fill", "sync", "sample", "alive", "close", "dial"
  std::string op;
  // open; dial: the provider of the pair, empty for the best
  std::string provider;
  std::string address;  // bin: fabric address of the client's endpoint
  std::uint32_t dead_after_ms = 0;
  bool spin = false;  // busy polling while the session lasts
  // open, pages: where the far side may write; no bytes: nowhere
  std::uint64_t region_base = 0, region_bytes = 0, region_key = 0;
  // write, verify, dial
  std::uint64_t bytes = 0;    // of one write; of one page
  std::uint64_t seed = 0;     // of the places; of the pattern
  std::uint32_t count = 0;    // writes of a round; pages
  std::uint32_t depth = 0;    // writes in flight
  std::uint32_t time_ms = 0;  // rounds are repeated for so long
  bool pattern = false;       // write: each page once, with the pattern of `seed`; fill: on or off
  std::string peer;           // dial: HOST:PORT
  std::uint32_t pieces = 0;   // write: of one write, on the far side; 0: one
  PagesProbe pages;           // pages
};

// What went through one network interface or RDMA port since it came up.
struct InterfaceCount {
  std::string name;  // "eth0", "mlx5_0/1"
  bool rdma = false;
  std::uint64_t sent_bytes = 0, received_bytes = 0;
  std::uint64_t bits_per_s = 0;  // of the link; 0: nothing says
  std::uint32_t mtu_bytes = 0;   // 0: nothing says
};

struct ProbeResult {
  static constexpr MessageType kType = MessageType::kProbeResult;
  std::uint64_t request = 0;
  std::string state;  // "queued", "done", "refused"
  // refused
  std::string code;  // "no_provider", "busy", "forbidden", "invalid", "failed", "unreachable", ...
  std::string text;
  std::uint32_t ahead = 0;  // queued: sessions before this one
  // open
  std::string address;  // bin: fabric address of the endpoint that the client writes to
  std::uint64_t region_base = 0, region_bytes = 0, region_key = 0;
  std::uint64_t max_inflight_bytes = 0;  // 0: as the provider says
  std::uint64_t max_bytes_per_s = 0;     // 0: no limit
  std::uint32_t max_rounds_per_s = 0;    // 0: no limit
  std::string libfabric;                 // version
  // write: nanoseconds of each round, little-endian uint64
  std::string rounds;  // bin
  // verify
  std::uint64_t pages = 0, bad_pages = 0;
  std::uint64_t first_bad_page = 0, first_bad_offset = 0;
  // sample
  std::uint64_t cpu_ns = 0;  // processor time of the process; 0: it has other work
  std::uint32_t active_rdma_ports = 0;
  std::vector<InterfaceCount> interfaces;
  // dial
  std::string provider;
  std::uint64_t bytes_per_s = 0, latency_ns = 0, p99_ns = 0;
  // pages
  std::uint64_t boot_id = 0;   // first 64 bits; equal ones mean one CLOCK_MONOTONIC; 0: unknown
  std::string huge_pages;      // of the pool
  std::uint64_t began_ns = 0;  // write: the first one was posted, by CLOCK_MONOTONIC
  // sync: of each request that is over and was not told before, eight little-endian uint64: room,
  // started, computed, transfer_total, transfer_exposed, bytes, writes, pieces
  std::string times;       // bin
  std::uint32_t left = 0;  // requests that the next sync tells
};

// Worker -> registry, every 500 ms; answered with Members.
struct Join {
  static constexpr MessageType kType = MessageType::kJoin;
  std::string role;     // empty: only asks for Members
  std::string control;  // HOST:PORT that others dial
  std::string http;
  std::string model;
  Load load;
};
struct Leave {
  static constexpr MessageType kType = MessageType::kLeave;
};
struct Member {
  std::string role, control, http, model;
  std::uint64_t incarnation = 0;
  Load load;
};
struct Members {
  static constexpr MessageType kType = MessageType::kMembers;
  std::vector<Member> members;
};

}  // namespace kvd::proto
