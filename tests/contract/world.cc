#include "contract/world.h"

#include <poll.h>

#include <algorithm>
#include <map>

#include "base/check.h"
#include "device/host_buffer.h"

// libfabric 1.17 forgets 1 KiB for each `net` endpoint (xnet_init_rdm never frees its msg_info).
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libfabric.so"; }

namespace kvd::fabric::contract {
namespace {

class SimWorld final : public World {
 public:
  explicit SimWorld(const SimFaults& faults) : fabric_(42, &clock_, faults) {}
  std::unique_ptr<Domain> open_domain(const std::string& host) override {
    return fabric_.open_domain(host);
  }
  bool turn() override {
    if (fabric_.step()) return true;
    const TimePoint next = fabric_.next_event();
    if (next == kNever) return false;
    if (next > clock_.now()) clock_.advance(next - clock_.now());
    return fabric_.step();
  }
  const Clock* clock() const override { return &clock_; }

 private:
  ManualClock clock_;
  SimFabric fabric_;
};

class RealWorld final : public World {
 public:
  explicit RealWorld(std::string provider) : provider_(std::move(provider)) {}
  std::unique_ptr<Domain> open_domain(const std::string&) override {
    auto domain =
        fabric::open_domain({.provider = provider_, .source_address = "127.0.0.1", .device = ""});
    INFO(domain.status().message());
    REQUIRE(domain.ok());
    return std::move(domain).value();
  }
  bool turn() override { return true; }
  const Clock* clock() const override { return &clock_; }

 private:
  std::string provider_;
  SteadyClock clock_;
};

constexpr std::size_t kArenaBytes = 256u << 20;
constexpr std::size_t kAlign = 64;

struct ArenaState {
  ArenaState() {
    auto shared = device::HostBuffer::allocate(kArenaBytes, device::Backing::kShared);
    buffer = shared.ok() ? std::move(*shared) : device::HostBuffer::allocate(kArenaBytes).value();
    free[0] = buffer.size();
  }
  device::HostBuffer buffer;
  std::map<std::size_t, std::size_t> free;  // offset -> bytes
};
// Never destroyed: static objects of tests may outlive it.
ArenaState& arena() {
  static auto* state = new ArenaState;
  return *state;
}
std::size_t rounded(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

using Wall = std::chrono::steady_clock;
// A simulated world that did not move for so many turns will not move again.
constexpr int kIdleTurns = 100;

}  // namespace

std::byte* Arena::take(std::size_t bytes) {
  ArenaState& state = arena();
  const std::size_t size = rounded(bytes);
  for (auto it = state.free.begin(); it != state.free.end(); ++it) {
    if (it->second < size) continue;
    const auto [offset, room] = *it;
    state.free.erase(it);
    if (room > size) state.free[offset + size] = room - size;
    return state.buffer.data() + offset;
  }
  KVD_CHECK(!"the tests' arena is too small");
  return nullptr;
}

void Arena::give_back(const std::byte* data, std::size_t bytes) {
  ArenaState& state = arena();
  auto it = state.free.emplace(data - state.buffer.data(), rounded(bytes)).first;
  if (const auto next = std::next(it);
      next != state.free.end() && it->first + it->second == next->first) {
    it->second += next->second;
    state.free.erase(next);
  }
  if (it == state.free.begin()) return;
  const auto before = std::prev(it);
  if (before->first + before->second == it->first) {
    before->second += it->second;
    state.free.erase(it);
  }
}

std::span<std::byte> Arena::whole() { return {arena().buffer.data(), arena().buffer.size()}; }

std::vector<std::string> present() {
  std::vector<std::string> names{"sim", "sim;local"};
  for (const ProviderInfo& info : available_providers("127.0.0.1", "")) {
    if (std::find(names.begin(), names.end(), info.name) == names.end()) names.push_back(info.name);
  }
  return names;
}

std::vector<std::string> absent() {
  std::vector<std::string> out;
  const std::vector<std::string> here = present();
  for (const std::string_view name : provider_preference()) {
    if (std::find(here.begin(), here.end(), name) == here.end()) out.emplace_back(name);
  }
  return out;
}

std::unique_ptr<World> make_world(const std::string& provider) {
  if (provider == "sim") return std::make_unique<SimWorld>(SimFaults{});
  if (provider == "sim;local") {
    return std::make_unique<SimWorld>(
        SimFaults{.land_after_region_close = false, .self_reconnect = false, .target_pulls = true});
  }
  return std::make_unique<RealWorld>(provider);
}

bool run_until(World& world, const std::function<void()>& step, const std::function<bool()>& done,
               std::chrono::milliseconds limit) {
  const auto end = Wall::now() + limit;
  int idle = 0;
  while (true) {
    step();
    if (done()) return true;
    idle = world.turn() ? 0 : idle + 1;
    if (idle > kIdleTurns || Wall::now() > end) return false;
  }
}

void run_for(World& world, const std::function<void()>& step, std::chrono::milliseconds time) {
  (void)run_until(
      world, step, [] { return false; }, time);
}

bool readable(int fd, int timeout_ms) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, timeout_ms) == 1;
}

