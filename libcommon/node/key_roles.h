// What the role of a key allows: who may register, drain and look at leases (kvd-protocol.7).
//
// Pure; any thread.
#pragma once

#include <string>

#include "control/keys.h"
#include "control/messenger.h"

namespace kvd::node {

// Empty, or why the key that `message` came with may not send it: Register needs a key listed as
// decode, Drain as route, Leases and Probe as probe. Everything else asks for nothing, or belongs
// to a link that Register opened, or is judged by the registry. Without `keys` all is allowed.
std::string key_objection(const control::KeyRing* keys, const control::Received& message);

}  // namespace kvd::node
