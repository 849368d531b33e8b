#include "kvd-bench/pages_sender.h"

#include <sched.h>

#include <cstring>
#include <memory>
#include <optional>

#include "base/log.h"
#include "base/units.h"
#include "control/zmq_channel.h"
#include "device/host_buffer.h"
#include "kvd-bench/page_sets.h"
#include "kvd-bench/pages_domain.h"
#include "node/event_loop.h"
#include "probe/pattern.h"
#include "probe/plain_writes.h"
#include "transfer/kv_sender.h"
#include "transfer/wire.h"

namespace kvd::tools {
namespace {

class PagesSender final : public node::LoopTask, public transfer::SenderHost {
 public:
  PagesSender(const PagesPlan& plan, MailboxPair* mailbox) : plan_(plan), mailbox_(mailbox) {}

  Status start(const std::string& provider, bool isolated);

  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override;
  TimePoint next_deadline() const override;
  bool finished() const override { return exit_; }
  const Status& failure() const { return failure_; }

  void start_compute(transfer::PrefillJob job) override;
  void cancel_compute(RoomId room) override { sender_->compute_stopped(room); }
  void room_over(RoomId room, const transfer::SenderOutcome& outcome) override;
  proto::Load load() override;

 private:
  struct Job {  // of a transfer::PrefillJob what is needed
    RoomId room;
    std::uint32_t tokens;
    std::vector<PageIndex> pages;  // to be filled
    std::vector<kv::LayerGroup> groups;
    TimePoint started;
  };

  bool take_order();
  void finish_order();
  bool step_kv();
  void compute(const Job& job);

