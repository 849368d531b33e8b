#include "control/sim_channel.h"

#include <algorithm>
#include <deque>
#include <map>
#include <queue>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "proto/envelope.h"

namespace kvd::control {
namespace {

using ChannelId = std::uint64_t;

// What a direction may hold on its way, and a channel unread: as a ZeroMQ socket at its high-water
// mark.
constexpr std::size_t kMaxQueued = 1000;

// One conversation seen from one end: the same pair of numbers names it at both.
struct Conversation {
  ChannelId dialler = 0;
  PeerRef dialled_as = 0;  // the dialler's ref
  auto operator<=>(const Conversation&) const = default;
};

struct Flight {
  TimePoint due;
  std::uint64_t order = 0;  // ties are broken by the order of sending
  ChannelId from = 0, to = 0;
  std::string host_from;
  Conversation conversation;
  std::string bytes;
};
struct Later {
  bool operator()(const Flight& a, const Flight& b) const {
    return std::tie(a.due, a.order) > std::tie(b.due, b.order);
  }
};

struct Node {
  std::string host, address;
  std::deque<Incoming> inbox;
  std::map<std::string, PeerRef> dialled;    // address -> ref
  std::map<PeerRef, std::string> addresses;  // the inverse
  std::map<Conversation, PeerRef> accepted;
  std::map<PeerRef, Conversation> conversations;  // of accepted refs
  PeerRef next_ref = 1;
};

}  // namespace

struct SimNetwork::Impl {
  Rng rng;
  ManualClock* clock;
  SimChannelFaults faults;
  std::map<ChannelId, Node> nodes;
  std::map<std::string, ChannelId> bound;
  std::set<std::pair<std::string, std::string>> cut;  // pairs of hosts, the lesser first
  std::priority_queue<Flight, std::vector<Flight>, Later> flights;
  // Of one direction of one conversation: how many are under way, and when the last one is due.
  struct Direction {
    std::size_t queued = 0;
    TimePoint last{0};
  };
  std::map<std::pair<Conversation, ChannelId>, Direction> directions;
  ChannelId next_channel = 1;
  std::uint64_t next_order = 0;
  std::set<std::string> woken;
  Counts counts;

  Impl(std::uint64_t seed, ManualClock* the_clock, SimChannelFaults the_faults)
      : rng(seed), clock(the_clock), faults(the_faults) {}

  static std::pair<std::string, std::string> pair_of(const std::string& a, const std::string& b) {
    return a < b ? std::pair(a, b) : std::pair(b, a);
  }

  Status send(ChannelId from, ChannelId to, Conversation conversation, std::string bytes) {
    Direction& direction = directions[{conversation, to}];
    if (direction.queued >= kMaxQueued) {
      return {StatusCode::kResourceExhausted, "the peer does not read"};
    }
    if (rng.chance(faults.loss)) {
      ++counts.lost;
      return {};
    }
    const bool twice = rng.chance(faults.duplicate);
    if (twice) ++counts.duplicated;
    if (twice) launch(from, to, conversation, bytes, &direction);
    launch(from, to, conversation, std::move(bytes), &direction);
    return {};
  }

  void launch(ChannelId from, ChannelId to, Conversation conversation, std::string bytes,
              Direction* direction) {
    Duration delay = faults.latency;
    if (faults.jitter.count() > 0) {
      delay += Duration(rng.below(static_cast<std::uint64_t>(faults.jitter.count()) + 1));
    }
    TimePoint due = clock->now() + delay;
    if (!faults.reorder) due = std::max(due, direction->last);
    if (due < direction->last) ++counts.overtaken;
    direction->last = std::max(due, direction->last);
    ++direction->queued;
    flights.push(
        {due, next_order++, from, to, nodes.at(from).host, conversation, std::move(bytes)});
  }

  void deliver(Flight flight) {
    if (auto it = directions.find({flight.conversation, flight.to}); it != directions.end()) {
      --it->second.queued;
    }
    const auto receiver = nodes.find(flight.to);
    // Its channel was closed, or the cable cut, while it was under way.
    if (receiver == nodes.end()) return;
    Node& node = receiver->second;
    if (cut.contains(pair_of(flight.host_from, node.host))) {
      ++counts.cut;
      return;
    }
    if (node.inbox.size() >= kMaxQueued) return;
    PeerRef ref = 0;
    if (flight.conversation.dialler == flight.to) {
      ref = flight.conversation.dialled_as;
      if (!node.addresses.contains(ref)) return;  // forgotten
    } else {
      PeerRef& known = node.accepted[flight.conversation];
      if (known == 0) {
        known = node.next_ref++;
        node.conversations[known] = flight.conversation;
      }
      ref = known;
    }
    node.inbox.push_back({ref, std::move(flight.bytes), ""});
    woken.insert(node.host);
  }

