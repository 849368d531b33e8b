#include "kvd-bench/pages_receiver.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <functional>
#include <unordered_map>

#include "control/zmq_channel.h"
#include "device/host_buffer.h"
#include "kvd-bench/forked_side.h"
#include "kvd-bench/pages_domain.h"
#include "kvd-bench/peer_side.h"
#include "node/event_loop.h"
#include "peer/page_sets.h"
#include "peer/provider_choice.h"
#include "peer/raw_peer.h"
#include "probe/pattern.h"
#include "probe/plain_writes.h"
#include "proto/commit_record.h"
#include "transfer/kv_receiver.h"

namespace kvd::tools {
namespace {

// While plain bytes move the control channel is looked at so rarely that it is not measured.
constexpr Duration kControlInterval{200'000};

double own_cpu_ns() {
  timespec ts{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts) != 0) return 0;
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

constexpr std::uint32_t kMostRequests = 65536;  // of a round: what a far side keeps

double to_double(Duration duration) { return static_cast<double>(duration.count()); }

}  // namespace

struct PagesPair::Impl final : transfer::ReceiverHost {
  // A loop's turn that is made of functions.
  struct Task final : node::LoopTask {
    explicit Task(Impl* owner) : impl(owner) {}
    bool step() override { return impl->step(); }
    void wait_fds(std::vector<int>* out) const override { impl->wait_fds(out); }
    bool may_wait() override { return impl->may_wait(); }
    TimePoint next_deadline() const override;
    bool finished() const override { return impl->finished(); }
    Impl* impl;
  };
  struct Open {
    TimePoint intended;
    kv::LeaseId lease;
  };
  struct Got {
    RoomId room;
    TimePoint intended, validated, visible;
    Duration commit{0}, digest{0};
    std::uint32_t pages = 0;
  };
  enum class Mode { kAnswer, kConnect, kRequests, kPlain };

  explicit Impl(const PagesPlan& the_plan) : plan(the_plan), loop(&clock, loop_options(the_plan)) {}
  static node::LoopOptions loop_options(const PagesPlan& plan) {
    node::LoopOptions out;
    out.always_spin = plan.options.spin;
    return out;
  }

  Status meet_peer();
  Status start_far_side(bool isolated);
  Status open();
  Status connect();
  Status run(Mode mode);
  Status order(Order what, const probe::PlainOrder& plain = {});
  Result<CpuTimes> cpu();
  Status collect(KvRound* round);
  RequestTimes times_of(const Got& one, const SentTimes& sent) const;
  Duration half_round_trip() const { return receiver->prefills().front().round_trip / 2; }

  bool step();
  bool step_plain();
  bool step_kv();
  bool take_messages();
  void open_requests();
  bool open_one(TimePoint intended);
  void wait_fds(std::vector<int>* out) const;
  bool may_wait();
  bool finished() const;
  void check_pages(const transfer::CommittedRoom& room);

  void on_committed(transfer::CommittedRoom room) override;
  void on_failed(std::uint64_t, Status why, bool) override {
    if (failure.ok()) failure = std::move(why);
  }
  void on_timings(std::uint64_t, const transfer::RoomTimings&) override {}
  void on_pages_freed() override {}
  proto::Load load() override { return {}; }

  PagesPlan plan;
  SteadyClock clock;
  node::EventLoop loop;
  Rng rng{secure_random_u64()};
  Rng lengths{7};
  std::string provider;
  MetPeer peer;         // --peer; else empty
  std::string prefill;  // control address of the far side
  const std::vector<TokenId> prompt = std::vector<TokenId>(plan.tokens.longest(), 1);

  device::HostBuffer buffer;
  std::unique_ptr<kv::PagePool> pool;
  std::unique_ptr<PageSets> sets;
  std::unique_ptr<fabric::Domain> domain;
  std::unique_ptr<probe::PlainTarget> plain;
  std::unique_ptr<control::Channel> own_channel;
  std::unique_ptr<control::Messenger> own_messenger;
  control::Channel* channel = nullptr;  // of the peer, or our own
  control::Messenger* messenger = nullptr;
  std::unique_ptr<FarSide> far;
  std::unique_ptr<transfer::KvReceiver> receiver;
  ColdTimes cold;

