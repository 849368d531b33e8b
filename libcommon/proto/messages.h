// All messages: what a generic reader (a fuzz target, the specification's test) needs beside the
// structs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "proto/envelope.h"
#include "proto/link_messages.h"
#include "proto/ops_messages.h"
#include "proto/room_messages.h"

namespace kvd::proto {

// One field of a body as kvd-protocol.7 lists it; nested ones are "layout.page_size".
struct FieldInfo {
  std::string name;
  std::string_view type;  // uint32, uint64, float, bool, str, bin, tokens, strs, runs, map, maps
  bool required = false;
  bool operator==(const FieldInfo&) const = default;
};

std::vector<FieldInfo> message_fields(MessageType type);
// Decodes the body as what the envelope says it is, and throws the result away.
Status check_body(const Envelope& envelope);

}  // namespace kvd::proto
