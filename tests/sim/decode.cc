#include <algorithm>
#include <cstring>

#include "proto/commit_record.h"
#include "sim/pattern.h"
#include "sim/world.h"

namespace kvd::sim {

Decode::Decode(World* world, std::string the_name)
    : name(std::move(the_name)), address(name + ":1"), world_(world) {
  memory_.resize(world->options.decode_pages * world->options.layout.page_bytes() +
                 std::size_t{world->options.slots} * proto::kSlotBytes);
}

Decode::~Decode() { kill(); }

void Decode::start() {
  const Incarnation self{world_->next_incarnation++};
  host = name + "#" + std::to_string(self.value);
  pool = std::make_unique<kv::PagePool>(world_->options.layout, memory_.data(),
                                        world_->options.decode_pages);
  owners_.assign(pool->page_count(), {});
  for (PageIndex page = 0; page < pool->page_count(); ++page) fill_canary(page);
  turn_.woken = true;
  channel = world_->network.open(host, address);
  messenger = std::make_unique<control::Messenger>(channel.get(), self, &world_->clock, nullptr);
  domain = world_->fabric.open_domain(host);
  std::vector<fabric::Domain*> domains{domain.get()};
  if (world_->options.local_is_refused) {
    other_domain =
        fabric::open_domain({.provider = "local", .source_address = "", .device = ""}).value();
    domains.push_back(other_domain.get());
  }
  receiver = std::make_unique<transfer::KvReceiver>(
      transfer_options(world_->options, fingerprint), pool.get(),
      memory_.data() + pool->memory_bytes(), messenger.get(), std::move(domains), &world_->clock,
      &world_->rng, nullptr, this);
  for (const std::string& prefill : prefills) receiver->add_prefill(prefill);
}

void Decode::kill() {
  if (receiver == nullptr) return;
  world_->fabric.kill(host);
  receiver.reset();
  other_domain.reset();
  domain.reset();
  messenger.reset();
  channel.reset();
  pool.reset();
  leases_.clear();
  records_.clear();
  waiting_.clear();
  sequences_.clear();
  stopped = false;
  for (auto& [id, request] : requests) {
    if (request.outcome == Outcome::kOpen) request.outcome = Outcome::kLost;
    world_->enter(id, Step::kOver);
  }
}

bool Decode::ready(const std::string& prefill) const {
  if (receiver == nullptr) return false;
  for (const transfer::PrefillView& view : receiver->prefills()) {
    if (view.address == prefill) return view.state == transfer::LinkState::kReady;
  }
  return false;
}

bool Decode::due() { return alive() && turn_.due(world_, host, stopped); }

void Decode::tick() {
  turn_.woken = false;
  turn_.next = kNever;
  if (receiver == nullptr || stopped) {
    turn_.woken = true;
    return;
  }
  while (auto message = messenger->receive()) receiver->on_message(*message);
  while (receiver->poll()) {
  }
  const TimePoint now = world_->clock.now();
  std::vector<Sequence> ended;
  for (const Sequence& sequence : sequences_) {
    if (sequence.end <= now) ended.push_back(sequence);
  }
  std::erase_if(sequences_, [&](const Sequence& sequence) { return sequence.end <= now; });
  for (const Sequence& sequence : ended) {
    check_prompt(requests[sequence.request], leases_[sequence.lease.value].pages,
                 "at the sequence's end");
    pool->release(sequence.lease, kv::Proof::kSequenceDone);
    freed(sequence.lease);
  }
  open_waiting();
  turn_.next = next_due();
}

TimePoint Decode::next() {
  if (receiver == nullptr || stopped) return kNever;
  if (!world_->options.only_due) turn_.next = next_due();
  return turn_.next;
}

TimePoint Decode::next_due() const {
  TimePoint next = receiver->next_deadline();
  for (const Sequence& sequence : sequences_) next = std::min(next, sequence.end);
  for (const Waiting& waiting : waiting_) {
    const TimePoint starved = waiting.since + world_->options.transfer.fence_after;
    next = std::min(next, world_->clock.now() < starved ? starved : waiting.deadline);
  }
  return next;
}

std::uint64_t Decode::request(const std::string& prefill, std::uint32_t tokens, Duration timeout,
                              RoomId room) {
  Request request;
  request.id = world_->next_request++;
  request.prefill = prefill;
  request.prompt.assign(tokens, 7);
  request.prompt[0] = static_cast<TokenId>(request.id);
  const std::uint64_t id = request.id;
  requests[id] = std::move(request);
  world_->owner_[id] = this;
  if (world_->on_step) world_->on_step(Step::kWaiting);
  turn_.woken = true;
  waiting_.push_back({id, world_->clock.now(), world_->clock.now() + timeout, room});
  open_waiting();
  return id;
}

void Decode::open_waiting() {
  const TimePoint now = world_->clock.now();
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    Request& request = requests[waiting.request];
    if (request.outcome == Outcome::kOpen && waiting.deadline > now) return false;
    if (request.outcome == Outcome::kOpen) request.outcome = Outcome::kRefused;
    world_->enter(waiting.request, Step::kOver);
    return true;
  });
  while (!waiting_.empty()) {
    const Waiting waiting = waiting_.front();
    const std::uint32_t pages =
        pool->layout().pages_for(requests[waiting.request].prompt.size() + 16);
    auto lease = pool->lease(pages, now);
    if (!lease.ok()) return fence_for(waiting, pages);
    waiting_.erase(waiting_.begin());
    open(waiting, *lease);
  }
}

