// The bytes of a commit record, as a peer may write them: whatever stands there, under a right
// checksum, is refused or taken within its bounds, and comes back the same.
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "proto/commit_record.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvd::proto::kRecordBytes;
  constexpr std::size_t kSumAt = kRecordBytes - 8;
  constexpr std::array<std::uint8_t, 8> kHead{'k', 'v', 'd', 'c', 1, 0, 0, 0};
  std::array<std::byte, kRecordBytes> bytes{};
  std::memcpy(bytes.data(), data, std::min(size, bytes.size()));
  static_cast<void>(kvd::proto::decode_record(bytes));
  // No mutation meets magic and checksum by chance: what they guard is reached with both made
  // right.
  std::memcpy(bytes.data(), kHead.data(), kHead.size());
  const std::uint64_t sum = XXH3_64bits(bytes.data(), kSumAt);
  std::memcpy(bytes.data() + kSumAt, &sum, sizeof sum);
  const auto record = kvd::proto::decode_record(bytes);
  if (!record.ok()) {
    KVD_CHECK(record.status().code() == kvd::StatusCode::kCorrupted);
    return 0;
  }
  KVD_CHECK(record->first.top.size() <= kvd::kMaxTopLogprobs);
  std::array<std::byte, kRecordBytes> again{};
  kvd::proto::encode_record(*record, again);
  const auto twice = kvd::proto::decode_record(again);
  KVD_CHECK(twice.ok());
  KVD_CHECK(twice->room == record->room && twice->epoch == record->epoch);
  KVD_CHECK(twice->tokens == record->tokens && twice->digest == record->digest);
  KVD_CHECK(twice->first.top.size() == record->first.top.size());
  return 0;
}
