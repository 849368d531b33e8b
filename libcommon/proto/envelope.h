// The frame of every control message and the registry of types. Specification: kvd-protocol.7; a
// test compares its tables with kMessageTypes.
//
//   [magic, version, type, from, to, epoch, seq, room, body]      (a MessagePack array of 9)
//
// body is a map with string keys. Fields are added, never re-purposed; unknown fields are skipped,
// unknown types refused. Decoding is bounded (Bounds) and never throws.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/shared_bytes.h"
#include "base/status.h"

namespace kvd::proto {

constexpr std::uint32_t kMagic = 0x6b766431;  // "kvd1"
constexpr std::uint32_t kVersion = 1;

// Limits of one message. A message beyond them is malformed.
struct Bounds {
  static constexpr std::size_t kMaxBytes = 8u << 20;
  static constexpr std::uint32_t kMaxDepth = 8;
  static constexpr std::uint32_t kMaxItems = 1u << 20;    // of one array or map
  static constexpr std::uint32_t kMaxString = 64u << 10;  // except bin fields, bounded by kMaxBytes
  static constexpr std::uint32_t kMaxTokens = 1u << 20;   // of one prompt
  static constexpr std::uint32_t kMaxRuns = 1u << 16;     // of one Allocate or OpenRoom
};

// One line each: enumerator, wire number, name in kvd-protocol.7.
#define KVD_MESSAGE_TYPES(X)                   \
  X(kDescribe, 1, "Describe")                  \
  X(kDescribed, 2, "Described")                \
  X(kRegister, 3, "Register")                  \
  X(kRegistered, 4, "Registered")              \
  X(kRefused, 5, "Refused")                    \
  X(kOpenRoom, 6, "OpenRoom")                  \
  X(kRoomOpened, 7, "RoomOpened")              \
  X(kRoomRefused, 8, "RoomRefused")            \
  X(kAllocate, 9, "Allocate")                  \
  X(kAbort, 10, "Abort")                       \
  X(kAbortDrained, 11, "AbortDrained")         \
  X(kAbortUnproven, 12, "AbortUnproven")       \
  X(kRoomFailed, 13, "RoomFailed")             \
  X(kCommitted, 14, "Committed")               \
  X(kRoomDone, 15, "RoomDone")                 \
  X(kStaleIncarnation, 16, "StaleIncarnation") \
  X(kError, 17, "Error")                       \
  X(kHeartbeat, 18, "Heartbeat")               \
  X(kDrain, 19, "Drain")                       \
  X(kLeases, 20, "Leases")                     \
  X(kProbe, 21, "Probe")                       \
  X(kProbeResult, 22, "ProbeResult")           \
  X(kJoin, 23, "Join")                         \
  X(kLeave, 24, "Leave")                       \
  X(kMembers, 25, "Members")

enum class MessageType : std::uint8_t {
#define KVD_ENUMERATOR(name, number, text) name = number,
  KVD_MESSAGE_TYPES(KVD_ENUMERATOR)
#undef KVD_ENUMERATOR
};

struct MessageTypeInfo {
  MessageType type;
  std::string_view name;
};
std::span<const MessageTypeInfo> message_types();
std::string_view to_string(MessageType type);

struct Envelope {
  MessageType type = MessageType::kError;
  Incarnation from;
  Incarnation to;         // 0 until the peer is known
  Epoch epoch;            // 0 outside a link
  std::uint64_t seq = 0;  // per link, epoch and direction, from 1; 0 outside a link
  RoomId room;
  // A prompt may have megabytes: the message is kept as it came, and not copied.
  SharedBytes bytes;
  std::size_t body_at = 0;
  std::string_view body() const { return bytes.view().substr(body_at); }  // encoded map
};

// Checks magic, version, type and bounds of the whole message. kIncompatible: another magic or
// version; kInvalidArgument: malformed (the text says where). On an unknown type or a malformed
// body, *partial (may be null) gets what could be read of the header, so that an Error reply can
// name its seq.
Result<Envelope> decode_envelope(SharedBytes bytes, Envelope* partial = nullptr);

// Message types are the structs of the other headers here; each has `static constexpr MessageType
// kType`.
template <typename Message>
std::string encode(const Envelope& header, const Message& message);  // of its own type
template <typename Message>
Result<Message> decode_body(const Envelope& envelope);

}  // namespace kvd::proto
