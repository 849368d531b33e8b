#include "peer/meet.h"

#include <algorithm>
#include <utility>

#include "base/rng.h"
#include "base/units.h"
#include "control/zmq_channel.h"

namespace kvd::tools {
namespace {

constexpr Duration kAskInterval{100'000'000}, kFirstLook{500'000'000}, kLookInterval{2'000'000'000};
constexpr Duration kLongestWait{50'000'000};  // so that `stop` is asked

// Asks until somebody has answered or `pause` has come.
class Meeting final : node::LoopTask {
 public:
  Meeting(const MeetOptions& options, const Clock* clock)
      : options_(options), clock_(clock), loop_(clock, {Duration(50'000), false, kLongestWait}) {}
  Status run();
  MetPeer take() { return std::move(out_); }

 private:
  bool step() override;
  void wait_fds(std::vector<int>* out) const override { out->push_back(out_.channel->wait_fd()); }
  bool may_wait() override { return !step() && !finished(); }
  TimePoint next_deadline() const override { return std::min(pause_, next_ask_); }
  bool finished() const override { return !fault_.ok() || met_ || clock_->now() >= pause_; }

  Status open();
  void take(const control::Received& received);
  Status not_met() const;

  const MeetOptions& options_;
  const Clock* clock_;
  node::EventLoop loop_;
  MetPeer out_;
  RawLook look_;
  TimePoint next_ask_{0}, pause_{0};
  bool met_ = false;
  Status fault_;
};

Status Meeting::open() {
  control::ZmqOptions zmq;
  if (!options_.keys.empty()) {
    auto keys = control::load_keys(options_.keys);
    if (!keys.ok()) return keys.status();
    zmq.keys = std::move(*keys);
  }
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  out_.channel = std::move(*channel);
  out_.messenger = std::make_unique<control::Messenger>(
      out_.channel.get(), Incarnation{secure_random_u63()}, clock_, nullptr);
  out_.messenger->on_unreadable([this](control::PeerRef from, const Status& why) {
    if (from == out_.ref && fault_.ok()) fault_ = unreadable_peer(options_.peer, why);
  });
  auto peer = out_.channel->dial(options_.peer);
  if (!peer.ok()) return peer.status();
  out_.ref = *peer;
  return {};
}

bool Meeting::step() {
  bool any = false;
  while (auto received = out_.messenger->receive()) {
    take(*received);
    any = true;
  }
  const TimePoint now = clock_->now();
  if (fault_.ok() && options_.stop && options_.stop()) {
    fault_ = Status(StatusCode::kFailed, "interrupted");
  }
  if (!met_ && fault_.ok() && now >= next_ask_) {
    next_ask_ = now + kAskInterval;
    (void)out_.messenger->send(out_.ref, Incarnation{}, proto::Describe{}).ok();
  }
  return any;
}

void Meeting::take(const control::Received& received) {
  if (received.from != out_.ref || received.refused || met_) return;
  if (received.envelope.type == proto::MessageType::kDescribed) {
    auto described = proto::decode_body<proto::Described>(received.envelope);
    if (!described.ok()) return;
    out_.described = std::move(*described);
    out_.incarnation = received.envelope.from;
    met_ = true;
  } else if (received.envelope.type == proto::MessageType::kError) {
    const auto error = proto::decode_body<proto::Error>(received.envelope);
    if (error.ok()) fault_ = error_of_peer(options_.peer, *error, "probes");
  }
}

Status Meeting::not_met() const {
  const std::string& peer = options_.peer;
  const std::string within = " within " + format_duration(options_.timeout);
  switch (look_.what) {
    case RawPeer::kNobody:
      return unavailable("nobody listens at " + peer + within + " (" + look_.detail +
                         "): start kvd-probe serve --listen " + peer + " there, or a worker");
    case RawPeer::kSilent:
      return unavailable(peer + " did not answer" + within + ": " + look_.detail +
                         "; it is stopped, or no kvd");
    default:
      return unavailable(peer + " did not answer" + within + ": " + look_.detail +
                         ", so it may be stopped, or its --keys and ours do not match");
  }
}

Status Meeting::run() {
  const auto address = parse_host_port(options_.peer);
  if (!address.ok()) return address.status();
  KVD_RETURN_IF_ERROR(open());
  TimePoint next_look = clock_->now() + kFirstLook;
  const TimePoint end = clock_->now() + options_.timeout;
  std::string told;
  while (!met_) {
    pause_ = std::min(end, next_look);
    loop_.run(*this);
    if (met_) break;
    if (!fault_.ok() && fault_.code() != StatusCode::kIncompatible) return fault_;
    const bool over = clock_->now() >= end;
    look_ = look_at(*address);
    next_look = clock_->now() + kLookInterval;
    // Of some strangers ZeroMQ makes a message: what they say to others is the better reason.
    if (look_.what == RawPeer::kForeign) {
      return {StatusCode::kIncompatible,
              options_.peer + " is no kvd: " + look_.detail +
                  "; name the control address (--listen) of a kvd-probe serve, "
                  "kvd-prefill or kvd-decode"};
    }
    if (!fault_.ok()) return fault_;
    if (over) return not_met();
    const std::string now = "waiting for " + options_.peer + ": " + look_.detail;
    if (now != told && options_.notice) options_.notice(now);
    told = now;
  }
  out_.messenger->on_unreadable({});
  return {};
}

}  // namespace

Result<MetPeer> meet(const MeetOptions& options, const Clock* clock) {
  Meeting meeting(options, clock);
  KVD_RETURN_IF_ERROR(meeting.run());
  return meeting.take();
}

Status error_of_peer(const std::string& peer, const proto::Error& error, const std::string& what) {
  if (error.code == "unauthorized") {
    return {StatusCode::kNoProvider, peer + " refuses: " + error.text};
  }
  return {StatusCode::kIncompatible, peer + " takes no " + what + ": " + error.text};
}

Status unreadable_peer(const std::string& peer, const Status& why) {
  return {StatusCode::kIncompatible, peer + " sends what this kvd cannot read: " + why.message() +
                                         "; use the same kvd on both hosts"};
}

Status refusal_of_peer(const std::string& peer, const proto::ProbeResult& result) {
  const StatusCode code = result.code == "no_provider" ? StatusCode::kNoProvider
                          : result.code == "busy"      ? StatusCode::kUnavailable
                          : result.code == "invalid"   ? StatusCode::kInvalidArgument
                                                       : StatusCode::kFailed;
  return {code, peer + " refuses: " + result.text};
}

}  // namespace kvd::tools
