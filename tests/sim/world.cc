#include "sim/world.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "proto/commit_record.h"
#include "proto/link_messages.h"
#include "transfer/wire.h"

namespace kvd::sim {
namespace {

constexpr std::uint64_t kCanary = 0xC5C5C5C5C5C5C5C5;

const bool kQuiet = [] {
  configure_log(LogLevel::kOff, LogFormat::kText, "test");
  return true;
}();

std::uint64_t key_of(const std::vector<TokenId>& prompt) {
  return static_cast<std::uint64_t>(prompt[0]) * 0x9E3779B97F4A7C15ull;
}

std::uint64_t word(std::uint64_t key, std::uint64_t row, std::uint64_t at) {
  std::uint64_t x = key ^ (row * 0xBF58476D1CE4E5B9ull) ^ (at * 0x94D049BB133111EBull);
  x ^= x >> 31;
  return (x * 0xD6E8FEB86659FD93ull) | 1;
}

std::uint64_t row_number(std::uint32_t layer, bool value, std::uint32_t head, std::uint32_t token) {
  return ((std::uint64_t{layer} * 2 + (value ? 1 : 0)) * 64 + head) * 65536 + token;
}

// Calls `visit(bytes of the row, its number, its token)` for tokens [begin, end) of layers of
// `group`.
template <typename Visit>
void for_rows(const kv::PagePool& pool, const std::vector<PageIndex>& pages, kv::LayerGroup group,
              std::uint32_t begin, std::uint32_t end, Visit visit) {
  const kv::KvLayout& layout = pool.layout();
  for (std::uint32_t token = begin; token < end; ++token) {
    std::byte* page = pool.page(pages[token / layout.page_size]);
    for (std::uint32_t layer = group.begin; layer < group.end; ++layer) {
      for (bool value : {false, true}) {
        for (std::uint32_t head = 0; head < layout.kv_heads; ++head) {
          visit(page + layout.offset(layer, value, head, token % layout.page_size),
                row_number(layer, value, head, token), token);
        }
      }
    }
  }
}

transfer::TransferOptions transfer_options(const WorldOptions& options,
                                           const std::string& fingerprint) {
  transfer::TransferOptions out = options.transfer;
  out.model = "m";
  out.fingerprint = fingerprint;
  out.providers = {"sim"};
  out.slots = options.slots;
  out.max_rooms = 256;
  return out;
}

}  // namespace

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

// --- prefill -------------------------------------------------------------------------------------

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

void Prefill::tick() {
  if (sender == nullptr || stopped) return;
  while (auto message = messenger->receive()) {
    if (sender->on_message(*message)) continue;
    if (message->envelope.type != proto::MessageType::kDescribe) continue;
    proto::Described described;
    described.role = "prefill";
    described.fingerprint = fingerprint;
    described.layout = transfer::to_info(world_->options.layout);
    described.providers = {"sim"};
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
}

TimePoint Prefill::next() const {
  if (sender == nullptr || stopped) return kNever;
  TimePoint next = sender->next_deadline();
  for (const auto& [room, job] : jobs_) next = std::min(next, job.due);
  return next;
}

void Prefill::start_compute(const transfer::PrefillJob& job) {
  if (jobs_.contains(job.room)) world_->violation("a room is computed twice");
  for (std::uint32_t token = static_cast<std::uint32_t>(job.prompt.size());
       token % world_->options.layout.page_size != 0; ++token) {
    const std::byte* row =
        pool->page(job.pages.back()) +
        world_->options.layout.offset(0, false, 0, token % world_->options.layout.page_size);
    if (*row != std::byte{0}) world_->violation("unused rows of the last page are not zero");
  }
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
  if (over) jobs_.erase(room);
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
  if (!outcomes.emplace(room, outcome).second) world_->violation("a room is over twice");
}

// --- decode --------------------------------------------------------------------------------------

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
  for (PageIndex page = 0; page < pool->page_count(); ++page) fill_canary(page);
  channel = world_->network.open(host, address);
  messenger = std::make_unique<control::Messenger>(channel.get(), self, &world_->clock, nullptr);
  domain = world_->fabric.open_domain(host);
  receiver = std::make_unique<transfer::KvReceiver>(
      transfer_options(world_->options, fingerprint), pool.get(),
      memory_.data() + pool->memory_bytes(), messenger.get(),
      std::vector<fabric::Domain*>{domain.get()}, &world_->clock, &world_->rng, nullptr, this);
  for (const std::string& prefill : prefills) receiver->add_prefill(prefill);
}

void Decode::kill() {
  if (receiver == nullptr) return;
  world_->fabric.kill(host);
  receiver.reset();
  domain.reset();
  messenger.reset();
  channel.reset();
  pool.reset();
  leases_.clear();
  waiting_.clear();
  sequences_.clear();
  stopped = false;
  for (auto& [id, request] : requests) {
    if (request.outcome == Outcome::kOpen) request.outcome = Outcome::kLost;
  }
}

bool Decode::ready(const std::string& prefill) const {
  if (receiver == nullptr) return false;
  for (const transfer::PrefillView& view : receiver->prefills()) {
    if (view.address == prefill) return view.state == transfer::LinkState::kReady;
  }
  return false;
}

void Decode::tick() {
  if (receiver == nullptr || stopped) return;
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
}

TimePoint Decode::next() const {
  if (receiver == nullptr || stopped) return kNever;
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
  waiting_.push_back({id, world_->clock.now(), world_->clock.now() + timeout, room});
  open_waiting();
  return id;
}

void Decode::open_waiting() {
  const TimePoint now = world_->clock.now();
  while (!waiting_.empty()) {
    const Waiting waiting = waiting_.front();
    Request& request = requests[waiting.request];
    if (request.outcome != Outcome::kOpen || waiting.deadline <= now) {
      if (request.outcome == Outcome::kOpen) request.outcome = Outcome::kRefused;
      waiting_.erase(waiting_.begin());
      continue;
    }
    const std::uint32_t pages = pool->layout().pages_for(request.prompt.size() + 16);
    auto lease = pool->lease(pages, now);
    if (!lease.ok()) {
      receiver->starving(pages, waiting.since);
      return;
    }
    waiting_.erase(waiting_.begin());
    Lease tracked;
    tracked.request = waiting.request;
    tracked.pages.assign(pool->pages(*lease).begin(), pool->pages(*lease).end());
    for (PageIndex page : tracked.pages) check_canary(page, "when it was leased");
    leases_[lease->value] = std::move(tracked);
    transfer::RoomRequest open;
    open.request = waiting.request;
    open.prompt = request.prompt;
    open.lease = *lease;
    open.deadline = waiting.deadline;
    open.room = waiting.room;
    if (const Status opened = receiver->open_room(request.prefill, std::move(open)); !opened.ok()) {
      request.outcome = Outcome::kRefused;
      request.why = opened;
      pool->release(*lease, kv::Proof::kNeverExposed);
      freed(*lease);
    }
  }
}

void Decode::abort(std::uint64_t id) {
  const auto it = requests.find(id);
  if (receiver == nullptr || it == requests.end() || it->second.outcome != Outcome::kOpen) return;
  it->second.outcome = Outcome::kAborted;
  receiver->abort(id, "the client went away");
}

void Decode::on_committed(transfer::CommittedRoom room) {
  Request& request = requests[room.request];
  if (request.outcome != Outcome::kOpen || ++request.reports != 1) {
    world_->violation("request " + std::to_string(room.request) + " is reported again");
  }
  request.outcome = Outcome::kCommitted;
  Lease& lease = leases_[room.lease.value];
  lease.committed = true;
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
  request.why = std::move(why);
  request.retryable = retryable;
}

void Decode::on_timings(std::uint64_t id, const transfer::RoomTimings&) {
  requests[id].timed = true;
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
  for (PageIndex page : leases_[lease.value].pages) fill_canary(page);
  leases_.erase(lease.value);
}

void Decode::fill_canary(PageIndex page) {
  std::memset(pool->page(page), static_cast<int>(kCanary & 0xff), pool->layout().page_bytes());
}

void Decode::check_canary(PageIndex page, const char* when) {
  const std::byte* bytes = pool->page(page);
  const std::byte canary{0xC5};
  const bool whole = std::all_of(bytes, bytes + pool->layout().page_bytes(),
                                 [&](std::byte byte) { return byte == canary; });
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

// After each event of the fabric.
void Decode::check_landings() {
  if (receiver == nullptr) return;
  check_first_words();
  check_slots();
}

// Slots change only while they are leased, and a record in one is of its lease.
void Decode::check_slots() {
  const std::byte* begin = memory_.data() + pool->memory_bytes();
  const std::size_t bytes = std::size_t{world_->options.slots} * proto::kSlotBytes;
  if (slots_seen_.size() == bytes && std::memcmp(slots_seen_.data(), begin, bytes) == 0) return;
  std::map<std::uint32_t, transfer::SlotView> leased;
  for (const transfer::SlotView& slot : receiver->slots()) leased[slot.slot] = slot;
  slots_seen_.resize(bytes);
  for (std::uint32_t slot = 0; slot < world_->options.slots; ++slot) {
    const std::byte* at = begin + std::size_t{slot} * proto::kSlotBytes;
    if (std::memcmp(slots_seen_.data() + (at - begin), at, proto::kSlotBytes) == 0) continue;
    const auto lease = leased.find(slot);
    const auto record = proto::decode_record(
        std::span<const std::byte, proto::kRecordBytes>(at, proto::kRecordBytes));
    const bool foreign =
        lease != leased.end() && record.ok() &&
        (record->room != lease->second.room || record->generation != lease->second.generation);
    // A lease clears its slot; everything else that changes one is a write.
    const bool cleared = std::all_of(at, at + proto::kSlotBytes,
                                     [](std::byte byte) { return byte == std::byte{0}; });
    if (!cleared && (lease == leased.end() || foreign)) {
      world_->violation("a write landed in slot " + std::to_string(slot) + " of " + name +
                        ", which belongs to " + (foreign ? "another room" : "nobody"));
    }
  }
  std::memcpy(slots_seen_.data(), begin, bytes);
}

// The first word of each layer of each page.
void Decode::check_first_words() {
  std::vector<const Lease*> owner(pool->page_count(), nullptr);
  std::vector<std::uint32_t> ordinal(pool->page_count(), 0);
  for (const auto& [id, lease] : leases_) {
    for (std::uint32_t i = 0; i < lease.pages.size(); ++i) {
      owner[lease.pages[i]] = &lease;
      ordinal[lease.pages[i]] = i;
    }
  }
  for (PageIndex page = 0; page < pool->page_count(); ++page) {
    for (std::uint32_t layer = 0; layer < pool->layout().layers; ++layer) {
      std::uint64_t value = 0;
      std::memcpy(&value, pool->page(page) + pool->layout().offset(layer, false, 0, 0), 8);
      if (value == kCanary) continue;
      bool allowed = owner[page] != nullptr;
      if (allowed) {
        const Request& request = requests[owner[page]->request];
        const std::uint32_t token = ordinal[page] * pool->layout().page_size;
        allowed = token < request.prompt.size() &&
                  value == word(key_of(request.prompt), row_number(layer, false, 0, token), 0);
      }
      if (!allowed) {
        world_->violation("a write landed in page " + std::to_string(page) + " of " + name +
                          ", which belongs to somebody else");
        return;
      }
    }
  }
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

// --- world ---------------------------------------------------------------------------------------

World::World(std::uint64_t seed, WorldOptions the_options)
    : options(std::move(the_options)),
      rng(seed),
      fabric(seed + 1, &clock, options.fabric),
      network(seed + 2, &clock, options.channel) {}

World::~World() = default;

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
  for (auto& prefill : prefills) prefill->tick();
  for (auto& decode : decodes) decode->tick();
}

bool World::step() {
  const bool moved = fabric.step();
  if (moved) {
    for (auto& decode : decodes) decode->check_landings();
  }
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
    if (!decode->receiver->idle() || decode->pool->counts().free != decode->pool->page_count()) {
      return false;
    }
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
