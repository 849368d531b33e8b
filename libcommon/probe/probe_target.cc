#include "probe/probe_target.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "fabric/provider_details.h"
#include "probe/interface_counts.h"
#include "probe/pattern.h"

namespace kvd::probe {
namespace {

constexpr std::uint64_t kVerifySlice = 256u << 10;  // bytes a step
constexpr Duration kIdle{100'000'000};              // how often silence is looked for
// Of the thread's time: what may be used at once after a pause, and what one turn can cost.
constexpr Duration kBurst{4'000'000}, kLongestTurn{1'000'000};
// Turns of the endpoint for each look at the clock, which costs 24 ns: a small write takes 3 us.
constexpr int kTurns = 16;

std::uint64_t process_cpu_ns() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  const auto ns = [](const timeval& t) {
    return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(t.tv_usec) * 1000;
  };
  return ns(usage.ru_utime) + ns(usage.ru_stime);
}

std::string packed(const std::vector<std::uint64_t>& numbers) {
  std::string out;
  out.reserve(8 * numbers.size());
  for (const std::uint64_t number : numbers) {
    for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>(number >> shift & 0xff);
  }
  return out;
}

}  // namespace

TargetLimits worker_limits() {
  TargetLimits out;
  out.buffer_bytes = 8u << 20;
  out.max_inflight_bytes = 1u << 20;
  out.max_bytes_per_s = 64u << 20;
  out.max_rounds_per_s = 500;
  out.loop_share = 0.05;
  out.writes_back = false;
  out.own_process = false;
  return out;
}

struct ProbeTarget::Session {
  Client client;
  TimePoint since{0};
  fabric::Domain* domain = nullptr;
  std::unique_ptr<fabric::MemoryRegion> source;
  std::unique_ptr<OtherSession> other;  // without it: target, and perhaps a writer
  std::unique_ptr<PlainTarget> target;
  std::unique_ptr<PlainWriter> writer;
  std::optional<WriteRun> run;
  proto::Probe order;                          // what `run` or `verifying` carries out
  std::optional<proto::ProbeResult> verified;  // so far
  std::uint64_t next_page = 0;
};

ProbeTarget::ProbeTarget(const TargetLimits& limits, std::vector<fabric::Domain*> domains,
                         control::Messenger* messenger, const Clock* clock)
    : limits_(limits), domains_(std::move(domains)), messenger_(messenger), clock_(clock) {}

ProbeTarget::~ProbeTarget() = default;

void ProbeTarget::answer(const Client& client, proto::ProbeResult result) {
  // A client that cannot be told is found silent, or finds us so.
  (void)messenger_->send(client.peer, client.incarnation, result).ok();
}

void ProbeTarget::refuse(const Client& client, std::uint64_t request, const std::string& code,
                         const std::string& text) {
  proto::ProbeResult result;
  result.request = request;
  result.state = "refused";
  result.code = code;
  result.text = text;
  answer(client, std::move(result));
}

bool ProbeTarget::on_message(const control::Received& message) {
  if (message.envelope.type != proto::MessageType::kProbe) return false;
  auto probe = proto::decode_body<proto::Probe>(message.envelope);
  if (!probe.ok()) {
    messenger_->refuse(message, "malformed", probe.status().message());
    return true;
  }
  if (probe->op == "dial") return false;
  const auto is_from = [&](const Client& client) {
    return client.peer == message.from && client.incarnation == message.envelope.from;
  };
  if (session_ != nullptr && is_from(session_->client)) {
    session_->client.heard = clock_->now();
    on_session(*probe);
    return true;
  }
  for (std::size_t i = 0; i < line_.size(); ++i) {
    if (!is_from(line_[i])) continue;
    line_[i].heard = clock_->now();
    proto::ProbeResult result;
    if (probe->op == "close") {
      result.request = probe->request;
      result.state = "done";
      answer(line_[i], std::move(result));
      line_.erase(line_.begin() + static_cast<std::ptrdiff_t>(i));
      return true;
    }
    result.request = line_[i].open.request;
    result.state = "queued";
    result.ahead = static_cast<std::uint32_t>(i) + 1;
    answer(line_[i], std::move(result));
    return true;
  }
  on_open(message, std::move(*probe));
  return true;
}

