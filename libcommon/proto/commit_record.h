// The commit record: what prefill writes last into decode's metadata slot, by RMA. Fixed
// little-endian layout, documented in kvd-protocol.7. A slot is kSlotBytes: the record, then the
// scratch word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/ids.h"
#include "base/sampling.h"
#include "base/status.h"

namespace kvd::proto {

constexpr std::uint32_t kSlotBytes = 512;
constexpr std::uint32_t kRecordBytes = 448;    // at offset 0 of the slot
constexpr std::uint32_t kScratchOffset = 448;  // 8-byte word: the drain's delivery-complete write
constexpr std::uint32_t kSlotBits = 20;
constexpr std::uint32_t kGenerationBits = 12;

// Remote CQ data: slot (low 20 bits) and its generation (12 bits above).
constexpr std::uint64_t remote_data(std::uint32_t slot, std::uint32_t generation) {
  return (std::uint64_t{generation & 0xfff} << kSlotBits) | (slot & 0xfffff);
}
constexpr std::uint32_t slot_of(std::uint64_t data) {
  return static_cast<std::uint32_t>(data & 0xfffff);
}
constexpr std::uint32_t generation_of(std::uint64_t data) {
  return static_cast<std::uint32_t>((data >> kSlotBits) & 0xfff);
}

struct CommitRecord {
  RoomId room;  // 0 for the link's test write
  Epoch epoch;
  Incarnation incarnation;  // prefill's
  std::uint32_t generation = 0;
  std::uint32_t tokens = 0;  // prompt tokens whose KV was written
  std::uint32_t pages = 0;
  std::uint32_t streamed = 0;  // of them, the first ones: layer group by layer group
  std::uint64_t digest = 0;    // of the pages (or the test nonce)
  SampledToken first;          // at most kMaxTopLogprobs alternatives
  // Prefill's clock (CLOCK_MONOTONIC of its host), nanoseconds.
  std::uint64_t queue_ns = 0;  // OpenRoom -> compute began
  std::uint64_t compute_ns = 0;
  std::uint64_t posted_at_ns = 0;  // when this record was posted
  std::uint64_t boot_id = 0;       // first 64 bits of the host's boot id; 0 unknown
};

// Writes exactly kRecordBytes, with a magic and an xxh3 of itself.
void encode_record(const CommitRecord& record, std::span<std::byte, kRecordBytes> out);
// kCorrupted when magic, version or self-digest do not fit. `bytes` may be written by a hostile
// peer while it is read: it is copied first.
Result<CommitRecord> decode_record(std::span<const std::byte, kRecordBytes> bytes);

}  // namespace kvd::proto
