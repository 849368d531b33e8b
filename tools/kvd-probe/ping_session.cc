#include "kvd-probe/ping_session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/units.h"
#include "peer/meet.h"
#include "probe/pattern.h"
#include "probe/probe_target.h"

namespace kvd::tools {
namespace {

// While bytes move the control channel is looked at so rarely that it is not measured.
constexpr Duration kControlInterval{200'000};
// Turns of the endpoint for each look at the clock, which costs 24 ns: a small write takes 3 us.
constexpr int kTurns = 16;
constexpr Duration kAliveInterval{200'000'000};
constexpr Duration kOpening{5'000'000'000};
constexpr Duration kLongestWait{50'000'000};  // so that `stop` is asked

std::uint64_t number_at(const std::string& bytes, std::size_t at) {
  std::uint64_t out = 0;
  for (std::size_t i = 8; i-- > 0;) out = out << 8 | static_cast<unsigned char>(bytes[at + i]);
  return out;
}

}  // namespace

PingSession::PingSession(const SessionOptions& options)
    : options_(options), loop_(&clock_, {Duration(50'000), false, kLongestWait}) {}

PingSession::~PingSession() = default;

// --- the loop ----------------------------------------------------------------------------------

Status PingSession::loop(std::function<bool()> done, Duration deadline, const std::string& what) {
  done_ = std::move(done);
  deadline_ = clock_.now() + deadline;
  next_control_ = TimePoint{0};
  loop_.run(*this);
  if (!fault_.ok()) return fault_;
  if (done_()) return {};
  return {StatusCode::kDeadline, what + " within " + format_duration(deadline)};
}

bool PingSession::finished() const { return !fault_.ok() || done_() || clock_.now() >= deadline_; }

bool PingSession::move_bytes() {
  bool busy = false;
  if (run_ && !run_->done()) {
    busy = run_->step();
    if (!run_->status().ok()) fault_ = Status(StatusCode::kFailed, run_->status().message());
  } else if (writer_ != nullptr) {
    busy = writer_->step();
  }
  if (target_ != nullptr && fault_.ok()) {
    bool moved = false;
    (void)target_->step(&moved);
    busy = busy || moved;
    if (!target_->health().ok()) fault_ = target_->health();
  }
  return busy;
}

bool PingSession::step() {
  bool busy = false;
  for (int turn = 0; turn < kTurns && fault_.ok(); ++turn) busy = move_bytes() || busy;
  const TimePoint now = clock_.now();
  if (now < next_control_) return busy;
  next_control_ = now + kControlInterval;
  return control() || busy;
}

bool PingSession::control() {
  bool any = false;
  while (auto received = messenger_->receive()) {
    take(*received);
    any = true;
  }
  watch(clock_.now());
  return any;
}

void PingSession::take(const control::Received& received) {
  if (received.from != peer_ || received.refused) return;
  heard_ = clock_.now();
  const proto::Envelope& envelope = received.envelope;
  if (envelope.type == proto::MessageType::kStaleIncarnation) {
    fault_ = Status(StatusCode::kFailed, options_.peer + " was started anew");
  } else if (envelope.type == proto::MessageType::kError) {
    const auto error = proto::decode_body<proto::Error>(envelope);
    if (error.ok()) fault_ = error_of_peer(options_.peer, *error, "probes");
  } else if (envelope.type == proto::MessageType::kProbeResult) {
    auto result = proto::decode_body<proto::ProbeResult>(envelope);
    if (!result.ok()) {
      fault_ = Status(StatusCode::kIncompatible, options_.peer + ": " + result.status().message());
    } else if (result->request == awaited_) {
      answer_ = std::move(*result);
    }
  }
}

void PingSession::watch(TimePoint now) {
  if (!fault_.ok()) return;
  if (options_.stop && options_.stop()) {
    fault_ = Status(StatusCode::kFailed, "interrupted");
    return;
  }
  // Opening may take memory at the other end, which hears nothing meanwhile.
  const Duration patience = open_ ? options_.dead_after : std::max(options_.dead_after, kOpening);
  if (now - heard_ > patience) {
    const StatusCode code = open_ ? StatusCode::kFailed : StatusCode::kUnavailable;
    fault_ = Status(code, options_.peer + " was silent for " + format_duration(patience) +
                              ": it is stopped, overloaded or cut off");
    return;
  }
  if (run_ && !run_->done() && !run_->between_rounds() &&
      now - run_->round_began() > options_.timeout) {
    fault_ = Status(StatusCode::kFailed,
                    "a round of writes did not complete within " +
                        format_duration(options_.timeout) + " though " + options_.peer +
                        " answers: the network lets control through, and not " +
                        domain_->capabilities().provider + " (firewall, security group)");
    return;
  }
  if (now < next_alive_) return;
  next_alive_ = now + std::min(kAliveInterval, options_.dead_after / 4);
  proto::Probe alive;
  alive.request = ++request_;
  alive.op = "alive";
  const Status sent = messenger_->send(peer_, incarnation_, alive);
  if (sent.code() == StatusCode::kUnavailable) {
    fault_ = Status(open_ ? StatusCode::kFailed : StatusCode::kUnavailable,
                    options_.peer + " went away");
  }
}

void PingSession::wait_fds(std::vector<int>* out) const {
  out->push_back(channel_->wait_fd());
  if (writer_ != nullptr) out->push_back(writer_->endpoint().wait_fd());
  if (target_ != nullptr) out->push_back(target_->endpoint().wait_fd());
}

bool PingSession::may_wait() {
  if (open_ && options_.spin) return false;
  if (control() || finished()) return false;
  bool out = true;
  if (writer_ != nullptr && !writer_->may_wait()) out = false;
  if (target_ != nullptr && !target_->may_wait()) out = false;
  return out;
}

TimePoint PingSession::next_deadline() const {
  TimePoint out = std::min(deadline_, next_alive_);
  if (!run_ || run_->done()) return out;
  // Room in the send queue has no descriptor.
  const TimePoint retry = clock_.now() + Duration(1'000'000);
  return std::min(out, run_->between_rounds() ? run_->next_round() : retry);
}

// --- meeting -----------------------------------------------------------------------------------

Result<proto::Described> PingSession::meet() {
  auto met = tools::meet(
      {options_.peer, options_.keys, options_.timeout, options_.stop, options_.notice}, &clock_);
  if (!met.ok()) return met.status();
  channel_ = std::move(met->channel);
  messenger_ = std::move(met->messenger);
  messenger_->on_unreadable([this](control::PeerRef from, const Status& why) {
    if (from == peer_ && fault_.ok()) fault_ = unreadable_peer(options_.peer, why);
  });
  peer_ = met->ref;
  incarnation_ = met->incarnation;
  described_ = std::move(met->described);
  heard_ = clock_.now();
  return described_;
}

// --- the session -------------------------------------------------------------------------------

Status PingSession::ask(proto::Probe probe, Duration deadline, const std::string& what) {
  probe.request = awaited_ = ++request_;
  answer_.reset();
  const Status sent = messenger_->send(peer_, incarnation_, probe);
  if (!sent.ok()) return Status(StatusCode::kFailed, options_.peer + " went away");
  KVD_RETURN_IF_ERROR(loop(
      [this] {
        if (!answer_) return false;
        if (answer_->state != "queued") return true;
        const std::string place = std::to_string(answer_->ahead) + " before us";
        if (place != notice_ && options_.notice) {
          options_.notice("waiting for " + options_.peer + ": other clients use it, " + place);
        }
        notice_ = place;
        answer_.reset();
        return false;
      },
      deadline, options_.peer + " did not " + what));
  if (answer_->state == "done") return {};
  return refusal_of_peer(options_.peer, *answer_);
}

Status PingSession::open(fabric::Domain* domain) {
  domain_ = domain;
  const bool worker = described_.role != "probe";
  memory_bytes_ = worker ? std::min(options_.buffer_bytes, probe::worker_limits().buffer_bytes)
                         : options_.buffer_bytes;
  const bool shared = domain->capabilities().shared_sources && !options_.reverse;
  auto buffer = device::HostBuffer::allocate(
      memory_bytes_, shared ? device::Backing::kShared : device::Backing::kPrivate);
  if (!buffer.ok()) return buffer.status();
  buffer_ = std::move(*buffer);
  std::memset(buffer_.data(), 0x5a, buffer_.size());  // no page fault is measured
  proto::Probe open;
  open.op = "open";
  open.provider = domain->capabilities().provider;
  open.dead_after_ms = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(options_.dead_after.count() / 1'000'000, 2000, 60'000));
  open.spin = options_.spin;
  if (options_.reverse) {
    auto target = probe::PlainTarget::open(domain, buffer_.data(), memory_bytes_);
    if (!target.ok()) return target.status();
    target_ = std::move(*target);
    const fabric::RemoteRegion region = target_->region();
    open.address = target_->address();
    open.region_base = region.base;
    open.region_bytes = memory_bytes_;
    open.region_key = region.key;
  } else {
    auto source = domain->register_memory(buffer_.data(), memory_bytes_, false, nullptr);
    if (!source.ok()) return source.status();
    source_ = std::move(*source);
    writer_ = std::make_unique<probe::PlainWriter>(domain, buffer_.data(), memory_bytes_, &clock_);
    KVD_RETURN_IF_ERROR(writer_->open());
    open.address = writer_->address();
  }
  const TimePoint asked = heard_ = clock_.now();
  notice_.clear();
  KVD_RETURN_IF_ERROR(ask(std::move(open), options_.timeout, "open a session"));
  opened_ = *answer_;
  open_ = true;
  if (writer_ != nullptr) {
    KVD_RETURN_IF_ERROR(writer_->connect(
        opened_.address, {opened_.region_base, opened_.region_bytes, opened_.region_key},
        opened_.region_bytes));
    run_.emplace(writer_.get(), &clock_);
  }
  opening_ = clock_.now() - asked;
  return {};
}

Result<std::vector<double>> PingSession::run(const probe::PlainOrder& order, Duration time) {
  std::vector<double> out;
  if (options_.reverse) {
    proto::Probe write;
    write.op = "write";
    write.bytes = order.write_bytes;
    write.seed = order.seed;
    write.count = order.count;
    write.depth = order.depth;
    write.time_ms = static_cast<std::uint32_t>(time.count() / 1'000'000);
    write.pattern = order.in_place;
    KVD_RETURN_IF_ERROR(ask(std::move(write), time + options_.timeout, "finish its writes"));
    for (std::size_t at = 0; at < answer_->rounds.size(); at += 8) {
      out.push_back(static_cast<double>(number_at(answer_->rounds, at)));
    }
    return out;
  }
  probe::RunOptions options;
  options.order = order;
  options.time = time;
  const std::uint64_t bytes = order.write_bytes * order.count;
  if (opened_.max_bytes_per_s != 0) {
    options.least_gap = Duration(static_cast<std::int64_t>(
        static_cast<double>(bytes) / static_cast<double>(opened_.max_bytes_per_s) * 1e9));
  }
  if (opened_.max_rounds_per_s != 0) {
    options.least_gap =
        std::max(options.least_gap, Duration(1'000'000'000 / opened_.max_rounds_per_s));
  }
  KVD_RETURN_IF_ERROR(run_->start(options));
  KVD_RETURN_IF_ERROR(loop([this] { return run_->done(); }, time + options_.timeout + kLongestWait,
                           "the writes did not end"));
  for (const std::uint64_t ns : run_->rounds()) out.push_back(static_cast<double>(ns));
  return out;
}

Status PingSession::check_pages(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch,
                                const std::string& where) const {
  for (std::uint64_t i = 0; i < pages; ++i) {
    const auto wrong = probe::find_wrong(buffer_.data() + i * bytes, bytes, epoch, i);
    if (!wrong) continue;
    return {StatusCode::kCorrupted, "page " + std::to_string(i) + " of " + format_bytes(bytes) +
                                        " is wrong at byte " + std::to_string(*wrong) + ", " +
                                        where};
  }
  return {};
}

Status PingSession::check_read_back(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch) {
  std::memset(buffer_.data(), 0, bytes * pages);
  probe::PlainOrder order;
  order.write_bytes = bytes;
  order.count = pages;
  order.seed = epoch;
  order.read = order.in_place = true;
  const auto read = run(order, Duration{0});
  if (!read.ok()) return read.status();
  return check_pages(bytes, pages, epoch, "read back");
}

Status PingSession::verify(std::uint64_t bytes, std::uint32_t pages, std::uint64_t epoch) {
  probe::PlainOrder order;
  order.write_bytes = bytes;
  order.count = pages;
  order.seed = epoch;
  order.in_place = true;
  if (options_.reverse) {
    const auto written = run(order, Duration{0});
    if (!written.ok()) return written.status();
    return check_pages(bytes, pages, epoch, "written by " + options_.peer);
  }
  for (std::uint64_t i = 0; i < pages; ++i) {
    probe::fill_pattern(buffer_.data() + i * bytes, bytes, epoch, i);
  }
  const auto written = run(order, Duration{0});
  if (!written.ok()) return written.status();
  proto::Probe probe;
  probe.op = "verify";
  probe.bytes = bytes;
  probe.count = pages;
  probe.seed = epoch;
  KVD_RETURN_IF_ERROR(ask(std::move(probe), options_.timeout, "check the pages"));
  if (answer_->bad_pages != 0 || answer_->pages != pages) {
    return {StatusCode::kCorrupted, std::to_string(answer_->bad_pages) + " of " +
                                        std::to_string(pages) + " pages of " + format_bytes(bytes) +
                                        " are wrong at " + options_.peer + ", first page " +
                                        std::to_string(answer_->first_bad_page) + " at byte " +
                                        std::to_string(answer_->first_bad_offset)};
  }
  if (!domain_->capabilities().remote_read) return {};
  return check_read_back(bytes, pages, epoch);
}

Result<proto::ProbeResult> PingSession::sample() {
  proto::Probe probe;
  probe.op = "sample";
  KVD_RETURN_IF_ERROR(ask(std::move(probe), options_.timeout, "tell its counters"));
  return *answer_;
}

void PingSession::close() {
  if (!open_ || !fault_.ok()) return;
  proto::Probe probe;
  probe.op = "close";
  (void)ask(std::move(probe), options_.dead_after, "close").ok();
  open_ = false;
}

}  // namespace kvd::tools
