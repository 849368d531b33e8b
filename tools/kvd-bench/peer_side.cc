#include "kvd-bench/peer_side.h"

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "kvd-bench/pages_domain.h"
#include "peer/times_codec.h"
#include "transfer/wire.h"

namespace kvd::tools {
namespace {

constexpr Duration kAliveInterval{200'000'000};
constexpr Duration kOpening{15'000'000'000};  // the far side takes gigabytes, and hears nothing

device::HugePages huge_pages_of(const std::string& name) {
  using device::HugePages;
  for (const HugePages one : {HugePages::kTransparent, HugePages::kReserved}) {
    if (device::to_string(one) == name) return one;
  }
  return HugePages::kNone;
}

class PeerSide final : public FarSide {
 public:
  PeerSide(const PagesPlan& plan, const std::string& provider, bool isolated, const MetPeer* peer,
           const Clock* clock)
      : options_(plan.options),
        spec_(sender_spec(plan, isolated)),
        provider_(provider),
        peer_(peer),
        clock_(clock),
        heard_(clock->now()) {}

  Status begin(const PlainPlace& place) override;
  std::string control_address() const override { return options_.peer; }
  fabric::FabricAddress plain_address() const override { return opened_.address; }
  device::HugePages huge_pages() const override { return huge_pages_of(opened_.huge_pages); }
  bool shares_clock() const override {
    return opened_.boot_id != 0 && opened_.boot_id == transfer::boot_id();
  }

  Status give(Order order, const probe::PlainOrder& plain) override;
  bool done() const override { return awaited_ == 0; }
  Status failure() const override { return fault_; }

  double cpu_ns() const override { return static_cast<double>(answer_.cpu_ns); }
  TimePoint plain_began() const override {
    return TimePoint{static_cast<std::int64_t>(answer_.began_ns)};
  }
  Duration plain_took() const override {
    return Duration(static_cast<std::int64_t>(number_at(answer_.rounds, 0)));
  }
  std::vector<SentTimes> take_times() override { return std::exchange(times_, {}); }

  bool take(const control::Received& message) override;
  bool step() override;
  void wait_fds(std::vector<int>*) const override {}
  TimePoint next_deadline() const override { return next_alive_; }
  bool uses_messages() const override { return true; }

 private:
  Status ask(proto::Probe probe);
  void on_result(const proto::ProbeResult& result);
  Duration patience() const {
    return open_ ? options_.dead_after : std::max(options_.dead_after, kOpening);
  }
  StatusCode code_now() const { return open_ ? StatusCode::kFailed : StatusCode::kUnavailable; }

  const PagesOptions options_;
  const SenderSpec spec_;
  const std::string provider_;
  const MetPeer* peer_;
  const Clock* clock_;
  TimePoint heard_, next_alive_{0};
  bool open_ = false;
  std::uint64_t request_ = 0, awaited_ = 0, opening_ = 0;
  proto::ProbeResult opened_, answer_;
  std::vector<SentTimes> times_;
  std::string notice_;
  Status fault_;
};

Status PeerSide::ask(proto::Probe probe) {
  probe.request = awaited_ = ++request_;
  if (peer_->messenger->send(peer_->ref, peer_->incarnation, probe).ok()) return {};
  if (fault_.ok()) fault_ = Status(code_now(), options_.peer + " went away");
  return fault_;
}

Status PeerSide::begin(const PlainPlace& place) {
  proto::Probe open;
  open.op = "pages";
  open.provider = provider_;
  open.dead_after_ms = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(options_.dead_after.count() / 1'000'000, 100, 60'000));
  open.spin = options_.spin;
  open.address = place.address;
  open.region_base = place.region.base;
  open.region_bytes = place.bytes;
  open.region_key = place.region.key;
  open.pages = to_probe(spec_);
  heard_ = clock_->now();
  KVD_RETURN_IF_ERROR(ask(std::move(open)));
  opening_ = awaited_;
  return {};
}

Status PeerSide::give(Order order, const probe::PlainOrder& plain) {
  proto::Probe probe;
  switch (order) {
    case Order::kNone:
      return {};
    case Order::kPlain:
      probe.op = "write";
      probe.bytes = plain.write_bytes;
      probe.pieces = plain.pieces;
      probe.depth = plain.depth;
      probe.count = plain.count;
      probe.seed = plain.seed;
      break;
    case Order::kFillOn:
    case Order::kFillOff:
      probe.op = "fill";
      probe.pattern = order == Order::kFillOn;
      break;
    case Order::kSync:
      probe.op = "sync";
      break;
    case Order::kSample:
      probe.op = "sample";
      break;
    case Order::kExit:
      probe.op = "close";
      break;
  }
  return ask(std::move(probe));
}

void PeerSide::on_result(const proto::ProbeResult& result) {
  if (result.state == "refused" && (result.request == awaited_ || result.request == opening_)) {
    if (fault_.ok()) fault_ = refusal_of_peer(options_.peer, result);
    return;
  }
  if (result.request != awaited_) return;
  if (result.state == "queued") {
    const std::string place = std::to_string(result.ahead) + " before us";
    if (place != notice_ && options_.notice) {
      options_.notice("waiting for " + options_.peer + ": other clients use it, " + place);
    }
    notice_ = place;
    return;
  }
  awaited_ = 0;
  answer_ = result;
  if (!open_) {
    open_ = true;
    opened_ = result;
  }
  const auto more = unpack_times(result.times);
  times_.insert(times_.end(), more.begin(), more.end());
  if (result.left != 0) (void)give(Order::kSync, {}).ok();
}

bool PeerSide::take(const control::Received& message) {
  if (message.from != peer_->ref || message.refused) return false;
  heard_ = clock_->now();
  const proto::Envelope& envelope = message.envelope;
  if (envelope.type == proto::MessageType::kProbeResult) {
    const auto result = proto::decode_body<proto::ProbeResult>(envelope);
    if (result.ok()) {
      on_result(*result);
    } else if (fault_.ok()) {
      fault_ = Status(StatusCode::kIncompatible, options_.peer + ": " + result.status().message());
    }
    return true;
  }
  if (envelope.type == proto::MessageType::kStaleIncarnation && fault_.ok()) {
    fault_ = Status(code_now(), options_.peer + " was started anew");
  } else if (envelope.type == proto::MessageType::kError && envelope.epoch.value == 0) {
    const auto error = proto::decode_body<proto::Error>(envelope);
    if (error.ok() && fault_.ok()) {
      fault_ = error_of_peer(options_.peer, *error,
                             "session of kvd-bench pages, so it may be of an older version");
    }
  }
  return false;
}

bool PeerSide::step() {
  const TimePoint now = clock_->now();
  if (!fault_.ok()) return false;
  if (!open_ && options_.stop && options_.stop()) {
    fault_ = Status(StatusCode::kFailed, "interrupted");
  } else if (now - heard_ > patience()) {
    fault_ = Status(code_now(), options_.peer + " was silent for " + format_duration(patience()) +
                                    ": it is stopped, overloaded or cut off");
  } else if (now >= next_alive_) {
    next_alive_ = now + std::min(kAliveInterval, options_.dead_after / 4);
    proto::Probe alive;
    alive.request = ++request_;
    alive.op = "alive";
    const Status sent = peer_->messenger->send(peer_->ref, peer_->incarnation, alive);
    if (sent.code() == StatusCode::kUnavailable) {
      fault_ = Status(code_now(), options_.peer + " went away");
    }
  }
  return false;
}

}  // namespace

Result<MetPeer> meet_serve(const PagesOptions& options, const Clock* clock) {
  auto met =
      meet({options.peer, options.keys, options.timeout, options.stop, options.notice}, clock);
  if (!met.ok()) return met;
  if (met->described.role != "probe") {
    return Status(StatusCode::kIncompatible, options.peer + " is a " + met->described.program +
                                                 ": --peer takes the address of a kvd-probe serve");
  }
  return met;
}

std::unique_ptr<FarSide> peer_sender(const PagesPlan& plan, const std::string& provider,
                                     bool isolated, const MetPeer* peer, const Clock* clock) {
  return std::make_unique<PeerSide>(plan, provider, isolated, peer, clock);
}

}  // namespace kvd::tools
