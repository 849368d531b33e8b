#include "kvd-bench/forked_side.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <utility>

#include "kvd-bench/forked_sender.h"
#include "kvd-bench/pages_mailbox.h"

namespace kvd::tools {
namespace {

class ForkedSide final : public FarSide {
 public:
  ForkedSide(MailboxPair mailbox, pid_t child, clockid_t child_clock, Duration timeout)
      : mailbox_(std::move(mailbox)), child_(child), clock_(child_clock), timeout_(timeout) {}
  ~ForkedSide() override;

  Status begin(const PlainPlace& place) override;
  std::string control_address() const override { return box().control.data(); }
  fabric::FabricAddress plain_address() const override { return {}; }
  device::HugePages huge_pages() const override { return box().sender_huge_pages; }
  bool shares_clock() const override { return true; }

  Status give(Order order, const probe::PlainOrder& plain) override;
  bool done() const override {
    return box().done.load(std::memory_order_acquire) == box().ordered.load();
  }
  Status failure() const override;

  double cpu_ns() const override;
  TimePoint plain_began() const override { return TimePoint{box().plain_began_ns}; }
  Duration plain_took() const override { return Duration{0}; }
  std::vector<SentTimes> take_times() override;

  bool take(const control::Received&) override { return false; }
  bool step() override;
  void wait_fds(std::vector<int>* out) const override { out->push_back(mailbox_.fd()); }
  TimePoint next_deadline() const override { return kNever; }
  bool uses_messages() const override { return false; }

 private:
  Mailbox& box() const { return mailbox_.box(); }
  Status await();

  MailboxPair mailbox_;
  pid_t child_;
  clockid_t clock_;
  Duration timeout_;
  std::uint64_t collected_ = 0;  // entries of the mailbox that were read
  bool gone_ = false;
};

ForkedSide::~ForkedSide() {
  (void)give(Order::kExit, {});
  // Closes our end, too: a sender that waits for something else sees that.
  pid_t ended = 0;
  const SteadyClock clock;
  const TimePoint deadline = clock.now() + std::chrono::seconds(2);
  while (ended == 0 && clock.now() < deadline) {
    ended = waitpid(child_, nullptr, WNOHANG);
    if (ended == 0) (void)mailbox_.wait(std::chrono::milliseconds(10));
  }
  if (ended == 0) {
    kill(child_, SIGKILL);
    (void)waitpid(child_, nullptr, 0);
  }
}

Status ForkedSide::await() {
  const Status woken = mailbox_.wait(timeout_);
  if (box().failure[0] == '\0') return woken;
  return {woken.ok() ? StatusCode::kNoProvider : woken.code(), failure().message()};
}

Status ForkedSide::begin(const PlainPlace& place) {
  // The sender's control address, then its word that plain writes can go.
  KVD_RETURN_IF_ERROR(await());
  if (place.address.size() > kMaxText) return internal_error("the fabric address is too long");
  std::memcpy(box().target_address.data(), place.address.data(), place.address.size());
  box().target_address_bytes = static_cast<std::uint32_t>(place.address.size());
  box().target_region = place.region;
  box().target_bytes = place.bytes;
  mailbox_.wake();
  return await();
}

Status ForkedSide::give(Order order, const probe::PlainOrder& plain) {
  if (order == Order::kSample) return {};  // its clock can be read from here
  box().plain = plain;
  box().order = order;
  box().ordered.fetch_add(1, std::memory_order_release);
  mailbox_.wake();
  return {};
}

Status ForkedSide::failure() const {
  if (box().failure[0] != '\0') {
    return {StatusCode::kFailed, std::string("the sending process: ") + box().failure.data()};
  }
  return gone_ ? Status(StatusCode::kFailed, "the sending process has ended") : Status();
}

double ForkedSide::cpu_ns() const {
  timespec ts{};
  if (clock_gettime(clock_, &ts) != 0) return 0;
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

std::vector<SentTimes> ForkedSide::take_times() {
  std::vector<SentTimes> out;
  for (; collected_ < box().requests.load(std::memory_order_acquire); ++collected_) {
    out.push_back(box().times[collected_ % kRequestSlots]);
  }
  return out;
}

bool ForkedSide::step() {
  if (!gone_ && !mailbox_.drain()) gone_ = true;
  return false;
}

}  // namespace

Result<std::unique_ptr<FarSide>> fork_sender(const PagesPlan& plan, const std::string& provider,
                                             bool isolated) {
  auto mailbox = MailboxPair::make();
  if (!mailbox.ok()) return mailbox.status();
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return Status(StatusCode::kResourceExhausted, "cannot start the sending process");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    mailbox->be_child();
    _exit(run_forked_sender(plan, provider, isolated, &*mailbox));
  }
  mailbox->be_parent();
  clockid_t clock{};
  const bool timed = clock_getcpuclockid(child, &clock) == 0;
  auto side = std::make_unique<ForkedSide>(std::move(*mailbox), child, clock, plan.options.timeout);
  if (!timed) return internal_error("no clock of the sender");
  return std::unique_ptr<FarSide>(std::move(side));
}

}  // namespace kvd::tools
