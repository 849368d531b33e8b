#include "proto/commit_record.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

static_assert(std::endian::native == std::endian::little,
              "fields are copied as they lie in memory");

namespace kvd::proto {
namespace {

constexpr std::uint32_t kRecordMagic = 0x6364766b;  // "kvdc" as it lies in memory
constexpr std::uint32_t kRecordVersion = 1;
// Offsets of kvd-protocol.7.
enum : std::size_t {
  kMagicAt = 0,
  kVersionAt = 4,
  kRoomAt = 8,
  kEpochAt = 16,
  kIncarnationAt = 24,
  kGenerationAt = 32,
  kTokensAt = 36,
  kPagesAt = 40,
  kTopCountAt = 44,
  kDigestAt = 48,
  kQueueAt = 56,
  kComputeAt = 64,
  kPostedAt = 72,
  kBootIdAt = 80,
  kFirstAt = 88,  // token, log-probability
  kTopAt = 96,    // kMaxTopLogprobs of the same
  kStreamedAt = kTopAt + 8 * kMaxTopLogprobs,
  kSelfAt = kRecordBytes - 8,
};
static_assert(kStreamedAt + 4 <= kSelfAt);

template <typename T>
void put(std::span<std::byte, kRecordBytes> out, std::size_t at, T value) {
  std::memcpy(out.data() + at, &value, sizeof value);
}

template <typename T>
T get(std::span<const std::byte, kRecordBytes> bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

void encode_record(const CommitRecord& record, std::span<std::byte, kRecordBytes> out) {
  std::fill(out.begin(), out.end(), std::byte{0});
  const std::size_t top = std::min<std::size_t>(record.first.top.size(), kMaxTopLogprobs);
  put(out, kMagicAt, kRecordMagic);
  put(out, kVersionAt, kRecordVersion);
  put(out, kRoomAt, record.room.value);
  put(out, kEpochAt, record.epoch.value);
  put(out, kIncarnationAt, record.incarnation.value);
  put(out, kGenerationAt, record.generation);
  put(out, kTokensAt, record.tokens);
  put(out, kPagesAt, record.pages);
  put(out, kStreamedAt, record.streamed);
  put(out, kTopCountAt, static_cast<std::uint32_t>(top));
  put(out, kDigestAt, record.digest);
  put(out, kQueueAt, record.queue_ns);
  put(out, kComputeAt, record.compute_ns);
  put(out, kPostedAt, record.posted_at_ns);
  put(out, kBootIdAt, record.boot_id);
  put(out, kFirstAt, record.first.id);
  put(out, kFirstAt + 4, record.first.logprob);
  for (std::size_t i = 0; i < top; ++i) {
    put(out, kTopAt + 8 * i, record.first.top[i].id);
    put(out, kTopAt + 8 * i + 4, record.first.top[i].logprob);
  }
  put(out, kSelfAt, static_cast<std::uint64_t>(XXH3_64bits(out.data(), kSelfAt)));
}

Result<CommitRecord> decode_record(std::span<const std::byte, kRecordBytes> bytes) {
  std::array<std::byte, kRecordBytes> copy;
  std::memcpy(copy.data(), bytes.data(), kRecordBytes);
  const std::span<const std::byte, kRecordBytes> in(copy);
  const auto corrupted = [](const char* what) {
    return Status(StatusCode::kCorrupted, std::string("commit record: ") + what);
  };
  if (get<std::uint32_t>(in, kMagicAt) != kRecordMagic) return corrupted("wrong magic");
  if (get<std::uint32_t>(in, kVersionAt) != kRecordVersion) return corrupted("unknown version");
  if (get<std::uint64_t>(in, kSelfAt) != XXH3_64bits(in.data(), kSelfAt)) {
    return corrupted("its digest does not match");
  }
  const auto top = get<std::uint32_t>(in, kTopCountAt);
  if (top > kMaxTopLogprobs) return corrupted("too many alternatives");

  CommitRecord record;
  record.room = RoomId{get<std::uint64_t>(in, kRoomAt)};
  record.epoch = Epoch{get<std::uint64_t>(in, kEpochAt)};
  record.incarnation = Incarnation{get<std::uint64_t>(in, kIncarnationAt)};
  record.generation = get<std::uint32_t>(in, kGenerationAt);
  record.tokens = get<std::uint32_t>(in, kTokensAt);
  record.pages = get<std::uint32_t>(in, kPagesAt);
  record.streamed = get<std::uint32_t>(in, kStreamedAt);
  record.digest = get<std::uint64_t>(in, kDigestAt);
  record.queue_ns = get<std::uint64_t>(in, kQueueAt);
  record.compute_ns = get<std::uint64_t>(in, kComputeAt);
  record.posted_at_ns = get<std::uint64_t>(in, kPostedAt);
  record.boot_id = get<std::uint64_t>(in, kBootIdAt);
  record.first.id = get<TokenId>(in, kFirstAt);
  record.first.logprob = get<float>(in, kFirstAt + 4);
  record.first.top.resize(top);
  for (std::size_t i = 0; i < top; ++i) {
    record.first.top[i] = {get<TokenId>(in, kTopAt + 8 * i), get<float>(in, kTopAt + 8 * i + 4)};
  }
  return record;
}

}  // namespace kvd::proto
