#include "peer/pages_session.h"

#include <algorithm>
#include <ctime>
#include <deque>
#include <optional>
#include <string>
#include <utility>

#include "base/log.h"
#include "common/memory.h"
#include "fabric/provider_details.h"
#include "peer/times_codec.h"
#include "transfer/wire.h"

namespace kvd::tools {
namespace {

constexpr std::size_t kMostTimes = 65536;  // kept for a client that does not ask

std::uint64_t cpu_now_ns() {
  timespec ts{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts) != 0) return 0;
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(ts.tv_nsec);
}

}  // namespace

class PagesSession final : public probe::OtherSession {
 public:
  PagesSession(PagesSessions* owner, control::PeerRef peer, Incarnation client,
               const SenderSpec& spec, fabric::Domain* domain)
      : owner_(owner),
        peer_(peer),
        client_(client),
        sender_(spec, domain, owner->messenger_, owner->clock_,
                [this](const SentTimes& times) { keep(times); }) {
    owner_->session_ = this;
  }
  ~PagesSession() override {
    owner_->session_ = nullptr;
    if (level_) set_log_level(*level_);
  }

  Status open(const proto::Probe& probe, proto::ProbeResult* result);

  void on_probe(const proto::Probe& probe) override;
  bool step() override;
  void wait_fds(std::vector<int>* out) const override { sender_.wait_fds(out); }
  bool may_wait() override { return sender_.may_wait(); }
  TimePoint next_deadline() const override { return sender_.next_deadline(); }
  Status health() const override { return sender_.health(); }

  bool is_from(const control::Received& message) const {
    return message.from == peer_ && message.envelope.from == client_;
  }
  PagesSender& sender() { return sender_; }

 private:
  void keep(const SentTimes& times) {
    if (times_.size() == kMostTimes) times_.pop_front();
    times_.push_back(times);
  }
  void answer(proto::ProbeResult result) {
    // A client that cannot be told is found silent, or finds us so.
    (void)owner_->messenger_->send(peer_, client_, result).ok();
  }
  void refuse(std::uint64_t request, const std::string& code, const std::string& text);
  Status start_write(const proto::Probe& probe);
  void tell_times();
  void hush();

  PagesSessions* owner_;
  control::PeerRef peer_;
  Incarnation client_;
  PagesSender sender_;
  std::optional<LogLevel> level_;  // to return to
  std::deque<SentTimes> times_;
  std::optional<std::uint64_t> write_, sync_;  // requests that are not answered yet
};

Status PagesSession::open(const proto::Probe& probe, proto::ProbeResult* result) {
  KVD_RETURN_IF_ERROR(sender_.open());
  KVD_RETURN_IF_ERROR(sender_.connect({probe.address,
                                       {probe.region_base, probe.region_bytes, probe.region_key},
                                       probe.region_bytes}));
  result->address = sender_.plain_address();
  result->libfabric = fabric::libfabric_version();
  result->huge_pages = device::to_string(sender_.huge_pages());
  result->boot_id = transfer::boot_id();
  return {};
}

void PagesSession::refuse(std::uint64_t request, const std::string& code, const std::string& text) {
  proto::ProbeResult result;
  result.request = request;
  result.state = "refused";
  result.code = code;
  result.text = text;
  answer(std::move(result));
}

void PagesSession::on_probe(const proto::Probe& probe) {
  proto::ProbeResult done;
  done.request = probe.request;
  done.state = "done";
  if (probe.op == "sample") {
    done.cpu_ns = cpu_now_ns();
    answer(std::move(done));
  } else if (write_ || sync_) {
    refuse(probe.request, "busy", "the step before is not done");
  } else if (probe.op == "fill") {
    sender_.fill(probe.pattern);
    answer(std::move(done));
  } else if (probe.op == "sync") {
    sync_ = probe.request;
  } else if (probe.op != "write") {
    refuse(probe.request, "invalid", probe.op + " does not belong into a session of pages");
  } else if (const Status started = start_write(probe); !started.ok()) {
    refuse(probe.request, "invalid", started.message());
  } else {
    write_ = probe.request;
  }
}

Status PagesSession::start_write(const proto::Probe& probe) {
  if (!sender_.idle()) return invalid_argument("write while requests are open");
  probe::PlainOrder order;
  order.write_bytes = probe.bytes;
  order.pieces = std::max<std::uint32_t>(1, probe.pieces);
  order.depth = probe.depth;
  order.count = probe.count;
  order.seed = probe.seed;
  order.signal = true;
  return sender_.start_plain(order);
}

void PagesSession::tell_times() {
  proto::ProbeResult done;
  done.request = *sync_;
  done.state = "done";
  sync_.reset();
  const std::size_t count = std::min(times_.size(), proto::ProbeBounds::kTimes);
  const auto end = times_.begin() + static_cast<std::ptrdiff_t>(count);
  done.times = pack_times({times_.begin(), end});
  times_.erase(times_.begin(), end);
  done.left = static_cast<std::uint32_t>(times_.size());
  answer(std::move(done));
}

// A line for each room would be measured, too; whoever asked for debug gets it. Not before the
// first step: that the session was opened is to be told.
void PagesSession::hush() {
  if (log_enabled(LogLevel::kInfo) && !log_enabled(LogLevel::kDebug)) {
    level_ = set_log_level(LogLevel::kWarn);
  }
}

bool PagesSession::step() {
  if (!level_) hush();
  const bool busy = sender_.step();
  if (write_ && !sender_.plain_running()) {
    proto::ProbeResult done;
    done.request = *write_;
    write_.reset();
    done.state = "done";
    done.began_ns = static_cast<std::uint64_t>(sender_.plain_began().ns);
    done.rounds = pack_number(
        static_cast<std::uint64_t>((sender_.plain_ended() - sender_.plain_began()).count()));
    // A broken endpoint ends the session, and that is the answer.
    if (sender_.health().ok()) answer(std::move(done));
    return true;
  }
  if (!sync_ || !sender_.idle()) return busy;
  tell_times();
  return true;
}

Result<std::unique_ptr<probe::OtherSession>> PagesSessions::open(control::PeerRef peer,
                                                                 Incarnation client,
                                                                 const proto::Probe& probe,
                                                                 proto::ProbeResult* result) {
  const auto found = std::find_if(domains_.begin(), domains_.end(), [&](fabric::Domain* domain) {
    return domain->capabilities().provider == probe.provider;
  });
  if (found == domains_.end()) {
    return Status(StatusCode::kNoProvider, "provider " + probe.provider + " is not offered here");
  }
  const auto spec = checked_spec(probe.pages, available_memory());
  if (!spec.ok()) return spec.status();
  auto session = std::make_unique<PagesSession>(this, peer, client, *spec, *found);
  KVD_RETURN_IF_ERROR(session->open(probe, result));
  return std::unique_ptr<probe::OtherSession>(std::move(session));
}

bool PagesSessions::is_client(const control::Received& message) const {
  return session_ != nullptr && session_->is_from(message);
}

bool PagesSessions::on_message(const control::Received& message) {
  return is_client(message) && session_->sender().on_message(message);
}

void PagesSessions::describe(proto::Described* out) const { session_->sender().describe(out); }

bool PagesSessions::eager() const {
  return session_ != nullptr && !session_->sender().plain_running();
}

}  // namespace kvd::tools
