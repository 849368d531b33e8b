#include "kvd-bench/forked_sender.h"

#include <memory>

#include "base/rng.h"
#include "base/units.h"
#include "control/zmq_channel.h"
#include "kvd-bench/pages_domain.h"
#include "node/event_loop.h"
#include "peer/pages_sender.h"

namespace kvd::tools {
namespace {

class ForkedSender final : public node::LoopTask {
 public:
  ForkedSender(const PagesPlan& plan, MailboxPair* mailbox) : plan_(plan), mailbox_(mailbox) {}

  Status start(const std::string& provider, bool isolated);

  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override;
  TimePoint next_deadline() const override { return sender_->next_deadline(); }
  bool finished() const override { return exit_; }
  const Status& failure() const { return failure_; }

 private:
  bool take_order();
  void finish_order();
  bool step_kv();
  void keep(const SentTimes& times);

  const PagesPlan& plan_;
  MailboxPair* mailbox_;
  SteadyClock clock_;
  std::unique_ptr<fabric::Domain> domain_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<PagesSender> sender_;
  Order order_ = Order::kNone;
  bool exit_ = false;
  Status failure_;
};

Status ForkedSender::start(const std::string& provider, bool isolated) {
  auto domain = fabric::open_domain({provider, plan_.options.fabric_addr, plan_.options.device});
  if (!domain.ok()) return domain.status();
  domain_ = std::move(*domain);
  control::ZmqOptions zmq;
  zmq.listen = to_string(HostPort{plan_.options.fabric_addr, 0});
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ = std::make_unique<control::Messenger>(
      channel_.get(), Incarnation{secure_random_u63()}, &clock_, nullptr);
  sender_ =
      std::make_unique<PagesSender>(sender_spec(plan_, isolated), domain_.get(), messenger_.get(),
                                    &clock_, [this](const SentTimes& times) { keep(times); });
  KVD_RETURN_IF_ERROR(sender_->open());

  Mailbox& box = mailbox_->box();
  box.sender_huge_pages = sender_->huge_pages();
  put_text(&box.control, channel_->address());
  mailbox_->wake();
  KVD_RETURN_IF_ERROR(mailbox_->wait(plan_.options.timeout));
  const std::string address(box.target_address.data(), box.target_address_bytes);
  KVD_RETURN_IF_ERROR(sender_->connect({address, box.target_region, box.target_bytes}));
  mailbox_->wake();
  return {};
}

bool ForkedSender::step() {
  Mailbox& box = mailbox_->box();
  if (order_ == Order::kNone && box.ordered.load(std::memory_order_acquire) != box.done.load()) {
    if (!take_order()) return false;
  }
  if (order_ == Order::kPlain) {
    const bool busy = sender_->step();
    if (!sender_->plain_running()) {
      if (!sender_->health().ok()) failure_ = sender_->health();
      exit_ = exit_ || !failure_.ok();
      box.plain_began_ns = sender_->plain_began().ns;
      finish_order();
    }
    return busy;
  }
  const bool busy = step_kv();
  if (order_ == Order::kSync && sender_->idle()) finish_order();
  return busy;
}

bool ForkedSender::take_order() {
  if (!mailbox_->drain()) {
    exit_ = true;  // nobody is left to send to
    return false;
  }
  order_ = mailbox_->box().order;
  if (order_ == Order::kFillOn || order_ == Order::kFillOff) {
    sender_->fill(order_ == Order::kFillOn);
  }
  if (order_ == Order::kExit) exit_ = true;
  if (order_ == Order::kPlain) {
    failure_ = sender_->start_plain(mailbox_->box().plain);
    exit_ = !failure_.ok();
  } else if (order_ != Order::kSync) {
    finish_order();
  }
  return !exit_;
}

void ForkedSender::finish_order() {
  order_ = Order::kNone;
  Mailbox& box = mailbox_->box();
  box.done.store(box.ordered.load(), std::memory_order_release);
  mailbox_->wake();
}

bool ForkedSender::step_kv() {
  bool busy = false;
  while (auto message = messenger_->receive()) {
    busy = true;
    if (sender_->on_message(*message)) continue;
    if (message->envelope.type != proto::MessageType::kDescribe) continue;
    proto::Described described;
    described.program = "kvd-bench";
    sender_->describe(&described);
    (void)messenger_->send(message->from, message->envelope.from, described);
  }
  return sender_->step() || busy;
}

void ForkedSender::keep(const SentTimes& times) {
  Mailbox& box = mailbox_->box();
  box.times[box.requests.load(std::memory_order_relaxed) % kRequestSlots] = times;
  box.requests.fetch_add(1, std::memory_order_release);
}

void ForkedSender::wait_fds(std::vector<int>* out) const {
  out->push_back(mailbox_->fd());
  if (order_ != Order::kPlain) out->push_back(channel_->wait_fd());
  sender_->wait_fds(out);
}

bool ForkedSender::may_wait() {
  Mailbox& box = mailbox_->box();
  // A byte without an order is the other side's end.
  if (order_ == Order::kNone && box.ordered.load() == box.done.load() && !mailbox_->drain())
    exit_ = true;
  if (exit_) return false;
  if (order_ == Order::kNone && box.ordered.load() != box.done.load()) return false;
  return sender_->may_wait();
}

}  // namespace

int run_forked_sender(const PagesPlan& plan, const std::string& provider, bool isolated,
                      MailboxPair* mailbox) {
  pin_to(plan.options.pin, 0);
  ForkedSender sender(plan, mailbox);
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
