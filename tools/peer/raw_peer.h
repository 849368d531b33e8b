// What listens at an address that does not answer as kvd: told by its first bytes.
//
// Calling thread: any. Blocks for at most about a second.
#pragma once

#include <string>

#include "base/status.h"
#include "base/units.h"

namespace kvd::tools {

enum class RawPeer {
  kNobody,   // refused, unreachable, or not to be resolved
  kSilent,   // takes the connection and says nothing
  kZeroMq,   // greets as ZeroMQ does (ZMTP 3, section "greeting"), so it may be kvd
  kForeign,  // says something else: HTTP, a banner
};
struct RawLook {
  RawPeer what = RawPeer::kNobody;
  std::string detail;  // for people: "connection refused", "HTTP/1.1 400 Bad Request"
};
RawLook look_at(const HostPort& address);

// The address of this host that packets to `host` leave from. kUnavailable when there is no way;
// kInvalidArgument for a link-local address without its interface.
Result<std::string> source_towards(const HostPort& address);

}  // namespace kvd::tools