Bytes pattern(std::size_t bytes, std::uint64_t salt) {
  Bytes out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    out[i] = static_cast<std::byte>(1 + (i * 2654435761U + (i >> 8) + salt * 97) % 255);
  }
  return out;
}

Link::Link(World* in, std::size_t bytes, Domain* from, Domain* to)
    : world(in), sender_domain(from), receiver_domain(to), memory(bytes) {
  if (sender_domain == nullptr) {
    own_sender_domain = world->open_domain("prefill");
    sender_domain = own_sender_domain.get();
  }
  if (receiver_domain == nullptr) {
    own_receiver_domain = world->open_domain("decode");
    receiver_domain = own_receiver_domain.get();
  }
  if (sender_domain->capabilities().shared_sources) {
    const std::span<std::byte> all = Arena::whole();
    arena = sender_domain->register_memory(all.data(), all.size(), false, nullptr).value();
  }
  sender = sender_domain->open_endpoint().value();
  receiver = receiver_domain->open_endpoint().value();
  region = receiver_domain->register_memory(memory.data(), bytes, true, receiver.get()).value();
  remote = region->remote();
  peer = sender->insert(receiver->address()).value();
  (void)receiver->insert(sender->address()).value();
}

const Capabilities& Link::capabilities() const { return sender_domain->capabilities(); }

void Link::poll() {
  std::array<Completion, 16> batch;
  if (sender != nullptr) {
    const std::size_t count = sender->poll(batch);
    for (std::size_t i = 0; i < count; ++i) done.push_back(batch[i]);
  }
  if (receiver != nullptr) {
    const std::size_t count = receiver->poll(batch);
    for (std::size_t i = 0; i < count; ++i) seen.push_back(batch[i]);
  }
}

bool Link::until(const std::function<bool()>& when, std::chrono::milliseconds limit) {
  return run_until(
      *world, [&] { poll(); }, when, limit);
}

Status Link::post(const WriteRequest& request) {
  Status status;
  (void)until([&] {
    status = sender->write(peer, request);
    return status.code() != StatusCode::kAgain;
  });
  return status;
}

Status Link::post(const Bytes& source, std::uint64_t offset, std::uint64_t context,
                  bool delivery_complete, std::optional<std::uint64_t> data) {
  const LocalPiece local{source.data(), source.size()};
  const RemotePiece target = at(offset, source.size());
  return post(WriteRequest{.local = {&local, 1},
                           .remote = {&target, 1},
                           .context = context,
                           .delivery_complete = delivery_complete,
                           .remote_data = data});
}

Status Link::post(Bytes&& source, std::uint64_t offset, std::uint64_t context,
                  bool delivery_complete, std::optional<std::uint64_t> data) {
  kept.push_back(std::move(source));
  return post(std::as_const(kept.back()), offset, context, delivery_complete, data);
}

RemotePiece Link::at(std::uint64_t offset, std::uint64_t bytes) const {
  return {remote.base + offset, bytes, remote.key};
}

std::size_t Link::failed() const {
  return static_cast<std::size_t>(
      std::count_if(done.begin(), done.end(), [](const Completion& c) { return !c.status.ok(); }));
}

std::size_t Link::succeeded() const { return done.size() - failed(); }

bool Link::completed(std::uint64_t context) const {
  return std::any_of(done.begin(), done.end(), [&](const Completion& c) {
    return c.kind == CompletionKind::kWrite && c.context == context;
  });
}

}  // namespace kvd::fabric::contract
