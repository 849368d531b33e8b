#include "node/key_roles.h"

#include <string_view>

namespace kvd::node {

std::string key_objection(const control::KeyRing* keys, const control::Received& message) {
  using proto::MessageType;
  if (keys == nullptr) return {};
  std::string_view needed;
  switch (message.envelope.type) {
    case MessageType::kRegister:
      needed = "decode";
      break;
    case MessageType::kDrain:
      needed = "route";
      break;
    case MessageType::kLeases:
    case MessageType::kProbe:
      needed = "probe";
      break;
    default:
      return {};
  }
  if (keys->find(message.identity, needed) != nullptr) return {};
  const control::KeyEntry* key = keys->find(message.identity);
  return std::string(proto::to_string(message.envelope.type)) + " needs a key that is listed as " +
         std::string(needed) + "; this one is " + (key == nullptr ? "not listed" : key->role);
}

}  // namespace kvd::node