  void close(ChannelId id) {
    const auto it = nodes.find(id);
    const auto at = bound.find(it->second.address);
    if (at != bound.end() && at->second == id) bound.erase(at);
    nodes.erase(it);
    std::erase_if(directions, [&](const auto& entry) {
      return entry.first.second == id || entry.first.first.dialler == id;
    });
  }
};

namespace {

class SimChannel final : public Channel {
 public:
  SimChannel(std::shared_ptr<SimNetwork::Impl> network, ChannelId id)
      : network_(std::move(network)), id_(id) {}
  ~SimChannel() override { network_->close(id_); }

  std::string address() const override { return node().address; }

  Result<PeerRef> dial(const std::string& address) override {
    if (address.empty()) return invalid_argument("an empty address cannot be dialled");
    PeerRef& ref = node().dialled[address];
    if (ref == 0) {
      ref = node().next_ref++;
      node().addresses[ref] = address;
    }
    return ref;
  }

  Status send(PeerRef peer, std::string bytes) override {
    if (bytes.size() > proto::Bounds::kMaxBytes) return invalid_argument("longer than 8 MiB");
    if (const auto it = node().addresses.find(peer); it != node().addresses.end()) {
      const auto there = network_->bound.find(it->second);
      if (there == network_->bound.end()) return unavailable("nobody at " + it->second);
      return network_->send(id_, there->second, {id_, peer}, std::move(bytes));
    }
    const auto it = node().conversations.find(peer);
    if (it == node().conversations.end() || !network_->nodes.contains(it->second.dialler)) {
      return unavailable("the peer is gone");
    }
    return network_->send(id_, it->second.dialler, it->second, std::move(bytes));
  }

  bool connected(PeerRef peer) const override {
    const auto it = node().addresses.find(peer);
    return it != node().addresses.end() && network_->bound.contains(it->second);
  }

  std::optional<Incoming> receive() override {
    std::deque<Incoming>& inbox = node().inbox;
    if (inbox.empty()) return std::nullopt;
    Incoming next = std::move(inbox.front());
    inbox.pop_front();
    return next;
  }

  void forget(PeerRef peer) override {
    if (const auto it = node().addresses.find(peer); it != node().addresses.end()) {
      node().dialled.erase(it->second);
      node().addresses.erase(it);
    }
    if (const auto it = node().conversations.find(peer); it != node().conversations.end()) {
      node().accepted.erase(it->second);
      node().conversations.erase(it);
    }
    std::erase_if(node().inbox, [&](const Incoming& incoming) { return incoming.from == peer; });
  }

  int wait_fd() const override { return -1; }

 private:
  Node& node() { return network_->nodes.at(id_); }
  const Node& node() const { return network_->nodes.at(id_); }

  std::shared_ptr<SimNetwork::Impl> network_;
  ChannelId id_;
};

}  // namespace

SimNetwork::SimNetwork(std::uint64_t seed, ManualClock* clock, SimChannelFaults faults)
    : impl_(std::make_shared<Impl>(seed, clock, faults)) {}
SimNetwork::~SimNetwork() = default;

std::unique_ptr<Channel> SimNetwork::open(const std::string& host, const std::string& address) {
  const ChannelId id = impl_->next_channel++;
  Node& node = impl_->nodes[id];
  node.host = host;
  node.address = address;
  if (!address.empty()) impl_->bound[address] = id;
  for (const auto& [other, peer] : impl_->nodes) {
    if (!address.empty() && peer.dialled.contains(address)) impl_->woken.insert(peer.host);
  }
  return std::make_unique<SimChannel>(impl_, id);
}

void SimNetwork::set_faults(SimChannelFaults faults) { impl_->faults = faults; }

void SimNetwork::partition(const std::string& a, const std::string& b) {
  impl_->cut.insert(Impl::pair_of(a, b));
}

void SimNetwork::heal(const std::string& a, const std::string& b) {
  impl_->cut.erase(Impl::pair_of(a, b));
}

bool SimNetwork::step() {
  if (impl_->flights.empty() || impl_->flights.top().due > impl_->clock->now()) return false;
  Flight flight = impl_->flights.top();
  impl_->flights.pop();
  impl_->deliver(std::move(flight));
  return true;
}

bool SimNetwork::take_woken(const std::string& host) { return impl_->woken.erase(host) != 0; }
const SimNetwork::Counts& SimNetwork::counts() const { return impl_->counts; }

TimePoint SimNetwork::next_event() const {
  return impl_->flights.empty() ? kNever : impl_->flights.top().due;
}

}  // namespace kvd::control
