#include <algorithm>
#include <cstring>
#include <utility>

#include "proto/link_messages.h"
#include "sim/pattern.h"
#include "sim/world.h"
#include "transfer/wire.h"

namespace kvd::sim {

Prefill::Prefill(World* world, std::string the_name)
    : name(std::move(the_name)), address(name + ":1"), world_(world) {
  memory_.resize(world->options.prefill_pages * world->options.layout.page_bytes());
}

Prefill::~Prefill() { kill(); }

void Prefill::start() {
  const Incarnation self{world_->next_incarnation++};
  host = name + "#" + std::to_string(self.value);
  pool = std::make_unique<kv::PagePool>(world_->options.layout, memory_.data(),
                                        world_->options.prefill_pages);
  channel = world_->network.open(host, address);
  messenger = std::make_unique<control::Messenger>(channel.get(), self, &world_->clock, nullptr);
  domain = world_->fabric.open_domain(host);
  sender = std::make_unique<transfer::KvSender>(
      transfer_options(world_->options, fingerprint), pool.get(), messenger.get(),
      std::vector<fabric::Domain*>{domain.get()}, &world_->clock, &world_->rng, nullptr, this);
  turn_.woken = true;
}

void Prefill::kill() {
  if (sender == nullptr) return;
  world_->fabric.kill(host);
  sender.reset();
  domain.reset();
  messenger.reset();
  channel.reset();
  pool.reset();
  jobs_.clear();
  stopped = false;
}

bool Prefill::due() { return alive() && turn_.due(world_, host, stopped); }

void Prefill::tick() {
  const bool woken = std::exchange(turn_.woken, false);
  turn_.next = kNever;
  if (sender == nullptr || stopped) {
    turn_.woken = true;
    return;
  }
  while (auto message = messenger->receive()) {
    if (sender->on_message(*message)) continue;
    if (message->envelope.type != proto::MessageType::kDescribe) continue;
    proto::Described described;
    described.role = "prefill";
    described.fingerprint = fingerprint;
    described.layout = transfer::to_info(world_->options.layout);
    described.providers = providers_of(world_->options);
    if (world_->options.only_local_in_common) described.providers = {"local"};
    described.scope = fabric::local_scope();
    (void)messenger->send(message->from, message->envelope.from, described);
  }
  std::vector<RoomId> due;
  for (const auto& [room, job] : jobs_) {
    if (job.due <= world_->clock.now()) due.push_back(room);
  }
  for (RoomId room : due) {
    if (const auto it = jobs_.find(room); it != jobs_.end()) advance(&it->second);
  }
  while (sender->poll()) {
  }
  turn_.next = next_due(woken || !due.empty());
}

TimePoint Prefill::next() {
  if (sender == nullptr || stopped) return kNever;
  if (!world_->options.only_due) turn_.next = next_due(true);
  return turn_.next;
}

TimePoint Prefill::next_due(bool moved) {
  const TimePoint now = world_->clock.now();
  TimePoint next = sender->next_deadline();
  // While writes are under way it asks for a turn each millisecond.
  constexpr Duration kTurn{1'000'000};
  constexpr int kSlowest = 5;
  if (moved) still_ = 0;
  if (world_->options.only_due && next == now + kTurn) {
    next = now + kTurn * (1 << still_);
    still_ = std::min(still_ + 1, kSlowest);
  }
  for (const auto& [room, job] : jobs_) next = std::min(next, job.due);
  return next;
}

void Prefill::start_compute(transfer::PrefillJob job) {
  if (jobs_.contains(job.room)) world_->violation("a room is computed twice");
  for (std::uint32_t token = static_cast<std::uint32_t>(job.prompt.size());
       token % world_->options.layout.page_size != 0; ++token) {
    const std::byte* row =
        pool->page(job.pages.back()) +
        world_->options.layout.offset(0, false, 0, token % world_->options.layout.page_size);
    if (*row != std::byte{0}) world_->violation("unused rows of the last page are not zero");
  }
  world_->enter(static_cast<std::uint64_t>(job.prompt[0]), Step::kComputing);
  jobs_[job.room] = {job, world_->clock.now() + world_->options.chunk_time};
}

// One layer group of one chunk, as the engine reports them.
void Prefill::advance(Job* job) {
  const RoomId room = job->job.room;
  if (job->cancelled || world_->rng.chance(world_->options.engine_fails)) {
    const bool cancelled = job->cancelled;
    jobs_.erase(room);
    if (cancelled) return sender->compute_stopped(room);
    return sender->compute_failed(room, internal_error("the fake engine failed"));
  }
  const auto tokens = static_cast<std::uint32_t>(job->job.prompt.size());
  const bool streams = !job->job.groups.empty();
  const std::uint32_t end = std::min(tokens, job->done + world_->options.chunk);
  const kv::LayerGroup group =
      streams ? job->job.groups[job->group] : kv::LayerGroup{0, world_->options.layout.layers};
  const std::uint64_t key = key_of(job->job.prompt);
  const std::size_t words = world_->options.layout.head_dim * 2 / 8;
  for_rows(*pool, job->job.pages, group, job->done, end,
           [&](std::byte* row, std::uint64_t number, std::uint32_t) {
             for (std::size_t i = 0; i < words; ++i) {
               const std::uint64_t value = word(key, number, i);
               std::memcpy(row + i * 8, &value, 8);
             }
           });
  job->due = world_->clock.now() + world_->options.chunk_time;
  const std::uint32_t begin = job->done;
  const bool chunk_ends = !streams || ++job->group == job->job.groups.size();
  if (chunk_ends) {
    job->group = 0;
    job->done = end;
  }
  const bool over = chunk_ends && end == tokens;
  const auto request = static_cast<std::uint64_t>(job->job.prompt[0]);
  if (over) jobs_.erase(room);
  world_->enter(request, over ? Step::kClosing : streams ? Step::kWriting : Step::kComputing);
  if (streams) sender->layers_ready(room, group, begin, end);
  if (over) {
    SampledToken first;
    first.id = static_cast<TokenId>(tokens);
    sender->computed(room, first, Duration(0), world_->options.chunk_time);
  }
}

void Prefill::cancel_compute(RoomId room) {
  const auto it = jobs_.find(room);
  if (it == jobs_.end()) return world_->violation("a room that is not computed is cancelled");
  if (world_->options.cancel_time.count() == 0) {
    jobs_.erase(it);
    return sender->compute_stopped(room);
  }
  it->second.cancelled = true;
  it->second.due = world_->clock.now() + world_->options.cancel_time;
}

void Prefill::room_over(RoomId room, const transfer::SenderOutcome& outcome) {
  if (jobs_.contains(room)) world_->violation("a room is over while the engine has its pages");
  const auto [known, first] = outcomes.emplace(room, outcome);
  // The router's half may expire before decode's comes; only then is there a second end.
  const bool expired =
      known->second.status.code() == StatusCode::kDeadline && known->second.prompt_tokens == 0;
  if (!first && !expired) world_->violation("a room is over twice");
  known->second = outcome;
}

}  // namespace kvd::sim
