// What the sending side of `kvd-bench pages` is told, wherever it runs.
//
// Pure; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "kv/layout.h"
#include "proto/ops_messages.h"
#include "transfer/options.h"

namespace kvd::tools {

constexpr std::uint64_t kMostPeerPoolBytes = 4ull << 30;

struct SenderSpec {
  std::string model;
  kv::KvLayout layout;
  std::uint32_t pages_each = 0;  // of the longest request
  std::uint32_t sets = 0;        // of so many pages each in the pool
  std::uint32_t open = 0;        // of which so many are free at any time
  double fragmentation = 0;
  std::uint64_t seed = 0;
  transfer::Digest digest = transfer::Digest::kSample;
  bool groups = false;    // as streamed; else whole pages
  bool isolated = false;  // the record waits for the delivery of its pages
  Duration timeout{30'000'000'000};

  std::uint64_t pool_pages() const;
  std::uint64_t pool_bytes() const { return pool_pages() * layout.page_bytes(); }
};

proto::PagesProbe to_probe(const SenderSpec& spec);
// Of a client that nobody knows: kInvalidArgument names what is out of bounds, and the pool when it
// is larger than 4 GiB or than `available` bytes leave.
Result<SenderSpec> checked_spec(const proto::PagesProbe& probe, std::uint64_t available);

// For KvSender and KvReceiver alike.
transfer::TransferOptions transfer_options(const SenderSpec& spec, const std::string& provider);

}  // namespace kvd::tools