void Decode::open(const Waiting& waiting, kv::LeaseId lease) {
  Request& request = requests[waiting.request];
  Lease& tracked = leases_[lease.value];
  tracked.request = waiting.request;
  tracked.pages.assign(pool->pages(lease).begin(), pool->pages(lease).end());
  for (std::uint32_t i = 0; i < tracked.pages.size(); ++i) {
    check_canary(tracked.pages[i], "when it was leased");
    owners_[tracked.pages[i]] = {lease.value, i};
  }
  transfer::RoomRequest room;
  room.request = waiting.request;
  room.prompt = request.prompt;
  room.lease = lease;
  room.deadline = waiting.deadline;
  room.room = waiting.room;
  if (const Status opened = receiver->open_room(request.prefill, std::move(room)); !opened.ok()) {
    request.outcome = Outcome::kRefused;
    request.why = opened;
    pool->release(lease, kv::Proof::kNeverExposed);
    return freed(lease);
  }
  ++world_->opened;
  world_->enter(waiting.request, Step::kOpening);
}

void Decode::fence_for(const Waiting& waiting, std::uint32_t pages) {
  const std::uint32_t free = pool->counts().free;
  receiver->starving(pages, waiting.since);
  if (pool->counts().free == free) return;
  ++world_->fenced;
  on_pages_freed();
}

void Decode::abort(std::uint64_t id) {
  const auto it = requests.find(id);
  if (receiver == nullptr || it == requests.end() || it->second.outcome != Outcome::kOpen) return;
  it->second.outcome = Outcome::kAborted;
  world_->enter(id, it->second.step == Step::kWaiting ? Step::kOver : Step::kDraining);
  const std::uint32_t free = pool->counts().free;
  receiver->abort(id, "the client went away");
  if (pool->counts().free != free) on_pages_freed();
  turn_.woken = true;
}

void Decode::on_committed(transfer::CommittedRoom room) {
  Request& request = requests[room.request];
  if (request.outcome != Outcome::kOpen || ++request.reports != 1) {
    world_->violation("request " + std::to_string(room.request) + " is reported again");
  }
  request.outcome = Outcome::kCommitted;
  Lease& lease = leases_[room.lease.value];
  lease.committed = true;
  world_->enter(request.id, Step::kDecoding);
  check_prompt(request, lease.pages, "at its commit");
  if (room.first.id != static_cast<TokenId>(request.prompt.size())) {
    world_->violation("the first token is not the one that was drawn");
  }
  sequences_.push_back(
      {request.id, room.lease, world_->clock.now() + world_->options.sequence_time});
  request.committed = std::move(room);
}

