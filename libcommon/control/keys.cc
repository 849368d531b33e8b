#include "control/keys.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/units.h"

namespace kvd::control {
namespace {

constexpr std::size_t kKeyChars = 40;
constexpr std::uintmax_t kMaxFileBytes = 4u << 20;

bool is_key(const std::string& text) {
  static constexpr std::string_view kZ85 =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
  return text.size() == kKeyChars && text.find_first_not_of(kZ85) == std::string::npos;
}

// Two spellings of one address compare equal.
std::string canonical(const std::string& address) {
  Result<HostPort> parsed = parse_host_port(address);
  if (!parsed.ok()) return address;
  if (parsed->host == "localhost") parsed->host = "127.0.0.1";
  return to_string(*parsed);
}

// The words of a line. A '#' begins a comment only as a word's first character: Z85 keys contain
// it.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  std::istringstream in(line);
  for (std::string word; in >> word;) {
    if (word[0] == '#' && !is_key(word)) break;
    words.push_back(std::move(word));
  }
  return words;
}

Status add_line(const std::vector<std::string>& words, KeyRing* ring) {
  if (words.size() < 2 || words.size() > 3) {
    return invalid_argument("expected PUBLIC_KEY ROLE [ADDR]");
  }
  if (!is_key(words[0])) {
    return invalid_argument(
        "the public key must be 40 characters of Z85, as kvd-route keygen prints");
  }
  const std::string& role = words[1];
  if (role == "self") {
    if (!ring->public_key.empty()) return invalid_argument("a second line with the role self");
    if (words.size() != 3 || !is_key(words[2])) {
      return invalid_argument("the line with the role self needs the secret key after it");
    }
    ring->public_key = words[0];
    ring->secret_key = words[2];
    return {};
  }
  if (role != "prefill" && role != "decode" && role != "route" && role != "probe") {
    return invalid_argument("unknown role " + role.substr(0, 32) +
                            ", expected prefill, decode, route, probe or self");
  }
  KeyEntry entry{words[0], role, ""};
  if (words.size() == 3) {
    Result<HostPort> address = parse_host_port(words[2]);
    if (!address.ok()) return address.status();
    entry.address = words[2];
  }
  ring->peers.push_back(std::move(entry));
  return {};
}

}  // namespace

const KeyEntry* KeyRing::find(const std::string& key, std::string_view role) const {
  const auto found = std::find_if(peers.begin(), peers.end(), [&](const KeyEntry& entry) {
    return entry.public_key == key && (role.empty() || entry.role == role);
  });
  return found == peers.end() ? nullptr : &*found;
}

const KeyEntry* KeyRing::find_address(const std::string& address) const {
  const std::string wanted = canonical(address);
  const auto found = std::find_if(peers.begin(), peers.end(), [&](const KeyEntry& entry) {
    return !entry.address.empty() && canonical(entry.address) == wanted;
  });
  return found == peers.end() ? nullptr : &*found;
}

Result<KeyRing> load_keys(const std::string& path) {
  const auto at = [&](const std::string& what) { return invalid_argument(path + ": " + what); };
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return at("cannot be read; check --keys");
  if (!S_ISREG(info.st_mode)) return at("not a regular file; check --keys");
  if (static_cast<std::uintmax_t>(info.st_size) > kMaxFileBytes) return at("larger than 4 MiB");
  std::ifstream in(path);
  if (!in) return at("cannot be read; check --keys");

  KeyRing ring;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    const std::vector<std::string> words = words_of(line);
    if (words.empty()) continue;
    if (Status status = add_line(words, &ring); !status.ok()) {
      return at("line " + std::to_string(number) + ": " + status.message());
    }
  }
  if (in.bad()) return at("cannot be read");
  if (ring.public_key.empty())
    return at("no line with the role self; make one with kvd-route keygen");
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return at("holds a secret key and may be read by others; chmod 600 it");
  }
  return ring;
}

}  // namespace kvd::control