void ProbeTarget::on_open(const control::Received& message, proto::Probe probe) {
  Client client{message.from, message.envelope.from, std::move(probe), clock_->now()};
  if (client.open.op != "open" && client.open.op != "pages") {
    refuse(client, client.open.request, "no_session", "no session of this client is open");
    return;
  }
  if (session_ != nullptr && clock_->now() - session_->since > kOld) end("others wait");
  if (session_ == nullptr && line_.empty()) {
    begin(std::move(client));
    return;
  }
  if (line_.size() >= kMostWaiting) {
    refuse(client, client.open.request, "busy",
           std::to_string(sessions()) + " clients are here already; try later");
    return;
  }
  line_.push_back(std::move(client));
  proto::ProbeResult result;
  result.request = line_.back().open.request;
  result.state = "queued";
  result.ahead = static_cast<std::uint32_t>(line_.size());
  answer(line_.back(), std::move(result));
}

void ProbeTarget::begin(Client client) {
  auto session = std::make_unique<Session>();
  session->client = std::move(client);
  session->since = clock_->now();
  proto::ProbeResult result;
  result.request = session->client.open.request;
  const bool other = session->client.open.op == "pages";
  const Status status =
      other ? open_other(session.get(), &result) : open_session(session.get(), &result);
  if (!status.ok()) {
    const StatusCode code = status.code();
    refuse(session->client, result.request,
           code == StatusCode::kNoProvider        ? "no_provider"
           : code == StatusCode::kInvalidArgument ? "invalid"
                                                  : "failed",
           status.message());
    return;
  }
  // Opening takes a while: the client could not be heard.
  session->client.heard = clock_->now();
  log_info("probe session opened",
           {{"client", session->client.incarnation}, {"provider", session->client.open.provider}});
  session_ = std::move(session);
  result.state = "done";
  answer(session_->client, std::move(result));
}

Status ProbeTarget::allocate(bool shared) {
  if (buffer_.data() != nullptr && buffer_.shared() == shared) return {};
  buffer_ = device::HostBuffer();
  auto buffer = device::HostBuffer::allocate(
      limits_.buffer_bytes, shared ? device::Backing::kShared : device::Backing::kPrivate);
  if (!buffer.ok()) return buffer.status();
  buffer_ = std::move(*buffer);
  // No page fault shall be measured.
  if (limits_.own_process) std::memset(buffer_.data(), 0x5a, buffer_.size());
  return {};
}

Status ProbeTarget::open_session(Session* session, proto::ProbeResult* result) {
  const proto::Probe& open = session->client.open;
  for (fabric::Domain* domain : domains_) {
    if (domain->capabilities().provider == open.provider) session->domain = domain;
  }
  if (session->domain == nullptr) {
    return {StatusCode::kNoProvider, "provider " + open.provider + " is not offered here"};
  }
  if (open.region_bytes != 0 && !limits_.writes_back) {
    return invalid_argument(
        "a worker never writes to a client: --reverse needs a kvd-probe serve there");
  }
  // What is written from must be shared where the other side copies (`local`).
  const bool shared = open.region_bytes != 0 && session->domain->capabilities().shared_sources;
  KVD_RETURN_IF_ERROR(allocate(shared));
  auto target = PlainTarget::open(session->domain, buffer_.data(), limits_.buffer_bytes);
  if (!target.ok()) return target.status();
  session->target = std::move(*target);
  if (!open.address.empty()) KVD_RETURN_IF_ERROR(session->target->insert(open.address));
  if (open.region_bytes != 0) {
    auto source =
        session->domain->register_memory(buffer_.data(), limits_.buffer_bytes, false, nullptr);
    if (!source.ok()) return source.status();
    session->source = std::move(*source);
    session->writer = std::make_unique<PlainWriter>(session->domain, buffer_.data(),
                                                    limits_.buffer_bytes, clock_);
    KVD_RETURN_IF_ERROR(session->writer->connect(
        open.address, {open.region_base, open.region_bytes, open.region_key}, open.region_bytes));
    session->run.emplace(session->writer.get(), clock_);
  }
  const fabric::RemoteRegion region = session->target->region();
  result->address = session->target->address();
  result->region_base = region.base;
  result->region_bytes = limits_.buffer_bytes;
  result->region_key = region.key;
  result->max_inflight_bytes = limits_.max_inflight_bytes;
  result->max_bytes_per_s = limits_.max_bytes_per_s;
  result->max_rounds_per_s = limits_.max_rounds_per_s;
  result->libfabric = fabric::libfabric_version();
  return {};
}

