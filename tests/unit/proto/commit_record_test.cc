#include "proto/commit_record.h"

#include <array>
#include <catch2/catch.hpp>

#include "samples.h"

namespace kvd::proto {
namespace {

using Bytes = std::array<std::byte, kRecordBytes>;

CommitRecord sample_record() {
  CommitRecord r;
  r.room = RoomId{0x0102030405060708};
  r.epoch = Epoch{9};
  r.incarnation = Incarnation{0xfedcba9876543210};
  r.generation = 4095;
  r.tokens = 4000;
  r.pages = 125;
  r.streamed = 123;
  r.digest = 0x1122334455667788;
  r.first = {17, -0.5F, {}};
  for (int i = 0; i < static_cast<int>(kMaxTopLogprobs); ++i) {
    r.first.top.push_back({i, -static_cast<float>(i)});
  }
  r.queue_ns = 1;
  r.compute_ns = 2;
  r.posted_at_ns = 3;
  r.boot_id = 4;
  return r;
}

Bytes encoded(const CommitRecord& record) {
  Bytes bytes;
  encode_record(record, bytes);
  return bytes;
}

}  // namespace

TEST_CASE("commit record: every field arrives with its value") {
  const CommitRecord sent = sample_record();
  Result<CommitRecord> r = decode_record(encoded(sent));
  REQUIRE(r.ok());
  CHECK(r->room == sent.room);
  CHECK(r->epoch == sent.epoch);
  CHECK(r->incarnation == sent.incarnation);
  CHECK(r->generation == sent.generation);
  CHECK(r->tokens == sent.tokens);
  CHECK(r->pages == sent.pages);
  CHECK(r->streamed == sent.streamed);
  CHECK(r->digest == sent.digest);
  CHECK(r->first == sent.first);
  CHECK(r->queue_ns == sent.queue_ns);
  CHECK(r->compute_ns == sent.compute_ns);
  CHECK(r->posted_at_ns == sent.posted_at_ns);
  CHECK(r->boot_id == sent.boot_id);
}

TEST_CASE("commit record: any flipped bit is seen") {
  const Bytes good = encoded(sample_record());
  for (std::size_t i = 0; i < 8 * kRecordBytes; ++i) {
    Bytes bad = good;
    bad[i / 8] ^= std::byte(1u << (i % 8));
    Result<CommitRecord> r = decode_record(bad);
    REQUIRE_FALSE(r.ok());
    REQUIRE(r.status().code() == StatusCode::kCorrupted);
  }
}

TEST_CASE("commit record: a slot that was never written is refused") {
  CHECK(decode_record(Bytes{}).status().code() == StatusCode::kCorrupted);
}

TEST_CASE("commit record: alternatives beyond the record's room are left out") {
  CommitRecord record = sample_record();
  record.first.top.resize(kMaxTopLogprobs + 5);
  Result<CommitRecord> r = decode_record(encoded(record));
  REQUIRE(r.ok());
  CHECK(r->first.top.size() == kMaxTopLogprobs);
}

TEST_CASE("commit record: the layout in memory has not changed") {
  const Bytes bytes = encoded(sample_record());
  const std::string hex = test::to_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  CHECK(hex.substr(0, 2 * 112) ==
        "6b766463010000000807060504030201"
        "09000000000000001032547698badcfe"
        "ff0f0000a00f00007d00000014000000"
        "88776655443322110100000000000000"
        "02000000000000000300000000000000"
        "040000000000000011000000000000bf"
        "000000000000008001000000000080bf");
}

TEST_CASE("remote CQ data: slot and generation come back, and nothing else is carried") {
  const std::uint64_t data = remote_data(1048575, 4095);
  CHECK(data == 0xffffffff);
  CHECK(slot_of(data) == 1048575);
  CHECK(generation_of(data) == 4095);
  CHECK(remote_data(0x1234567, 0x12345) == remote_data(0x34567, 0x345));
}

}  // namespace kvd::proto