  const PagesPlan& plan_;
  MailboxPair* mailbox_;
  SteadyClock clock_;
  Rng rng_{secure_random_u64()};
  device::HostBuffer buffer_;
  std::unique_ptr<kv::PagePool> pool_;
  std::unique_ptr<PageSets> sets_;
  std::unique_ptr<fabric::Domain> domain_;
  std::unique_ptr<fabric::MemoryRegion> source_region_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<transfer::KvSender> sender_;
  std::unique_ptr<probe::PlainWriter> plain_;
  std::vector<Job> jobs_, taken_;
  std::unordered_map<RoomId, std::pair<TimePoint, TimePoint>> computed_;  // started, computed
  Order order_ = Order::kNone;
  bool verify_ = false, exit_ = false;
  Status failure_;
};

Status PagesSender::start(const std::string& provider, bool isolated) {
  auto domain = open_pages_domain(plan_.options, provider, isolated);
  if (!domain.ok()) return domain.status();
  domain_ = std::move(*domain);
  const bool shared = domain_->capabilities().shared_sources;
  auto buffer =
      device::HostBuffer::allocate(plan_.pool_pages * plan_.layout.page_bytes(),
                                   shared ? device::Backing::kShared : device::Backing::kPrivate);
  if (!buffer.ok()) return buffer.status();
  buffer_ = std::move(*buffer);
  mailbox_->box().sender_huge_pages = buffer_.huge_pages();
  std::memset(buffer_.data(), 0x5a, buffer_.size());  // no page fault is measured
  pool_ = std::make_unique<kv::PagePool>(plan_.layout, buffer_.data(), plan_.pool_pages);
  Rng places(plan_.options.seed + 1);
  sets_ = std::make_unique<PageSets>(pool_.get(), plan_.sets, plan_.pages_each,
                                     plan_.options.concurrency, plan_.options.fragmentation,
                                     &places, clock_.now());
  auto region = domain_->register_memory(buffer_.data(), buffer_.size(), false, nullptr);
  if (!region.ok()) return region.status();
  source_region_ = std::move(*region);
  control::ZmqOptions zmq;
  zmq.listen = to_string(HostPort{plan_.options.fabric_addr, 0});
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ = std::make_unique<control::Messenger>(
      channel_.get(), Incarnation{secure_random_u63()}, &clock_, nullptr);
  sender_ = std::make_unique<transfer::KvSender>(
      pages_transfer_options(plan_, provider), pool_.get(), messenger_.get(),
      std::vector<fabric::Domain*>{domain_.get()}, &clock_, &rng_, nullptr, this);
  plain_ = std::make_unique<probe::PlainWriter>(domain_.get(), buffer_.data(),
                                                pool_->memory_bytes(), &clock_);

  Mailbox& box = mailbox_->box();
  put_text(&box.control, channel_->address());
  mailbox_->wake();
  KVD_RETURN_IF_ERROR(mailbox_->wait(plan_.options.timeout));
  const std::string address(box.target_address.data(), box.target_address_bytes);
  KVD_RETURN_IF_ERROR(plain_->connect(address, box.target_region, box.target_bytes));
  mailbox_->wake();
  return {};
}

bool PagesSender::step() {
  Mailbox& box = mailbox_->box();
  if (order_ == Order::kNone && box.ordered.load(std::memory_order_acquire) != box.done.load()) {
    if (!take_order()) return false;
  }
  if (order_ == Order::kPlain) {
    const bool busy = plain_->step();
    if (!plain_->running()) {
      if (!plain_->health().ok()) failure_ = plain_->health();
      exit_ = exit_ || !failure_.ok();
      box.plain_began_ns = plain_->began().ns;
      finish_order();
    }
    return busy;
  }
  const bool busy = step_kv();
  if (order_ == Order::kSync && sender_->idle()) finish_order();
  return busy;
}

bool PagesSender::take_order() {
  if (!mailbox_->drain()) {
    exit_ = true;  // nobody is left to send to
    return false;
  }
  order_ = mailbox_->box().order;
  if (order_ == Order::kVerifyOn || order_ == Order::kVerifyOff)
    verify_ = order_ == Order::kVerifyOn;
  if (order_ == Order::kExit) exit_ = true;
  if (order_ == Order::kPlain) {
    failure_ = plain_->start(mailbox_->box().plain);
    exit_ = !failure_.ok();
  } else if (order_ != Order::kSync) {
    finish_order();
  }
  return !exit_;
}

void PagesSender::finish_order() {
  order_ = Order::kNone;
  Mailbox& box = mailbox_->box();
  box.done.store(box.ordered.load(), std::memory_order_release);
  mailbox_->wake();
}

bool PagesSender::step_kv() {
  bool busy = false;
  while (auto message = messenger_->receive()) {
    busy = true;
    if (sender_->on_message(*message)) continue;
    if (message->envelope.type != proto::MessageType::kDescribe) continue;
    proto::Described described;
    described.role = "prefill";
    described.program = "kvd-bench";
    described.fingerprint = pages_fingerprint(plan_);
    described.layout = transfer::to_info(plan_.layout);
    described.providers = {domain_->capabilities().provider};
    described.load = load();
    described.scope = fabric::local_scope();
    (void)messenger_->send(message->from, message->envelope.from, described);
  }
  // KvSender must not be called from inside its own calls: jobs wait for this turn.
  taken_.swap(jobs_);
  for (const Job& job : taken_) {
    if (verify_) {
      for (std::uint32_t i = 0; i < job.pages.size(); ++i) {
        probe::fill_pattern(pool_->page(job.pages[i]), plan_.layout.page_bytes(), job.room.value,
                            i);
      }
    }
    compute(job);
    busy = true;
  }
  taken_.clear();
  return sender_->poll() || busy;
}

void PagesSender::compute(const Job& job) {
  for (const kv::LayerGroup& group : job.groups)
    sender_->layers_ready(job.room, group, 0, job.tokens);
  // After the groups: KvSender counts from here, too.
  computed_[job.room] = {job.started, clock_.now()};
  SampledToken first;
  first.id = 1;
  sender_->computed(job.room, first, Duration{0}, Duration{0});
}

void PagesSender::start_compute(transfer::PrefillJob job) {
  jobs_.push_back({job.room, static_cast<std::uint32_t>(job.prompt.size()),
                   verify_ ? std::move(job.pages) : std::vector<PageIndex>(), std::move(job.groups),
                   clock_.now()});
}

void PagesSender::room_over(RoomId room, const transfer::SenderOutcome& outcome) {
  const TimePoint now = clock_.now();
  sets_->rotate(now);
  const auto it = computed_.find(room);
  if (it == computed_.end() || !outcome.status.ok()) return;
  Mailbox& box = mailbox_->box();
  SenderTimes& times = box.times[box.requests.load(std::memory_order_relaxed) % kRequestSlots];
  times.started_ns = it->second.first.ns;
  times.computed_ns = it->second.second.ns;
  times.over_ns = now.ns;
  times.transfer_total_ns = outcome.transfer_total.count();
  times.transfer_exposed_ns = outcome.transfer_exposed.count();
  times.bytes = outcome.bytes;
  times.writes = outcome.writes;
  times.pieces = outcome.pieces;
  times.room.store(room.value, std::memory_order_release);
  box.requests.fetch_add(1, std::memory_order_release);
  computed_.erase(it);
}

proto::Load PagesSender::load() {
  proto::Load out;
  out.running = static_cast<std::uint32_t>(jobs_.size());
  out.free_pages = pool_->counts().free;
  out.total_pages = pool_->page_count();
  return out;
}

void PagesSender::wait_fds(std::vector<int>* out) const {
  out->push_back(mailbox_->fd());
  if (order_ == Order::kPlain) {
    out->push_back(plain_->endpoint().wait_fd());
  } else {
    out->push_back(channel_->wait_fd());
    sender_->wait_fds(out);
  }
}

bool PagesSender::may_wait() {
  Mailbox& box = mailbox_->box();
  // A byte without an order is the other side's end.
  if (order_ == Order::kNone && box.ordered.load() == box.done.load() && !mailbox_->drain())
    exit_ = true;
  if (exit_ || !jobs_.empty()) return false;
  if (order_ == Order::kNone && box.ordered.load() != box.done.load()) return false;
  return order_ == Order::kPlain ? plain_->may_wait() : sender_->may_wait();
}

TimePoint PagesSender::next_deadline() const {
  constexpr Duration kRetry{1'000'000};  // room in the send queue has no descriptor
  if (order_ == Order::kPlain) return clock_.now() + kRetry;
  return sender_->next_deadline();
}

}  // namespace

int run_pages_sender(const PagesPlan& plan, const std::string& provider, bool isolated,
                     MailboxPair* mailbox) {
  pin_to(plan.options.pin, 0);
  PagesSender sender(plan, mailbox);
  Status status = sender.start(provider, isolated);
  if (status.ok()) {
    const SteadyClock clock;
    node::LoopOptions options;
    options.always_spin = plan.options.spin;
    node::EventLoop loop(&clock, options);
    loop.run(sender);
    status = sender.failure();
  }
  if (!status.ok()) {
    put_text(&mailbox->box().failure, status.message());
    mailbox->wake();
  }
  return status.ok() ? 0 : 1;
}

}  // namespace kvd::tools