Status ProbeTarget::open_other(Session* session, proto::ProbeResult* result) {
  const Client& client = session->client;
  if (others_ == nullptr) {
    return invalid_argument("a worker sends no pages of a benchmark: name a kvd-probe serve");
  }
  auto opened = others_->open(client.peer, client.incarnation, client.open, result);
  if (!opened.ok()) return opened.status();
  session->other = std::move(*opened);
  return {};
}

Status ProbeTarget::health() const {
  return session_->other != nullptr ? session_->other->health() : session_->target->health();
}

void ProbeTarget::end(const std::string& why) {
  const Incarnation client = session_->client.incarnation;
  // Closes the endpoint: from here on nothing lands.
  session_.reset();
  log_info("probe session ended", {{"client", client}, {"why", why}});
  if (!limits_.own_process) buffer_ = device::HostBuffer();
}

void ProbeTarget::start_next() {
  while (session_ == nullptr && !line_.empty()) {
    Client next = std::move(line_.front());
    line_.pop_front();
    begin(std::move(next));
  }
}

void ProbeTarget::on_session(const proto::Probe& probe) {
  const Client& client = session_->client;
  proto::ProbeResult done;
  done.request = probe.request;
  done.state = "done";
  if (probe.op == "alive") {
    answer(client, std::move(done));
  } else if (session_->other != nullptr && probe.op != "close") {
    session_->other->on_probe(probe);
  } else if (probe.op == "sample") {
    answer(client, sample(probe));
  } else if (probe.op == "close") {
    answer(client, std::move(done));
    end("closed");
    start_next();
  } else if (probe.op == "open" || probe.op == "pages") {
    refuse(client, probe.request, "invalid", "the session is open already");
  } else if (probe.op == "fill" || probe.op == "sync") {
    refuse(client, probe.request, "invalid", probe.op + " belongs into a session of pages");
  } else if (session_->verified || (session_->run && !session_->run->done())) {
    refuse(client, probe.request, "busy", "the step before is not done");
  } else if (probe.op == "verify") {
    start_verify(probe);
  } else if (const Status status = start_write(probe); !status.ok()) {
    refuse(client, probe.request, "invalid", status.message());
  }
}

Status ProbeTarget::start_write(const proto::Probe& probe) {
  if (!session_->run) return invalid_argument("the session was opened without a region to write");
  if (probe.pattern) {
    if (probe.count > limits_.buffer_bytes / probe.bytes) {
      return invalid_argument("more pages than the memory here holds");
    }
    for (std::uint64_t i = 0; i < probe.count; ++i) {
      fill_pattern(buffer_.data() + i * probe.bytes, probe.bytes, probe.seed, i);
    }
  }
  RunOptions options;
  options.order.write_bytes = probe.bytes;
  options.order.depth = probe.depth;
  options.order.count = probe.count;
  options.order.seed = probe.seed;
  options.order.in_place = probe.pattern;
  options.time = std::chrono::milliseconds(probe.time_ms);
  options.most = proto::ProbeBounds::kRounds;
  session_->order = probe;
  return session_->run->start(options);
}

void ProbeTarget::start_verify(const proto::Probe& probe) {
  if (probe.count > limits_.buffer_bytes / probe.bytes) {
    refuse(session_->client, probe.request, "invalid", "more pages than the memory here holds");
    return;
  }
  session_->order = probe;
  session_->next_page = 0;
  session_->verified.emplace();
  session_->verified->request = probe.request;
  session_->verified->state = "done";
}

void ProbeTarget::step_verify() {
  const proto::Probe& order = session_->order;
  proto::ProbeResult& result = *session_->verified;
  for (std::uint64_t looked = 0; looked < kVerifySlice && session_->next_page < order.count;
       looked += order.bytes) {
    const std::uint64_t page = session_->next_page++;
    ++result.pages;
    const auto wrong =
        find_wrong(buffer_.data() + page * order.bytes, order.bytes, order.seed, page);
    if (!wrong) continue;
    if (result.bad_pages++ == 0) {
      result.first_bad_page = page;
      result.first_bad_offset = *wrong;
    }
  }
  if (session_->next_page < order.count) return;
  answer(session_->client, std::move(result));
  session_->verified.reset();
}

