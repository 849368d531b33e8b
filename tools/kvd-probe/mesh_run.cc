#include "kvd-probe/mesh_run.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "base/rng.h"
#include "base/units.h"
#include "control/messenger.h"
#include "control/zmq_channel.h"
#include "node/event_loop.h"
#include "peer/raw_peer.h"

namespace kvd::tools {
namespace {

constexpr Duration kAskInterval{200'000'000}, kLongestWait{50'000'000};
// For what a pair does besides measuring: its session, memory, verification.
constexpr Duration kPairSlack{10'000'000'000};

class MeshRun final : node::LoopTask {
 public:
  MeshRun(const MeshOptions& options, MeshResult* out)
      : options_(options), out_(*out), loop_(&clock_, {Duration(0), false, kLongestWait}) {}
  Status run();

 private:
  struct Peer {
    control::PeerRef ref = 0;
    Incarnation incarnation;
    TimePoint heard{0}, next_ask{0};
    bool met = false;
    std::size_t pair = SIZE_MAX;  // what it dials now
    std::uint64_t request = 0;
    TimePoint asked{0};
  };

  Status open();
  void run_round(const std::vector<std::pair<std::size_t, std::size_t>>& round);
  void loop(std::function<bool()> done, Duration deadline);
  bool step() override;
  void wait_fds(std::vector<int>* out) const override { out->push_back(channel_->wait_fd()); }
  bool may_wait() override { return true; }
  TimePoint next_deadline() const override { return std::min(end_, next_); }
  bool finished() const override { return done_() || clock_.now() >= end_ || stopped(); }
  bool stopped() const { return options_.stop && options_.stop(); }
  void take(const control::Received& received);
  void take_result(std::size_t index, const proto::ProbeResult& result);
  void lose(std::size_t index, const std::string& code, const std::string& why);
  void fail(std::size_t pair, const std::string& code, const std::string& why);
  void explain_absent(std::size_t index);

  const MeshOptions& options_;
  MeshResult& out_;
  SteadyClock clock_;
  node::EventLoop loop_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::vector<Peer> peers_;
  std::function<bool()> done_;
  TimePoint end_{0}, next_{0};
  std::uint64_t requests_ = 0;
  std::size_t pairs_done_ = 0;
};

Status MeshRun::open() {
  control::ZmqOptions zmq;
  if (!options_.keys.empty()) {
    auto keys = control::load_keys(options_.keys);
    if (!keys.ok()) return keys.status();
    zmq.keys = std::move(*keys);
  }
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ = std::make_unique<control::Messenger>(
      channel_.get(), Incarnation{secure_random_u63()}, &clock_, nullptr);
  messenger_->on_unreadable([this](control::PeerRef from, const Status& why) {
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      if (peers_[i].ref == from) lose(i, "incompatible", why.message());
    }
  });
  for (const std::string& address : options_.peers) {
    auto ref = channel_->dial(address);
    if (!ref.ok()) return ref.status();
    for (const Peer& other : peers_) {
      if (other.ref == *ref) return invalid_argument(address + " is named twice");
    }
    MeshPeer peer;
    peer.address = address;
    out_.peers.push_back(std::move(peer));
    peers_.emplace_back().ref = *ref;
  }
  return {};
}

void MeshRun::loop(std::function<bool()> done, Duration deadline) {
  done_ = std::move(done);
  end_ = clock_.now() + deadline;
  loop_.run(*this);
}

bool MeshRun::step() {
  bool any = false;
  while (auto received = messenger_->receive()) {
    take(*received);
    any = true;
  }
  const TimePoint now = clock_.now();
  next_ = now + kAskInterval;
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    if (!out_.peers[i].error.empty()) continue;
    if (peer.met && now - peer.heard > options_.dead_after) {
      lose(i, "unavailable", "was silent for " + format_duration(options_.dead_after));
      continue;
    }
    if (now < peer.next_ask) continue;
    peer.next_ask = now + kAskInterval;
    const Status sent = messenger_->send(peer.ref, Incarnation{}, proto::Describe{});
    if (peer.met && sent.code() == StatusCode::kUnavailable) lose(i, "unavailable", "went away");
  }
  return any;
}

void MeshRun::take(const control::Received& received) {
  const auto found = std::find_if(peers_.begin(), peers_.end(),
                                  [&](const Peer& peer) { return peer.ref == received.from; });
  if (found == peers_.end() || received.refused) return;
  const auto index = static_cast<std::size_t>(found - peers_.begin());
  MeshPeer& told = out_.peers[index];
  found->heard = clock_.now();
  const proto::Envelope& envelope = received.envelope;
  if (envelope.type == proto::MessageType::kDescribed) {
    const auto described = proto::decode_body<proto::Described>(envelope);
    if (!described.ok() || !told.error.empty()) return;
    if (found->met && found->incarnation != envelope.from) {
      lose(index, "unavailable", "was started anew");
      return;
    }
    found->met = true;
    found->incarnation = envelope.from;
    told.role = described->role;
    told.version = described->version;
    told.providers = described->providers;
    told.scope = described->scope;
  } else if (envelope.type == proto::MessageType::kError) {
    const auto error = proto::decode_body<proto::Error>(envelope);
    if (error.ok()) lose(index, "incompatible", "takes no probes: " + error->text);
  } else if (envelope.type == proto::MessageType::kProbeResult) {
    const auto result = proto::decode_body<proto::ProbeResult>(envelope);
    if (result.ok()) take_result(index, *result);
  }
}

void MeshRun::take_result(std::size_t index, const proto::ProbeResult& result) {
  Peer& peer = peers_[index];
  if (peer.pair == SIZE_MAX || result.request != peer.request) return;
  MeshPair& pair = out_.pairs[peer.pair];
  pair.provider = result.provider;
  if (result.state == "done") {
    pair.done = true;
    pair.bytes_per_s = static_cast<double>(result.bytes_per_s);
    pair.latency_ns = static_cast<double>(result.latency_ns);
    pair.p99_ns = static_cast<double>(result.p99_ns);
  } else {
    fail(peer.pair, result.code, result.text);
  }
  peer.pair = SIZE_MAX;
  if (options_.progress) options_.progress(++pairs_done_);
}

void MeshRun::fail(std::size_t pair, const std::string& code, const std::string& why) {
  MeshPair& one = out_.pairs[pair];
  if (one.done || !one.error.empty()) return;
  static const std::vector<std::string> known = {"invalid_argument", "unavailable", "deadline",
                                                 "incompatible",     "corrupted",   "no_provider",
                                                 "unauthorized"};
  one.error_code = std::find(known.begin(), known.end(), code) != known.end() ? code : "failed";
  one.error = why.empty() ? "failed" : why;
}

void MeshRun::lose(std::size_t index, const std::string& code, const std::string& why) {
  MeshPeer& peer = out_.peers[index];
  if (!peer.error.empty()) return;
  peer.error_code = code;
  peer.error = why;
  if (peers_[index].pair != SIZE_MAX) fail(peers_[index].pair, code, peer.address + " " + why);
  peers_[index].pair = SIZE_MAX;
}

void MeshRun::run_round(const std::vector<std::pair<std::size_t, std::size_t>>& round) {
  for (const auto& [from, to] : round) {
    const MeshPeer &a = out_.peers[from], &b = out_.peers[to];
    if (a.error.empty() && !a.dials()) continue;  // a worker dials nobody
    MeshPair pair;
    pair.from = from;
    pair.to = to;
    out_.pairs.push_back(std::move(pair));
    const std::size_t index = out_.pairs.size() - 1;
    if (!a.error.empty() || !b.error.empty()) {
      const MeshPeer& gone = a.error.empty() ? b : a;
      fail(index, gone.error_code, gone.address + " " + gone.error);
      continue;
    }
    Peer& peer = peers_[from];
    proto::Probe dial;
    dial.request = peer.request = ++requests_;
    dial.op = "dial";
    dial.peer = b.address;
    dial.provider = options_.provider;
    dial.bytes = options_.bytes;
    dial.time_ms = static_cast<std::uint32_t>(options_.time.count() / 1'000'000);
    peer.pair = index;
    if (!messenger_->send(peer.ref, peer.incarnation, dial).ok()) {
      lose(from, "unavailable", "went away");
    }
  }
  loop(
      [this] {
        return std::all_of(peers_.begin(), peers_.end(),
                           [](const Peer& peer) { return peer.pair == SIZE_MAX; });
      },
      options_.time + options_.timeout + kPairSlack);
  for (Peer& peer : peers_) {
    if (peer.pair == SIZE_MAX) continue;
    stopped() ? fail(peer.pair, "failed", "interrupted")
              : fail(peer.pair, "deadline", "the pair was not measured in time");
    peer.pair = SIZE_MAX;
  }
}

void MeshRun::explain_absent(std::size_t index) {
  const auto address = parse_host_port(options_.peers[index]);
  const RawLook look = look_at(*address);
  if (look.what == RawPeer::kForeign) {
    lose(index, "incompatible", "is no kvd: " + look.detail);
  } else {
    lose(index, "unavailable",
         "did not answer within " + format_duration(options_.timeout) + ": " + look.detail);
  }
}

Status MeshRun::run() {
  KVD_RETURN_IF_ERROR(open());
  const auto absent = [this](std::size_t i) {
    return !peers_[i].met && out_.peers[i].error.empty();
  };
  const auto all_met = [this, absent] {
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      if (absent(i)) return false;
    }
    return true;
  };
  const Duration first = std::min(options_.timeout, Duration(1'000'000'000));
  loop(all_met, first);
  for (std::size_t i = 0; i < peers_.size() && options_.notice; ++i) {
    if (absent(i)) options_.notice("waiting for " + options_.peers[i]);
  }
  loop(all_met, options_.timeout - first);
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (absent(i) && !stopped()) explain_absent(i);
  }
  for (const auto& round : mesh_rounds(peers_.size())) {
    if (stopped()) break;
    run_round(round);
  }
  judge_mesh(&out_);
  if (!options_.provider.empty()) {  // they went as they were told
    for (MeshPair& pair : out_.pairs) pair.downgraded = false;
  }
  return stopped() ? Status(StatusCode::kFailed, "interrupted") : Status();
}

}  // namespace

Status run_mesh(const MeshOptions& options, MeshResult* result) {
  return MeshRun(options, result).run();
}

}  // namespace kvd::tools