  Mode mode = Mode::kConnect;
  Status failure;
  bool landed = false, verify = false;
  TimePoint deadline = kNever;
  TimePoint began{0}, ended{0};
  std::uint32_t wanted = 0, concurrency = 0, started = 0;
  Duration gap{0};  // between intended starts; 0: closed loop
  std::uint64_t next_request = 1;
  std::unordered_map<std::uint64_t, Open> open_rooms;
  std::vector<Got> got;
  TimePoint next_control{0};
  std::uint64_t verified = 0, runs = 0;
};

TimePoint PagesPair::Impl::Task::next_deadline() const {
  TimePoint next = std::min(impl->deadline, impl->far->next_deadline());
  if (impl->mode == Mode::kPlain) return next;
  next = std::min(next, impl->receiver->next_deadline());
  if (impl->gap.count() != 0 && impl->started < impl->wanted) {
    next = std::min(next, impl->began + impl->gap * impl->started);
  }
  return next;
}

// Who is there decides what carries the pages.
Status PagesPair::Impl::meet_peer() {
  PagesOptions& o = plan.options;
  const auto address = parse_host_port(o.peer);
  if (!address.ok()) return address.status().with_context("--peer");
  if (o.fabric_addr.empty()) {
    const auto source = source_towards(*address);
    if (!source.ok()) return source.status();
    o.fabric_addr = *source;
  }
  const ProviderWish wish{o.provider, o.device, o.fabric_addr, false};
  KVD_RETURN_IF_ERROR(check_provider(wish));
  auto met = meet_serve(o, &clock);
  if (!met.ok()) return met.status();
  peer = std::move(*met);
  const auto choice = choose_between(wish, peer.described);
  if (!choice.ok()) return choice.status();
  provider = choice->name;
  channel = peer.channel.get();
  messenger = peer.messenger.get();
  return {};
}

Status PagesPair::Impl::start_far_side(bool isolated) {
  if (!plan.options.peer.empty()) {
    KVD_RETURN_IF_ERROR(meet_peer());
    far = peer_sender(plan, provider, isolated, &peer, &clock);
    return {};
  }
  if (plan.options.fabric_addr.empty()) plan.options.fabric_addr = "127.0.0.1";
  auto chosen = choose_pages_provider(plan.options);
  if (!chosen.ok()) return chosen.status();
  provider = *chosen;
  auto forked = fork_sender(plan, provider, isolated);
  if (!forked.ok()) return forked.status();
  far = std::move(*forked);
  return {};
}

Status PagesPair::Impl::open() {
  const std::uint64_t page_bytes = plan.layout.page_bytes();
  const transfer::TransferOptions options = transfer_options(sender_spec(plan, false), provider);
  const std::uint64_t slots = std::uint64_t{proto::kSlotBytes} * options.slots;
  auto memory = device::HostBuffer::allocate(plan.pool_pages * page_bytes + slots);
  if (!memory.ok()) return memory.status();
  buffer = std::move(*memory);
  std::memset(buffer.data(), 0xa5, buffer.size());
  pool = std::make_unique<kv::PagePool>(plan.layout, buffer.data(), plan.pool_pages);
  Rng places(plan.options.seed);
  sets =
      std::make_unique<PageSets>(pool.get(), plan.sets, plan.pages_each, plan.options.concurrency,
                                 plan.options.fragmentation, &places, clock.now());
  auto opened = fabric::open_domain({provider, plan.options.fabric_addr, plan.options.device});
  if (!opened.ok()) return opened.status();
  domain = std::move(*opened);
  const TimePoint before = clock.now();
  auto target = probe::PlainTarget::open(domain.get(), buffer.data(), pool->memory_bytes());
  if (!target.ok()) return target.status();
  plain = std::move(*target);
  cold.register_ns = to_double(clock.now() - before);
  if (channel == nullptr) {
    auto dialler = control::open_zmq_channel({});
    if (!dialler.ok()) return dialler.status();
    own_channel = std::move(*dialler);
    channel = own_channel.get();
    own_messenger = std::make_unique<control::Messenger>(channel, Incarnation{secure_random_u63()},
                                                         &clock, nullptr);
    messenger = own_messenger.get();
  }
  receiver = std::make_unique<transfer::KvReceiver>(
      options, pool.get(), buffer.data() + pool->memory_bytes(), messenger,
      std::vector<fabric::Domain*>{domain.get()}, &clock, &rng, nullptr, this);
  return {};
}

Status PagesPair::Impl::connect() {
  KVD_RETURN_IF_ERROR(far->begin({plain->address(), plain->region(), pool->memory_bytes()}));
  KVD_RETURN_IF_ERROR(run(Mode::kAnswer));
  if (const auto writer = far->plain_address(); !writer.empty()) {
    KVD_RETURN_IF_ERROR(plain->insert(writer));
  }
  prefill = far->control_address();
  const TimePoint before = clock.now();
  receiver->add_prefill(prefill);
  KVD_RETURN_IF_ERROR(run(Mode::kConnect));
  cold.connect_ns = to_double(clock.now() - before);
  return {};
}

// The far side's own reason, where it has one, is the better one.
Status PagesPair::Impl::run(Mode what) {
  mode = what;
  failure = Status();
  deadline = clock.now() + plan.options.timeout;
  Task task(this);
  loop.run(task);
  if (failure.ok() || far->failure().ok()) return failure;
  return far->failure();
}

Status PagesPair::Impl::order(Order what, const probe::PlainOrder& order) {
  KVD_RETURN_IF_ERROR(far->give(what, order));
  return run(Mode::kAnswer);
}

Result<CpuTimes> PagesPair::Impl::cpu() {
  KVD_RETURN_IF_ERROR(order(Order::kSample));
  return CpuTimes{far->cpu_ns(), own_cpu_ns()};
}

bool PagesPair::Impl::step() {
  if (clock.now() >= deadline) {
    failure = {StatusCode::kDeadline, mode == Mode::kConnect ? "no link within --timeout"
                                      : mode == Mode::kAnswer
                                          ? "the sending side did not answer within --timeout"
                                          : "the round did not end within --timeout"};
    if (mode == Mode::kConnect) {
      for (const transfer::PrefillView& view : receiver->prefills()) {
        if (!view.why.ok()) failure = view.why;
      }
    }
    return true;
  }
  const bool busy = mode == Mode::kPlain ? step_plain() : step_kv();
  if (failure.ok()) failure = far->failure();
  return busy;
}

bool PagesPair::Impl::take_messages() {
  bool busy = false;
  while (auto message = messenger->receive()) {
    busy = true;
    if (!far->take(*message)) (void)receiver->on_message(*message);
  }
  // A process of ours that does not use messages costs a system call to look at.
  if (mode != Mode::kAnswer && !far->uses_messages()) return busy;
  return far->step() || busy;
}

bool PagesPair::Impl::step_plain() {
  bool busy = false;
  if (!landed) {
    landed = plain->step(&busy);
    if (landed) ended = clock.now();
  } else {
    (void)plain->step(&busy);
  }
  if (!plain->health().ok()) failure = plain->health();
  if (!far->uses_messages()) return busy;
  const TimePoint now = clock.now();
  if (now < next_control) return busy;
  next_control = now + kControlInterval;
  return take_messages() || busy;
}

bool PagesPair::Impl::step_kv() {
  bool busy = take_messages();
  busy = receiver->poll() || busy;
  if (mode == Mode::kRequests) open_requests();
  return busy;
}

void PagesPair::Impl::open_requests() {
  while (failure.ok() && started < wanted) {
    const TimePoint now = clock.now();
    if (gap.count() == 0) {
      if (open_rooms.size() >= concurrency || !open_one(now)) return;
    } else {
      const TimePoint intended = began + gap * started;
      // One that finds no pages waits its turn, and its clock runs.
      if (intended > now || !open_one(intended)) return;
    }
  }
}

bool PagesPair::Impl::open_one(TimePoint intended) {
  const std::uint32_t tokens = plan.tokens.draw(&lengths);
  transfer::RoomRequest request;
  auto lease = pool->lease(plan.layout.pages_for(tokens), clock.now());
  if (!lease.ok()) return false;
  request.request = next_request++;
  request.prompt.assign(prompt.begin(), prompt.begin() + tokens);
  request.lease = *lease;
  request.deadline = clock.now() + plan.options.timeout;
  if (verify) {
    for (const PageIndex page : pool->pages(*lease)) {
      std::memset(pool->page(page), 0xee, plan.layout.page_bytes());
    }
  }
  open_rooms[request.request] = {intended, *lease};
  ++started;
  if (Status opened = receiver->open_room(prefill, std::move(request)); !opened.ok()) {
    failure = std::move(opened);
  }
  return true;
}

void PagesPair::Impl::on_committed(transfer::CommittedRoom room) {
  const TimePoint now = clock.now();
  const auto it = open_rooms.find(room.request);
  got.push_back(
      {room.room, it->second.intended, room.validated, now, room.commit, room.digest, room.pages});
  open_rooms.erase(it);
  ended = now;
  if (verify) check_pages(room);
  pool->release(room.lease, kv::Proof::kSequenceDone);
  sets->rotate(now);
  open_requests();
}

void PagesPair::Impl::check_pages(const transfer::CommittedRoom& room) {
  const auto pages = pool->pages(room.lease);
  runs += kv::to_runs(pages).size();
  for (std::uint32_t i = 0; i < room.pages; ++i) {
    if (probe::find_wrong(pool->page(pages[i]), plan.layout.page_bytes(), room.room.value, i)) {
      failure = {StatusCode::kCorrupted, "page " + std::to_string(i) +
                                             " of a request has other bytes "
                                             "than were sent"};
      return;
    }
    ++verified;
  }
}

void PagesPair::Impl::wait_fds(std::vector<int>* out) const {
  if (mode == Mode::kAnswer) far->wait_fds(out);
  if (mode == Mode::kPlain) out->push_back(plain->endpoint().wait_fd());
  if (mode != Mode::kPlain || far->uses_messages()) out->push_back(channel->wait_fd());
  if (mode == Mode::kPlain) return;
  receiver->wait_fds(out);
}

bool PagesPair::Impl::may_wait() {
  if (mode != Mode::kPlain) return receiver->may_wait();
  if (far->uses_messages() && take_messages()) return false;
  return plain->may_wait() && !finished();
}

bool PagesPair::Impl::finished() const {
  if (!failure.ok()) return true;
  switch (mode) {
    case Mode::kAnswer:
      return far->done();
    case Mode::kConnect: {
      const auto views = receiver->prefills();
      return views.front().state == transfer::LinkState::kReady;
    }
    case Mode::kRequests:
      return got.size() == wanted;
    case Mode::kPlain:
      return landed;
  }
  return true;
}

// Joins what both sides saw of a request.
RequestTimes PagesPair::Impl::times_of(const Got& one, const SentTimes& sent) const {
  RequestTimes times;
  // The record's completion is not its post: commit tells when that was, on the same clock.
  const std::int64_t finished_ns = sent.computed_ns + sent.transfer_exposed_ns;
  const std::int64_t first_posted = finished_ns - sent.transfer_total_ns;
  times.latency = to_double(one.visible - one.intended);
  times.post = static_cast<double>(first_posted - sent.started_ns);
  times.digest = to_double(one.digest);
  times.visible = to_double(one.visible - one.validated);
  if (far->shares_clock()) {
    const double commit_all = to_double(one.commit);
    times.control = static_cast<double>(sent.started_ns - one.intended.ns);
    times.commit = commit_all - times.digest;
    times.wire = to_double(one.validated - TimePoint{first_posted}) - commit_all;
  } else {
    // The sender knows of the record's delivery a round trip after it was posted for good; what is
    // on neither side's clock is control.
    times.commit = to_double(half_round_trip());
    times.wire = std::max(0.0, static_cast<double>(sent.transfer_total_ns) - 2 * times.commit);
    times.control =
        times.latency - times.post - times.wire - times.commit - times.digest - times.visible;
  }
  times.bytes = sent.bytes;
  times.writes = sent.writes;
  times.pieces = sent.pieces;
  times.pages = one.pages;
  return times;
}

Status PagesPair::Impl::collect(KvRound* round) {
  KVD_RETURN_IF_ERROR(order(Order::kSync));
  std::unordered_map<std::uint64_t, SentTimes> seen;
  for (const SentTimes& times : far->take_times()) seen[times.room] = times;
  for (const Got& one : got) {
    const auto it = seen.find(one.room.value);
    if (it == seen.end()) return internal_error("a request is missing on the sending side");
    const RequestTimes times = times_of(one, it->second);
    round->bytes += times.bytes;
    round->writes += times.writes;
    round->pieces += times.pieces;
    round->pages += times.pages;
    round->requests.push_back(times);
  }
  return {};
}

PagesPair::PagesPair() = default;

PagesPair::~PagesPair() {
  if (impl_ == nullptr || impl_->far == nullptr || !impl_->far->uses_messages()) return;
  // The next session shall not wait until this one is found silent.
  if (impl_->receiver != nullptr && impl_->far->failure().ok()) {
    impl_->plan.options.timeout = impl_->plan.options.dead_after;
    (void)impl_->order(Order::kExit).ok();
  }
}

Result<std::unique_ptr<PagesPair>> PagesPair::start(const PagesPlan& plan, bool isolated) {
  std::unique_ptr<PagesPair> pair(new PagesPair);
  pair->impl_ = std::make_unique<Impl>(plan);
  Impl& impl = *pair->impl_;
  KVD_RETURN_IF_ERROR(impl.start_far_side(isolated));
  const TimePoint before = impl.clock.now();
  pin_to(plan.options.pin, plan.options.peer.empty() ? 1 : 0);
  KVD_RETURN_IF_ERROR(impl.open());
  KVD_RETURN_IF_ERROR(impl.connect());
  impl.cold.start_ns = to_double(impl.clock.now() - before) - impl.cold.connect_ns;
  auto first = pair->kv_round(1, 1, false, 0);
  if (!first.ok()) return first.status();
  impl.cold.first_request_ns = first->requests.front().latency;
  return pair;
}

const std::string& PagesPair::provider() const { return impl_->provider; }
bool PagesPair::shares_clock() const { return impl_->far->shares_clock(); }
const fabric::Capabilities& PagesPair::capabilities() const {
  return impl_->domain->capabilities();
}
const ColdTimes& PagesPair::cold() const { return impl_->cold; }
HugePages PagesPair::huge_pages() const {
  return {impl_->far->huge_pages(), impl_->buffer.huge_pages()};
}

Result<KvRound> PagesPair::kv_round(std::uint32_t count, std::uint32_t concurrency, bool verify,
                                    double rate) {
  Impl& impl = *impl_;
  KVD_CHECK(count <= kMostRequests);
  if (verify != impl.verify) {
    KVD_RETURN_IF_ERROR(impl.order(verify ? Order::kFillOn : Order::kFillOff));
  }
  impl.verify = verify;
  impl.verified = impl.runs = 0;
  impl.wanted = count;
  impl.concurrency = concurrency;
  impl.started = 0;
  impl.got.clear();
  impl.gap = rate > 0 ? Duration(static_cast<std::int64_t>(1e9 / rate)) : Duration{0};
  KvRound round;
  const auto before = impl.cpu();
  if (!before.ok()) return before.status();
  impl.began = impl.clock.now();
  KVD_RETURN_IF_ERROR(impl.run(Impl::Mode::kRequests));
  round.seconds = to_double(impl.ended - impl.began) / 1e9;
  const auto after = impl.cpu();
  if (!after.ok()) return after.status();
  round.cpu = {after->sender_ns - before->sender_ns, after->receiver_ns - before->receiver_ns};
  KVD_RETURN_IF_ERROR(impl.collect(&round));
  round.verified = impl.verified;
  round.runs = impl.runs;
  return round;
}

Result<PlainRound> PagesPair::plain_round(const probe::PlainOrder& order) {
  Impl& impl = *impl_;
  impl.landed = false;
  const auto before = impl.cpu();
  if (!before.ok()) return before.status();
  KVD_RETURN_IF_ERROR(impl.far->give(Order::kPlain, order));
  KVD_RETURN_IF_ERROR(impl.run(Impl::Mode::kPlain));
  KVD_RETURN_IF_ERROR(impl.run(Impl::Mode::kAnswer));
  PlainRound round;
  // On its own clock the sender knows of the end half a round trip late.
  const Duration took = impl.far->shares_clock() ? impl.ended - impl.far->plain_began()
                                                 : impl.far->plain_took() - impl.half_round_trip();
  round.seconds = to_double(std::max(took, Duration(1))) / 1e9;
  const auto after = impl.cpu();
  if (!after.ok()) return after.status();
  round.bytes = order.write_bytes * order.count;
  round.cpu = {after->sender_ns - before->sender_ns, after->receiver_ns - before->receiver_ns};
  return round;
}

}  // namespace kvd::tools