void Decode::on_failed(std::uint64_t id, Status why, bool retryable) {
  Request& request = requests[id];
  if (request.outcome != Outcome::kOpen || ++request.reports != 1) {
    world_->violation("request " + std::to_string(id) + " is reported again");
  }
  request.outcome = Outcome::kFailed;
  world_->enter(id, Step::kDraining);
  request.why = std::move(why);
  request.retryable = retryable;
}

void Decode::on_timings(std::uint64_t id, const transfer::RoomTimings& timings) {
  requests[id].timed = true;
  requests[id].timings = timings;
}

void Decode::on_pages_freed() {
  std::set<std::uint64_t> live;
  for (const kv::LeaseInfo& lease : pool->leases()) live.insert(lease.id.value);
  std::vector<std::uint64_t> gone;
  for (const auto& [id, lease] : leases_) {
    if (!live.contains(id)) gone.push_back(id);
  }
  for (std::uint64_t id : gone) freed(kv::LeaseId{id});
}

void Decode::freed(kv::LeaseId lease) {
  const Lease& gone = leases_[lease.value];
  for (PageIndex page : gone.pages) {
    fill_canary(page);
    owners_[page] = {};
  }
  world_->enter(gone.request, Step::kOver);
  leases_.erase(lease.value);
}

void Decode::fill_canary(PageIndex page) {
  std::memset(pool->page(page), static_cast<int>(kCanary), pool->layout().page_bytes());
}

void Decode::check_canary(PageIndex page, const char* when) {
  const std::byte* bytes = pool->page(page);
  // Each byte is the first one, because each is its neighbour.
  const bool whole =
      *bytes == kCanary && std::memcmp(bytes, bytes + 1, pool->layout().page_bytes() - 1) == 0;
  if (!whole) {
    world_->violation("bytes landed in free page " + std::to_string(page) + " of " + name +
                      ", seen " + when);
    fill_canary(page);
  }
}

void Decode::check_prompt(const Request& request, const std::vector<PageIndex>& pages,
                          const char* when) {
  const auto tokens = static_cast<std::uint32_t>(request.prompt.size());
  const std::uint32_t end = pool->layout().pages_for(tokens) * pool->layout().page_size;
  const std::size_t words = pool->layout().head_dim * 2 / 8;
  const std::uint64_t key = key_of(request.prompt);
  bool good = true;
  for_rows(*pool, pages, {0, pool->layout().layers}, 0, end,
           [&](const std::byte* row, std::uint64_t number, std::uint32_t token) {
             for (std::size_t i = 0; i < words; ++i) {
               std::uint64_t value = 0;
               std::memcpy(&value, row + i * 8, 8);
               good = good && value == (token < tokens ? word(key, number, i) : 0);
             }
           });
  if (!good) {
    world_->violation("wrong bytes in the pages of request " + std::to_string(request.id) + " " +
                      when);
  }
}

void Decode::check_landing(const fabric::SimFabric::Landing& landing) {
  const std::byte* at = landing.at;
  if (receiver == nullptr || at < memory_.data() || at >= memory_.data() + memory_.size()) return;
  const std::byte* slots = pool->memory() + pool->memory_bytes();
  if (at >= slots) {
    return check_slot(static_cast<std::uint32_t>((at - slots) / proto::kSlotBytes));
  }
  const std::uint64_t page_bytes = pool->layout().page_bytes();
  const std::byte* end = at + landing.bytes;
  while (at < end) {
    const auto page = static_cast<PageIndex>((at - pool->memory()) / page_bytes);
    const std::byte* stop = std::min<const std::byte*>(end, pool->page(page) + page_bytes);
    if (landing.stale ? !may_write(page) : !may_land(page, at, stop)) {
      world_->violation("a write landed in page " + std::to_string(page) + " of " + name +
                        ", which belongs to " +
                        (owners_[page].lease == 0 ? "nobody" : "somebody else"));
    }
    at = stop;
  }
}

