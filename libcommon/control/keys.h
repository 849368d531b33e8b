// CURVE keys: `kvd-route keygen` makes them, --keys FILE lists who may talk to us.
//
// One line each, '#' begins a comment: PUBLIC_KEY ROLE [ADDR], ROLE prefill|decode|route|probe. One
// line has the role `self`, and the secret key in place of ADDR; a file with it must not be
// readable by others.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::control {

struct KeyEntry {
  std::string public_key;  // Z85, 40 characters
  std::string role;
  std::string address;  // HOST:PORT, may be empty
};

struct KeyRing {
  std::string public_key, secret_key;  // of the line `self`
  std::vector<KeyEntry> peers;
  // The first line of a key; with `role` the one that lists it for that. A key may have several.
  const KeyEntry* find(const std::string& public_key, std::string_view role = {}) const;
  const KeyEntry* find_address(const std::string& address) const;
};

struct KeyPair {
  std::string public_key, secret_key;
};

// Errors: kInvalidArgument with line number; also when the file with a secret is readable by
// others.
Result<KeyRing> load_keys(const std::string& path);
// kFailed when libzmq was built without CURVE.
Result<KeyPair> generate_keys();

}  // namespace kvd::control
