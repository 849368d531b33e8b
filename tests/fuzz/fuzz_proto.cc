// A control message and a commit record of any bytes are decoded or refused.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "proto/commit_record.h"
#include "proto/messages.h"

namespace {

void check_one_line(const kvd::Status& status) {
  KVD_CHECK(status.message().find('\n') == std::string::npos);
}

void try_envelope(std::string_view bytes) {
  kvd::proto::Envelope partial;
  auto envelope = kvd::proto::decode_envelope(std::string(bytes), &partial);
  if (!envelope.ok()) return check_one_line(envelope.status());
  KVD_CHECK(envelope->body().size() < bytes.size());
  // The type is one byte of the input: reading the body as each makes the rest worth mutating.
  for (const auto& info : kvd::proto::message_types()) {
    envelope->type = info.type;
    check_one_line(kvd::proto::check_body(*envelope));
  }
}

void try_record(std::string_view bytes) {
  std::array<std::byte, kvd::proto::kRecordBytes> record{};
  std::copy_n(reinterpret_cast<const std::byte*>(bytes.data()),
              std::min(bytes.size(), record.size()), record.begin());
  const auto decoded = kvd::proto::decode_record(record);
  if (!decoded.ok()) return;
  std::array<std::byte, kvd::proto::kRecordBytes> again{};
  kvd::proto::encode_record(*decoded, again);
  const auto twice = kvd::proto::decode_record(again);
  KVD_CHECK(twice.ok() && twice->room == decoded->room && twice->digest == decoded->digest);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try_envelope(bytes);
  try_record(bytes);
  return 0;
}