proto::ProbeResult ProbeTarget::sample(const proto::Probe& probe) const {
  proto::ProbeResult result;
  result.request = probe.request;
  result.state = "done";
  result.cpu_ns = limits_.own_process ? process_cpu_ns() : 0;
  result.active_rdma_ports = active_rdma_ports();
  result.interfaces = read_interface_counts();
  return result;
}

void ProbeTarget::charge(TimePoint began) {
  if (limits_.loop_share >= 1) return;
  const TimePoint now = clock_->now();
  const double earned = limits_.loop_share * static_cast<double>((now - credited_).count());
  credit_ = std::min(kBurst, credit_ + Duration(static_cast<std::int64_t>(earned)));
  credited_ = now;
  // What takes longer was interrupted by somebody else.
  credit_ -= std::min(now - began, kLongestTurn);
  if (credit_ >= Duration(0)) return;
  const double missing = static_cast<double>(-credit_.count());
  not_before_ = now + Duration(static_cast<std::int64_t>(missing / limits_.loop_share));
}

bool ProbeTarget::step_session() {
  if (session_->other != nullptr) return session_->other->step();
  bool busy = false;
  (void)session_->target->step(&busy);
  if (session_->verified) {
    step_verify();
    busy = true;
  }
  if (session_->run && !session_->run->done()) {
    if (session_->run->step()) busy = true;
    if (session_->run->done()) {
      proto::ProbeResult result;
      result.request = session_->order.request;
      result.state = session_->run->status().ok() ? "done" : "refused";
      result.code = session_->run->status().ok() ? "" : "failed";
      result.text = session_->run->status().message();
      result.rounds = packed(session_->run->rounds());
      answer(session_->client, std::move(result));
    }
  } else if (session_->writer != nullptr) {
    // Idle writers of some providers have connections to look after.
    if (session_->writer->step()) busy = true;
  }
  return busy;
}

void ProbeTarget::drop_silent() {
  const TimePoint now = clock_->now();
  std::erase_if(line_, [&](const Client& client) { return client.silent(now); });
  if (session_ == nullptr) return;
  if (session_->client.silent(now)) {
    end("its client was silent");
  } else if (const Status broken = health(); !broken.ok()) {
    refuse(session_->client, session_->client.open.request, "failed", broken.message());
    end(broken.message());
  } else if (!line_.empty() && now - session_->since > kOld) {
    refuse(session_->client, session_->client.open.request, "over", "others wait");
    end("others wait");
  }
}

bool ProbeTarget::poll() {
  if (session_ == nullptr && line_.empty()) return false;
  bool busy = false;
  if (session_ != nullptr && !throttled()) {
    const TimePoint began = clock_->now();
    const int turns = limits_.own_process && session_->other == nullptr ? kTurns : 1;
    for (int turn = 0; turn < turns; ++turn) busy = step_session() || busy;
    charge(began);
  }
  drop_silent();
  start_next();
  return busy;
}

void ProbeTarget::wait_fds(std::vector<int>* out) const {
  if (session_ == nullptr || throttled()) return;
  if (session_->other != nullptr) return session_->other->wait_fds(out);
  out->push_back(session_->target->endpoint().wait_fd());
  if (session_->writer != nullptr) out->push_back(session_->writer->endpoint().wait_fd());
}

bool ProbeTarget::may_wait() {
  if (session_ == nullptr || throttled()) return true;
  if (session_->client.open.spin && limits_.own_process) return false;
  if (session_->other != nullptr) return session_->other->may_wait();
  if (session_->verified) return false;
  const TimePoint began = clock_->now();
  bool out = session_->target->may_wait();
  if (session_->writer != nullptr && !session_->writer->may_wait()) out = false;
  charge(began);
  return out;
}

TimePoint ProbeTarget::next_deadline() const {
  if (sessions() == 0) return kNever;
  const TimePoint now = clock_->now();
  if (session_ == nullptr) return now + kIdle;
  if (throttled()) return not_before_;
  if (session_->other != nullptr) return std::min(now + kIdle, session_->other->next_deadline());
  // Room in the send queue has no descriptor.
  const bool writes = session_->run && !session_->run->done();
  return now + (writes ? Duration(1'000'000) : kIdle);
}

}  // namespace kvd::probe
