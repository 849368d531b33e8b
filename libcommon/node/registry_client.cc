#include "node/registry_client.h"

#include <utility>

#include "base/log.h"

namespace kvd::node {

RegistryClient::RegistryClient(control::Messenger* messenger, std::string registry,
                               const Clock* clock, Duration dead_after)
    : messenger_(messenger),
      registry_(std::move(registry)),
      clock_(clock),
      dead_after_(dead_after) {}

Status RegistryClient::open() {
  Result<control::PeerRef> peer = messenger_->channel().dial(registry_);
  if (!peer.ok()) return peer.status();
  peer_ = *peer;
  return {};
}

bool RegistryClient::on_message(const control::Received& received) {
  if (peer_ == 0 || received.from != peer_) return false;
  switch (received.envelope.type) {
    case proto::MessageType::kMembers: {
      const Result<proto::Members> members = proto::decode_body<proto::Members>(received.envelope);
      if (!members.ok() || members->members.size() > kMaxMembers) {
        messenger_->refuse(received, "malformed",
                           members.ok() ? "too many members" : members.status().message());
      } else {
        take(*members);
      }
      return true;
    }
    case proto::MessageType::kError: {
      const Result<proto::Error> error = proto::decode_body<proto::Error>(received.envelope);
      // It repeats every 500 ms: the first of a row of refusals is enough.
      if (error.ok() && !reported_refusal_) {
        log_warn("the registry refuses us", {{"registry", registry_}, {"text", error->text}});
        reported_refusal_ = true;
      }
      return true;
    }
    case proto::MessageType::kStaleIncarnation:
      return true;
    default:
      return false;
  }
}

void RegistryClient::take(const proto::Members& listed) {
  const TimePoint now = clock_->now();
  last_answer_ = now;
  if (!answered_ || reported_gone_) log_info("registry answers", {{"registry", registry_}});
  answered_ = true;
  reported_gone_ = false;
  reported_refusal_ = false;
  for (auto& [address, known] : known_) known.listed = false;
  for (const proto::Member& member : listed.members) {
    const auto [entry, fresh] = known_.try_emplace(member.control);
    Known& known = entry->second;
    if (fresh || known.member.incarnation != member.incarnation ||
        known.member.role != member.role || known.member.http != member.http ||
        known.member.model != member.model) {
      ++version_;
    }
    known = {member, true, now};
  }
}

void RegistryClient::poll(TimePoint now) {
  if (answered_ && !reported_gone_ && !connected(now)) {
    log_warn("registry does not answer, the known members stay", {{"registry", registry_}});
    reported_gone_ = true;
  }
  for (auto entry = known_.begin(); entry != known_.end();) {
    const Known& known = entry->second;
    if (known.listed || now - known.last_sign <= dead_after_) {
      ++entry;
      continue;
    }
    entry = known_.erase(entry);
    ++version_;
  }
  if (now < next_join_ || left_ || peer_ == 0) return;
  // Not connected (yet): the next Join is as good as this one.
  (void)messenger_->send(peer_, Incarnation{}, self_);
  next_join_ = now + kJoinInterval;
}

std::vector<proto::Member> RegistryClient::members() const {
  std::vector<proto::Member> out;
  out.reserve(known_.size());
  for (const auto& [address, known] : known_) out.push_back(known.member);
  return out;
}

void RegistryClient::seen(const std::string& control, TimePoint now) {
  const auto entry = known_.find(control);
  if (entry != known_.end()) entry->second.last_sign = now;
}

bool RegistryClient::connected(TimePoint now) const {
  return answered_ && now - last_answer_ <= dead_after_;
}

void RegistryClient::leave() {
  if (peer_ != 0 && !left_ && !self_.role.empty()) {
    (void)messenger_->send(peer_, Incarnation{}, proto::Leave{});
  }
  left_ = true;
  next_join_ = kNever;
}

}  // namespace kvd::node
