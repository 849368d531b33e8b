#include "proto/envelope.h"

#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "proto/codec.h"
#include "proto/wire.h"

namespace kvd::proto {
namespace {

constexpr std::array kTypes = {
#define KVD_INFO(name, number, text) MessageTypeInfo{MessageType::name, text},
    KVD_MESSAGE_TYPES(KVD_INFO)
#undef KVD_INFO
};

constexpr std::uint32_t kElements = 9;
constexpr const char* kElementNames[kElements] = {"magic", "version", "type", "from", "to",
                                                  "epoch", "seq",     "room", "body"};
enum Element { kMagicAt, kVersionAt, kTypeAt, kFromAt, kToAt, kEpochAt, kSeqAt, kRoomAt, kBodyAt };

// Where the elements begin; 0 when this is no array of nine.
std::size_t elements_offset(std::string_view bytes) {
  const auto starts = [&](std::string_view header) {
    return bytes.substr(0, header.size()) == header ? header.size() : 0;
  };
  using namespace std::string_view_literals;
  for (std::string_view header : {"\x99"sv, "\xdc\x00\x09"sv, "\xdd\x00\x00\x00\x09"sv}) {
    if (std::size_t size = starts(header); size != 0) return size;
  }
  return 0;
}

std::optional<MessageType> known_type(std::uint64_t number) {
  for (const MessageTypeInfo& info : kTypes) {
    if (static_cast<std::uint64_t>(info.type) == number) return info.type;
  }
  return std::nullopt;
}

// Takes the header's eight numbers in order; the first fault is returned after the rest was read as
// far as it makes sense, so that `out` names as much of the sender as can be known.
Status read_header(std::string_view bytes, std::size_t* offset, Envelope* out) {
  std::array<std::uint64_t, kBodyAt> header{};
  for (std::size_t i = 0; i < kBodyAt; ++i) {
    Result<std::size_t> end = skip_object(bytes, *offset);
    if (!end.ok()) return end.status().with_context(kElementNames[i]);
    const auto number = read_uint(bytes.substr(*offset, *end - *offset));
    if (!number.has_value()) {
      return invalid_argument(std::string(kElementNames[i]) + ": not an unsigned integer");
    }
    header[i] = *number;
    *offset = *end;
    // Another version may have laid out the rest differently; the first three never move.
    if (i == kMagicAt && header[i] != kMagic) {
      return {StatusCode::kIncompatible, "not a kvd message (wrong magic)"};
    }
    if (i != kTypeAt) continue;
    if (const auto type = known_type(header[kTypeAt])) out->type = *type;
    if (header[kVersionAt] != kVersion) {
      return {StatusCode::kIncompatible, "protocol version " + std::to_string(header[kVersionAt]) +
                                             ", this side speaks " + std::to_string(kVersion)};
    }
  }
  out->from = Incarnation{header[kFromAt]};
  out->to = Incarnation{header[kToAt]};
  out->epoch = Epoch{header[kEpochAt]};
  out->seq = header[kSeqAt];
  out->room = RoomId{header[kRoomAt]};
  if (!known_type(header[kTypeAt])) {
    return {StatusCode::kNotFound, "unknown message type " + std::to_string(header[kTypeAt])};
  }
  if (header[kFromAt] == 0) return invalid_argument("from: 0 is nobody");
  if (header[kRoomAt] > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return invalid_argument("room: not below 2^63");
  }
  return {};
}

}  // namespace

std::span<const MessageTypeInfo> message_types() { return kTypes; }

std::string_view to_string(MessageType type) {
  for (const MessageTypeInfo& info : kTypes) {
    if (info.type == type) return info.name;
  }
  return "unknown";
}

std::string begin_frame(const Envelope& header, MessageType type) {
  std::string out;
  out.reserve(256);
  Writer writer(&out);
  writer.put_array(kElements);
  writer.put_uint(kMagic);
  writer.put_uint(kVersion);
  writer.put_uint(static_cast<std::uint64_t>(type));
  writer.put_uint(header.from.value);
  writer.put_uint(header.to.value);
  writer.put_uint(header.epoch.value);
  writer.put_uint(header.seq);
  writer.put_uint(header.room.value);
  return out;
}

Result<Envelope> decode_envelope(SharedBytes bytes, Envelope* partial) {
  Envelope scratch;
  Envelope& out = partial == nullptr ? scratch : *partial;
  if (bytes.size() > Bounds::kMaxBytes) return invalid_argument("longer than 8 MiB");
  std::size_t offset = elements_offset(bytes.view());
  if (offset == 0) return invalid_argument("not an array of 9");
  KVD_RETURN_IF_ERROR(read_header(bytes.view(), &offset, &out));
  Result<std::size_t> end = skip_object(bytes.view(), offset);
  if (!end.ok()) return end.status().with_context("body");
  if (*end != bytes.size()) return invalid_argument("bytes after the end");
  Envelope envelope = out;
  envelope.body_at = offset;
  envelope.bytes = std::move(bytes);
  return envelope;
}

}  // namespace kvd::proto
