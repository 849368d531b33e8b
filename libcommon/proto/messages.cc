#include "proto/messages.h"

#include "base/check.h"

namespace kvd::proto {
namespace {

// kDescribe -> Describe. A type without its line here, or with the struct of another, does not
// compile.
template <MessageType type>
struct StructOf;
#define KVD_STRUCT_OF(Message)                             \
  template <>                                              \
  struct StructOf<MessageType::k##Message> {               \
    using Type = Message;                                  \
    static_assert(Type::kType == MessageType::k##Message); \
  };
KVD_STRUCT_OF(Describe)
KVD_STRUCT_OF(Described)
KVD_STRUCT_OF(Register)
KVD_STRUCT_OF(Registered)
KVD_STRUCT_OF(Refused)
KVD_STRUCT_OF(OpenRoom)
KVD_STRUCT_OF(RoomOpened)
KVD_STRUCT_OF(RoomRefused)
KVD_STRUCT_OF(Allocate)
KVD_STRUCT_OF(Abort)
KVD_STRUCT_OF(AbortDrained)
KVD_STRUCT_OF(AbortUnproven)
KVD_STRUCT_OF(RoomFailed)
KVD_STRUCT_OF(Committed)
KVD_STRUCT_OF(RoomDone)
KVD_STRUCT_OF(StaleIncarnation)
KVD_STRUCT_OF(Error)
KVD_STRUCT_OF(Heartbeat)
KVD_STRUCT_OF(Drain)
KVD_STRUCT_OF(Leases)
KVD_STRUCT_OF(Probe)
KVD_STRUCT_OF(ProbeResult)
KVD_STRUCT_OF(Join)
KVD_STRUCT_OF(Leave)
KVD_STRUCT_OF(Members)
#undef KVD_STRUCT_OF

}  // namespace

template <typename Message>
std::vector<FieldInfo> list_fields();  // instantiated beside each message

std::vector<FieldInfo> message_fields(MessageType type) {
  switch (type) {
#define KVD_CASE(name, number, text) \
  case MessageType::name:            \
    return list_fields<StructOf<MessageType::name>::Type>();
    KVD_MESSAGE_TYPES(KVD_CASE)
#undef KVD_CASE
  }
  return {};
}

Status check_body(const Envelope& envelope) {
  switch (envelope.type) {
#define KVD_CASE(name, number, text) \
  case MessageType::name:            \
    return decode_body<StructOf<MessageType::name>::Type>(envelope).status();
    KVD_MESSAGE_TYPES(KVD_CASE)
#undef KVD_CASE
  }
  return invalid_argument("unknown message type");
}

}  // namespace kvd::proto
