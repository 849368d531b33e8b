#include "sim/world.h"

#include <algorithm>

#include "base/log.h"

namespace kvd::sim {
namespace {

const bool kQuiet = [] {
  configure_log(LogLevel::kOff, LogFormat::kText, "test");
  return true;
}();

}  // namespace

std::vector<std::string> providers_of(const WorldOptions& options) {
  if (options.local_is_refused) return {"local", "sim"};
  return {options.fabric.target_pulls ? "local" : "sim"};
}

transfer::TransferOptions transfer_options(const WorldOptions& options,
                                           const std::string& fingerprint) {
  transfer::TransferOptions out = options.transfer;
  out.model = "m";
  out.fingerprint = fingerprint;
  out.providers = providers_of(options);
  out.slots = options.slots;
  out.max_rooms = 256;
  return out;
}

kv::KvLayout small_layout() {
  kv::KvLayout layout;
  layout.layers = 4;
  layout.kv_heads = 1;
  layout.head_dim = 8;
  return layout;
}

kv::KvLayout wide_layout() {
  kv::KvLayout layout;
  layout.layers = 8;
  layout.kv_heads = 8;
  layout.head_dim = 64;
  return layout;
}

kv::KvLayout tiny_layout() {
  kv::KvLayout layout;
  layout.layers = 2;
  layout.kv_heads = 1;
  layout.head_dim = 8;
  return layout;
}

bool Turn::due(World* world, const std::string& host, bool stopped) {
  if (stopped) {
    woken = true;
    return false;
  }
  const bool completions = world->fabric.take_woken(host);
  const bool messages = world->network.take_woken(host);
  woken = woken || completions || messages;
  return woken || next <= world->clock.now();
}

World::World(std::uint64_t seed, WorldOptions the_options)
    : options(std::move(the_options)),
      rng(seed),
      fabric(seed + 1, &clock, options.fabric),
      network(seed + 2, &clock, options.channel) {
  fabric.on_pulled([this](const fabric::SimFabric::Landing& landing) {
    for (auto& decode : decodes) decode->check_landing(landing);
  });
}

World::~World() {
  decodes.clear();
  prefills.clear();
}

Prefill& World::add_prefill() {
  prefills.push_back(std::make_unique<Prefill>(this, "p" + std::to_string(prefills.size())));
  prefills.back()->start();
  return *prefills.back();
}

Decode& World::add_decode() {
  decodes.push_back(std::make_unique<Decode>(this, "d" + std::to_string(decodes.size())));
  for (const auto& prefill : prefills) decodes.back()->prefills.insert(prefill->address);
  decodes.back()->start();
  return *decodes.back();
}

void World::tick() {
  for (auto& prefill : prefills) {
    if (prefill->due() || !options.only_due) prefill->tick();
  }
  for (auto& decode : decodes) {
    if (decode->due() || !options.only_due) decode->tick();
  }
}

void World::check_landed() {
  for (const fabric::SimFabric::Landing& landing : fabric.landed()) {
    for (auto& decode : decodes) decode->check_landing(landing);
  }
}

void World::drop_connections(const std::string& host) {
  fabric.drop_connections(host);
  check_landed();
}

void World::enter(std::uint64_t id, Step step) {
  const auto owner = owner_.find(id);
  if (owner == owner_.end()) return;
  const auto request = owner->second->requests.find(id);
  if (request == owner->second->requests.end() || request->second.step >= step) return;
  request->second.step = step;
  if (on_step && step != Step::kOver) on_step(step);
}

bool World::step() {
  const bool moved = fabric.step();
  if (moved) check_landed();
  if (moved || network.step()) {
    tick();
    return true;
  }
  TimePoint next = std::min(fabric.next_event(), network.next_event());
  for (auto& prefill : prefills) next = std::min(next, prefill->next());
  for (auto& decode : decodes) next = std::min(next, decode->next());
  if (!script_.empty()) next = std::min(next, script_.begin()->first);
  if (next == kNever) return false;
  // A tick below the grain of any protocol step keeps a run finite if somebody is always due.
  constexpr Duration kGrain{1'000};
  clock.advance(std::max(kGrain, next - clock.now()));
  while (!script_.empty() && script_.begin()->first <= clock.now()) {
    const auto action = std::move(script_.begin()->second);
    script_.erase(script_.begin());
    action();
  }
  tick();
  return true;
}

void World::run(Duration time) {
  const TimePoint end = clock.now() + time;
  run_until([&] { return clock.now() >= end; }, time + Duration(1));
}

bool World::run_until(const std::function<bool()>& done, Duration limit) {
  const TimePoint end = clock.now() + limit;
  while (!done()) {
    if (clock.now() >= end || !step()) return done();
  }
  return true;
}

bool World::links_ready() {
  for (auto& decode : decodes) {
    for (auto& prefill : prefills) {
      if (!decode->ready(prefill->address)) return false;
    }
  }
  return true;
}

bool World::quiet() {
  for (auto& prefill : prefills) {
    if (!prefill->alive()) continue;
    if (!prefill->sender->idle() || prefill->pool->counts().free != prefill->pool->page_count()) {
      return false;
    }
  }
  for (auto& decode : decodes) {
    if (!decode->alive()) continue;
    if (!decode->quiet()) return false;
  }
  return true;
}

void World::check_end() {
  if (!quiet()) violation("rooms, pages or quarantine are left at the end");
  for (auto& decode : decodes) {
    decode->check_all();
    for (const auto& [id, request] : decode->requests) {
      if (request.outcome == Outcome::kOpen) {
        violation("request " + std::to_string(id) + " has no outcome");
      }
    }
  }
}

void World::violation(std::string text) {
  if (violations_.size() < 20) {
    violations_.push_back("at " + std::to_string(clock.now().ns) + " ns: " + std::move(text));
  }
}

void World::at(TimePoint due, std::function<void()> action) {
  script_.emplace(due, std::move(action));
}

}  // namespace kvd::sim
