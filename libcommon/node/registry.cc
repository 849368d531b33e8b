#include "node/registry.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/units.h"

namespace kvd::node {

Registry::Registry(control::Messenger* messenger, Duration dead_after, const control::KeyRing* keys)
    : messenger_(messenger), dead_after_(dead_after), keys_(keys) {}

bool Registry::on_message(const control::Received& received, TimePoint now) {
  switch (received.envelope.type) {
    case proto::MessageType::kJoin:
      join(received, now);
      return true;
    case proto::MessageType::kLeave:
      leave(received);
      return true;
    default:
      return false;
  }
}

std::string Registry::objection(const proto::Join& join, const control::Received& received) const {
  if (join.role != "prefill" && join.role != "decode") {
    return "role '" + join.role + "' cannot join: prefill and decode can";
  }
  if (const Result<HostPort> address = parse_host_port(join.control);
      !address.ok() || address->port == 0) {
    return "control '" + join.control + "' is not HOST:PORT";
  }
  if (keys_ != nullptr) {
    const control::KeyEntry* key = keys_->find(received.identity, join.role);
    if (key == nullptr) return "this key is not listed as " + join.role;
    if (!key->address.empty() && key->address != join.control) {
      return "this key is listed for " + key->address + ", not " + join.control;
    }
  }
  const auto entry = entries_.find(join.control);
  if (entry != entries_.end() && entry->second.identity != received.identity) {
    return "another key has joined as " + join.control + "; its member must leave or go silent";
  }
  if (entry == entries_.end() && entries_.size() >= kMaxMembers) {
    return "the registry is full (" + std::to_string(kMaxMembers) + " members)";
  }
  return {};
}

void Registry::join(const control::Received& received, TimePoint now) {
  Result<proto::Join> join = proto::decode_body<proto::Join>(received.envelope);
  if (!join.ok()) {
    messenger_->refuse(received, "malformed", join.status().message());
    return;
  }
  if (!join->role.empty()) {
    if (const std::string wrong = objection(*join, received); !wrong.empty()) {
      messenger_->refuse(received, "unauthorized", wrong);
      return;
    }
    const std::uint64_t incarnation = received.envelope.from.value;
    Entry& entry = entries_[join->control];
    if (entry.member.incarnation != incarnation || entry.member.role != join->role ||
        entry.member.http != join->http || entry.member.model != join->model) {
      ++version_;
      log_info("worker joined", {{"role", join->role},
                                 {"worker", join->control},
                                 {"incarnation", received.envelope.from}});
    }
    entry.member = {join->role, join->control, join->http, join->model, incarnation, join->load};
    entry.identity = received.identity;
    entry.last_seen = now;
  }
  // A member that does not read its answers loses them, nothing else.
  (void)messenger_->send(received.from, received.envelope.from, proto::Members{members()});
}

void Registry::leave(const control::Received& received) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const auto& item) {
    return item.second.member.incarnation == received.envelope.from.value &&
           item.second.identity == received.identity;
  });
  if (entry == entries_.end()) return;
  log_info("worker left", {{"role", entry->second.member.role}, {"worker", entry->first}});
  entries_.erase(entry);
  ++version_;
}

void Registry::poll(TimePoint now) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (now - entry->second.last_seen <= dead_after_) {
      ++entry;
      continue;
    }
    log_warn("worker no longer joins, it is listed no longer", {{"worker", entry->first}});
    entry = entries_.erase(entry);
    ++version_;
  }
}

TimePoint Registry::next_deadline() const {
  TimePoint next = kNever;
  for (const auto& [address, entry] : entries_) {
    next = std::min(next, entry.last_seen + dead_after_ + Duration(1));
  }
  return next;
}

std::vector<proto::Member> Registry::members() const {
  std::vector<proto::Member> out;
  out.reserve(entries_.size());
  for (const auto& [address, entry] : entries_) out.push_back(entry.member);
  return out;
}

}  // namespace kvd::node
