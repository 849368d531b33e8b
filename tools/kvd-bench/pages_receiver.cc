#include "kvd-bench/pages_receiver.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <functional>
#include <unordered_map>

#include "control/zmq_channel.h"
#include "device/host_buffer.h"
#include "kvd-bench/page_sets.h"
#include "kvd-bench/pages_domain.h"
#include "kvd-bench/pages_sender.h"
#include "node/event_loop.h"
#include "probe/pattern.h"
#include "probe/plain_writes.h"
#include "proto/commit_record.h"
#include "transfer/kv_receiver.h"

namespace kvd::tools {
namespace {

double cpu_ns_of(clockid_t clock) {
  timespec ts{};
  if (clock_gettime(clock, &ts) != 0) return 0;
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

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
  enum class Mode { kConnect, kRequests, kPlain };

  Impl(const PagesPlan& the_plan, MailboxPair the_mailbox)
      : plan(the_plan), mailbox(std::move(the_mailbox)), loop(&clock, loop_options(the_plan)) {}
  static node::LoopOptions loop_options(const PagesPlan& plan) {
    node::LoopOptions out;
    out.always_spin = plan.options.spin;
    return out;
  }

  Status open(const std::string& provider, bool isolated);
  Status connect();
  Status run(Mode mode);
  Status order(Order what);
  Status wait_done();
  Status sender_failure(Status status) const;
  CpuTimes cpu() const;
  Status collect(KvRound* round);

  bool step();
  bool step_kv();
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

  const PagesPlan plan;
  MailboxPair mailbox;
  SteadyClock clock;
  node::EventLoop loop;
  Rng rng{secure_random_u64()};
  Rng lengths{7};
  pid_t child = -1;
  clockid_t child_clock{};
  std::string prefill;  // its control address
  const std::vector<TokenId> prompt = std::vector<TokenId>(plan.tokens.longest(), 1);

  device::HostBuffer buffer;
  std::unique_ptr<kv::PagePool> pool;
  std::unique_ptr<PageSets> sets;
  std::unique_ptr<fabric::Domain> domain;
  std::unique_ptr<probe::PlainTarget> plain;
  std::unique_ptr<control::Channel> channel;
  std::unique_ptr<control::Messenger> messenger;
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
  std::uint64_t verified = 0, runs = 0;
  std::uint64_t collected = 0;  // entries of the mailbox that were read
};

TimePoint PagesPair::Impl::Task::next_deadline() const {
  if (impl->mode == Mode::kPlain) return impl->deadline;
  TimePoint next = std::min(impl->deadline, impl->receiver->next_deadline());
  if (impl->gap.count() != 0 && impl->started < impl->wanted) {
    next = std::min(next, impl->began + impl->gap * impl->started);
  }
  return next;
}

Status PagesPair::Impl::open(const std::string& provider, bool isolated) {
  const std::uint64_t page_bytes = plan.layout.page_bytes();
  const transfer::TransferOptions options = pages_transfer_options(plan, provider);
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
  auto opened = open_pages_domain(plan.options, provider, isolated);
  if (!opened.ok()) return opened.status();
  domain = std::move(*opened);
  const TimePoint before = clock.now();
  auto target = probe::PlainTarget::open(domain.get(), buffer.data(), pool->memory_bytes());
  if (!target.ok()) return target.status();
  plain = std::move(*target);
  cold.register_ns = to_double(clock.now() - before);
  auto dialler = control::open_zmq_channel({});
  if (!dialler.ok()) return dialler.status();
  channel = std::move(*dialler);
  messenger = std::make_unique<control::Messenger>(channel.get(), Incarnation{secure_random_u63()},
                                                   &clock, nullptr);
  receiver = std::make_unique<transfer::KvReceiver>(
      options, pool.get(), buffer.data() + pool->memory_bytes(), messenger.get(),
      std::vector<fabric::Domain*>{domain.get()}, &clock, &rng, nullptr, this);
  return {};
}

Status PagesPair::Impl::sender_failure(Status status) const {
  const char* why = mailbox.box().failure.data();
  if (status.ok() || *why == '\0') return status;
  return {status.code() == StatusCode::kOk ? StatusCode::kFailed : status.code(),
          std::string("the sending process: ") + why};
}

Status PagesPair::Impl::connect() {
  // The sender's control address, then its word that plain writes can go.
  KVD_RETURN_IF_ERROR(sender_failure(mailbox.wait(plan.options.timeout)));
  Mailbox& box = mailbox.box();
  if (box.failure[0] != '\0') return sender_failure({StatusCode::kNoProvider, "it ended"});
  prefill = box.control.data();
  const std::string address = plain->address();
  if (address.size() > kMaxText) return internal_error("the fabric address is too long");
  std::memcpy(box.target_address.data(), address.data(), address.size());
  box.target_address_bytes = static_cast<std::uint32_t>(address.size());
  box.target_region = plain->region();
  box.target_bytes = pool->memory_bytes();
  mailbox.wake();
  KVD_RETURN_IF_ERROR(sender_failure(mailbox.wait(plan.options.timeout)));
  if (box.failure[0] != '\0') return sender_failure({StatusCode::kNoProvider, "it ended"});
  const TimePoint before = clock.now();
  receiver->add_prefill(prefill);
  KVD_RETURN_IF_ERROR(run(Mode::kConnect));
  cold.connect_ns = to_double(clock.now() - before);
  return {};
}

Status PagesPair::Impl::run(Mode what) {
  mode = what;
  failure = Status();
  deadline = clock.now() + plan.options.timeout;
  Task task(this);
  loop.run(task);
  return failure;
}

Status PagesPair::Impl::order(Order what) {
  Mailbox& box = mailbox.box();
  box.order = what;
  box.ordered.fetch_add(1, std::memory_order_release);
  mailbox.wake();
  return {};
}

Status PagesPair::Impl::wait_done() {
  Mailbox& box = mailbox.box();
  while (box.done.load(std::memory_order_acquire) != box.ordered.load()) {
    KVD_RETURN_IF_ERROR(sender_failure(mailbox.wait(plan.options.timeout)));
    if (box.failure[0] != '\0') return sender_failure({StatusCode::kFailed, "it ended"});
  }
  return {};
}

CpuTimes PagesPair::Impl::cpu() const {
  return {cpu_ns_of(child_clock), cpu_ns_of(CLOCK_PROCESS_CPUTIME_ID)};
}

bool PagesPair::Impl::step() {
  if (clock.now() >= deadline) {
    failure = {StatusCode::kDeadline, mode == Mode::kConnect
                                          ? "no link within --timeout"
                                          : "the round did not end within --timeout"};
    if (mode == Mode::kConnect) {
      for (const transfer::PrefillView& view : receiver->prefills()) {
        if (!view.why.ok()) failure = view.why;
      }
    }
    return true;
  }
  if (mode == Mode::kPlain) {
    bool busy = false;
    landed = plain->step(&busy) || landed;
    if (landed) ended = clock.now();
    if (!plain->health().ok()) failure = plain->health();
    return busy;
  }
  return step_kv();
}

bool PagesPair::Impl::step_kv() {
  bool busy = false;
  while (auto message = messenger->receive()) {
    busy = true;
    (void)receiver->on_message(*message);
  }
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
  if (mode == Mode::kPlain) {
    out->push_back(plain->endpoint().wait_fd());
    return;
  }
  out->push_back(channel->wait_fd());
  receiver->wait_fds(out);
}

bool PagesPair::Impl::may_wait() {
  return mode == Mode::kPlain ? plain->may_wait() : receiver->may_wait();
}

bool PagesPair::Impl::finished() const {
  if (!failure.ok()) return true;
  switch (mode) {
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

// Joins what both sides saw of each request.
Status PagesPair::Impl::collect(KvRound* round) {
  KVD_RETURN_IF_ERROR(order(Order::kSync));
  KVD_RETURN_IF_ERROR(wait_done());
  Mailbox& box = mailbox.box();
  std::unordered_map<std::uint64_t, const SenderTimes*> seen;
  for (; collected < box.requests.load(std::memory_order_acquire); ++collected) {
    const SenderTimes& times = box.times[collected % kRequestSlots];
    seen[times.room.load(std::memory_order_acquire)] = &times;
  }
  for (const Got& one : got) {
    const auto it = seen.find(one.room.value);
    if (it == seen.end()) return internal_error("a request is missing on the sending side");
    const SenderTimes& sent = *it->second;
    RequestTimes times;
    // The record's completion is not its post: commit tells when that was, on the same clock.
    const std::int64_t finished = sent.computed_ns + sent.transfer_exposed_ns;
    const std::int64_t first_posted = finished - sent.transfer_total_ns;
    const double commit_all = to_double(one.commit);
    times.latency = to_double(one.visible - one.intended);
    times.control = static_cast<double>(sent.started_ns - one.intended.ns);
    times.post = static_cast<double>(first_posted - sent.started_ns);
    times.digest = to_double(one.digest);
    times.commit = commit_all - times.digest;
    times.wire = to_double(one.validated - TimePoint{first_posted}) - commit_all;
    times.visible = to_double(one.visible - one.validated);
    times.bytes = sent.bytes;
    times.writes = sent.writes;
    times.pieces = sent.pieces;
    times.pages = one.pages;
    round->bytes += sent.bytes;
    round->writes += sent.writes;
    round->pieces += sent.pieces;
    round->pages += one.pages;
    round->requests.push_back(times);
  }
  return {};
}

PagesPair::PagesPair() = default;

PagesPair::~PagesPair() {
  if (impl_ == nullptr) return;
  if (impl_->child > 0) {
    (void)impl_->order(Order::kExit);
    // Closes our end, too: a sender that waits for something else sees that.
    pid_t ended = 0;
    const TimePoint deadline = impl_->clock.now() + std::chrono::seconds(2);
    while (ended == 0 && impl_->clock.now() < deadline) {
      ended = waitpid(impl_->child, nullptr, WNOHANG);
      if (ended == 0) (void)impl_->mailbox.wait(std::chrono::milliseconds(10));
    }
    if (ended == 0) {
      kill(impl_->child, SIGKILL);
      (void)waitpid(impl_->child, nullptr, 0);
    }
  }
}

Result<std::unique_ptr<PagesPair>> PagesPair::start(const PagesPlan& plan,
                                                    const std::string& provider, bool isolated) {
  const SteadyClock clock;
  const TimePoint before = clock.now();
  auto mailbox = MailboxPair::make();
  if (!mailbox.ok()) return mailbox.status();
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return Status(StatusCode::kResourceExhausted, "cannot start the sending process");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    mailbox->be_child();
    _exit(run_pages_sender(plan, provider, isolated, &*mailbox));
  }
  mailbox->be_parent();
  std::unique_ptr<PagesPair> pair(new PagesPair);
  pair->impl_ = std::make_unique<Impl>(plan, std::move(*mailbox));
  Impl& impl = *pair->impl_;
  impl.child = child;
  if (clock_getcpuclockid(child, &impl.child_clock) != 0)
    return internal_error("no clock of the sender");
  pin_to(plan.options.pin, 1);
  KVD_RETURN_IF_ERROR(impl.open(provider, isolated));
  KVD_RETURN_IF_ERROR(impl.connect());
  impl.cold.start_ns = to_double(clock.now() - before) - impl.cold.connect_ns;
  auto first = pair->kv_round(1, 1, false, 0);
  if (!first.ok()) return first.status();
  impl.cold.first_request_ns = first->requests.front().latency;
  return pair;
}

const fabric::Capabilities& PagesPair::capabilities() const {
  return impl_->domain->capabilities();
}
const ColdTimes& PagesPair::cold() const { return impl_->cold; }
HugePages PagesPair::huge_pages() const {
  return {impl_->mailbox.box().sender_huge_pages, impl_->buffer.huge_pages()};
}

Result<KvRound> PagesPair::kv_round(std::uint32_t count, std::uint32_t concurrency, bool verify,
                                    double rate) {
  Impl& impl = *impl_;
  KVD_CHECK(count <= kRequestSlots);
  if (verify != impl.verify) {
    KVD_RETURN_IF_ERROR(impl.order(verify ? Order::kVerifyOn : Order::kVerifyOff));
    KVD_RETURN_IF_ERROR(impl.wait_done());
  }
  impl.verify = verify;
  impl.verified = impl.runs = 0;
  impl.wanted = count;
  impl.concurrency = concurrency;
  impl.started = 0;
  impl.got.clear();
  impl.gap = rate > 0 ? Duration(static_cast<std::int64_t>(1e9 / rate)) : Duration{0};
  KvRound round;
  const CpuTimes before = impl.cpu();
  impl.began = impl.clock.now();
  KVD_RETURN_IF_ERROR(impl.sender_failure(impl.run(Impl::Mode::kRequests)));
  round.seconds = to_double(impl.ended - impl.began) / 1e9;
  const CpuTimes after = impl.cpu();
  round.cpu = {after.sender_ns - before.sender_ns, after.receiver_ns - before.receiver_ns};
  KVD_RETURN_IF_ERROR(impl.collect(&round));
  round.verified = impl.verified;
  round.runs = impl.runs;
  return round;
}

Result<PlainRound> PagesPair::plain_round(const probe::PlainOrder& order) {
  Impl& impl = *impl_;
  impl.mailbox.box().plain = order;
  impl.landed = false;
  const CpuTimes before = impl.cpu();
  KVD_RETURN_IF_ERROR(impl.order(Order::kPlain));
  KVD_RETURN_IF_ERROR(impl.sender_failure(impl.run(Impl::Mode::kPlain)));
  KVD_RETURN_IF_ERROR(impl.wait_done());
  const CpuTimes after = impl.cpu();
  PlainRound round;
  round.seconds = static_cast<double>(impl.ended.ns - impl.mailbox.box().plain_began_ns) / 1e9;
  round.bytes = order.write_bytes * order.count;
  round.cpu = {after.sender_ns - before.sender_ns, after.receiver_ns - before.receiver_ns};
  return round;
}

}  // namespace kvd::tools