bool Decode::may_write(PageIndex page) const {
  const auto lease = leases_.find(owners_[page].lease);
  return lease != leases_.end() && !lease->second.committed;
}

// What landed at [at, end) of a page is what its room writes there, and the room still may.
bool Decode::may_land(PageIndex page, const std::byte* at, const std::byte* end) const {
  const auto lease = leases_.find(owners_[page].lease);
  if (lease == leases_.end() || lease->second.committed) return false;
  const Request& request = requests.at(lease->second.request);
  const kv::KvLayout& layout = pool->layout();
  const std::uint64_t key = key_of(request.prompt);
  const std::uint64_t row_bytes = layout.head_dim * 2;
  std::uint64_t offset = static_cast<std::uint64_t>(at - pool->page(page));
  while (at < end) {
    const std::uint64_t row = offset / row_bytes, half = row / (layout.page_size * layout.kv_heads);
    const auto head = static_cast<std::uint32_t>(row / layout.page_size % layout.kv_heads);
    const auto token = static_cast<std::uint32_t>(row % layout.page_size) +
                       owners_[page].ordinal * layout.page_size;
    const std::uint64_t number =
        row_number(static_cast<std::uint32_t>(half / 2), half % 2 != 0, head, token);
    for (std::uint64_t i = offset % row_bytes / 8; i < row_bytes / 8 && at < end; ++i) {
      std::uint64_t value = 0;
      std::memcpy(&value, at, 8);
      if (value != (token < request.prompt.size() ? word(key, number, i) : 0)) return false;
      at += 8;
      offset += 8;
    }
  }
  return true;
}

// Something landed in a slot: it is leased, and a record in it is of its lease.
void Decode::check_slot(std::uint32_t slot) {
  const auto leased = receiver->slots();
  const auto lease =
      std::find_if(leased.begin(), leased.end(),
                   [&](const transfer::SlotView& view) { return view.slot == slot; });
  const std::byte* at =
      pool->memory() + pool->memory_bytes() + std::size_t{slot} * proto::kSlotBytes;
  const auto record = proto::decode_record(
      std::span<const std::byte, proto::kRecordBytes>(at, proto::kRecordBytes));
  // A room whose pages went with OpenRoom has no name before RoomOpened: but a name has one lease.
  const auto is_its_own = [&] {
    if (lease->room || record->room.value == 0) return record->room == lease->room;
    const std::pair<std::uint32_t, std::uint32_t> place(slot, lease->generation);
    return records_.try_emplace(record->room, place).first->second == place;
  };
  const bool foreign = lease != leased.end() && record.ok() &&
                       (!is_its_own() || record->generation != lease->generation);
  if (lease == leased.end() || foreign) {
    world_->violation("a write landed in slot " + std::to_string(slot) + " of " + name +
                      ", which belongs to " + (foreign ? "another room" : "nobody"));
  }
}

bool Decode::quiet() const {
  const kv::PageCounts counts = pool->counts();
  const bool fence = world_->fenced_by_close();
  if (fence) return receiver->idle() && counts.free == pool->page_count();
  if (counts.free + counts.quarantined != pool->page_count()) return false;
  return std::all_of(requests.begin(), requests.end(),
                     [](const auto& entry) { return entry.second.outcome != Outcome::kOpen; });
}

void Decode::check_all() {
  if (receiver == nullptr) return;
  std::vector<bool> leased(pool->page_count(), false);
  for (const auto& [id, lease] : leases_) {
    for (PageIndex page : lease.pages) leased[page] = true;
  }
  for (PageIndex page = 0; page < pool->page_count(); ++page) {
    if (!leased[page]) check_canary(page, "at the end");
  }
}

}  // namespace kvd::sim
