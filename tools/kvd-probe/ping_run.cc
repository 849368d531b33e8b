#include "kvd-probe/ping_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/rng.h"
#include "base/units.h"
#include "common/measure.h"
#include "peer/raw_peer.h"
#include "probe/interface_counts.h"

namespace kvd::tools {
namespace {

constexpr double kRoundSeconds = 0.01;
constexpr std::uint64_t kMostRoundBytes = 64u << 20;
constexpr std::uint32_t kMostWrites = 4096;
constexpr std::size_t kWarmUp = 10;
constexpr double kVerifySeconds = 0.1, kLeastVerified = 4;
constexpr std::uint64_t kMostVerified = 64u << 20;

double cpu_now_ns() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto ns = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_usec) * 1e3;
  };
  return ns(usage.ru_utime) + ns(usage.ru_stime);
}

Duration share_of(Duration time, double share) {
  return Duration(static_cast<std::int64_t>(static_cast<double>(time.count()) * share));
}

class PingRun {
 public:
  PingRun(const PingOptions& options, PingResult* out,
          const std::function<void(const PingResult&)>& progress)
      : options_(options), out_(*out), progress_(progress), session_(options.session) {}
  Status run();

 private:
  Status open();
  Status first_write();
  Status measure(std::uint64_t bytes);
  Status latency(SizeResult* size);
  Status choose_depth(SizeResult* size);
  Status bandwidth(SizeResult* size);
  Status reads(SizeResult* size);
  Status verify(const SizeResult& size);
  Status count_begin();
  Status count_end(double bytes);
  std::uint32_t writes_for(std::uint64_t bytes, std::uint32_t depth, double rate) const;
  std::uint64_t most_inflight() const;
  probe::PlainOrder order(const SizeResult& size) const;
  void report() {
    if (progress_) progress_(out_);
  }

  const PingOptions& options_;
  PingResult& out_;
  const std::function<void(const PingResult&)>& progress_;
  std::unique_ptr<fabric::Domain> domain_;  // outlives the session
  PingSession session_;
  std::vector<proto::InterfaceCount> here_, there_;
  double cpu_here_ = 0;
  std::uint64_t cpu_there_ = 0;
};

Status PingRun::open() {
  const auto address = parse_host_port(options_.session.peer);
  if (!address.ok()) return address.status();
  out_.source = options_.fabric_addr;
  if (out_.source.empty()) {
    const auto source = source_towards(*address);
    if (!source.ok()) return source.status();
    out_.source = *source;
  }
  KVD_RETURN_IF_ERROR(
      check_provider({options_.provider, options_.device, out_.source, options_.require_rdma}));
  const auto peer = session_.meet();
  if (!peer.ok()) return peer.status();
  out_.peer = *peer;
  if (peer->providers.empty()) {
    return {StatusCode::kIncompatible, options_.session.peer + " is a " + peer->program +
                                           " without providers: name a kvd-probe serve, "
                                           "kvd-prefill or kvd-decode"};
  }
  auto choice = choose_between(
      {options_.provider, options_.device, out_.source, options_.require_rdma}, *peer);
  if (!choice.ok()) return choice.status();
  out_.provider = std::move(*choice);
  report();
  auto domain = fabric::open_domain({out_.provider.name, out_.source, options_.device});
  if (!domain.ok()) return domain.status();
  domain_ = std::move(*domain);
  out_.capabilities = domain_->capabilities();

  KVD_RETURN_IF_ERROR(session_.open(domain_.get()));
  out_.open_ns = static_cast<double>(session_.opening().count());
  out_.opened = session_.opened();
  out_.rdma_ports_here = probe::active_rdma_ports();
  return {};
}

std::uint64_t PingRun::most_inflight() const {
  const std::uint64_t theirs = out_.opened.max_inflight_bytes;
  const std::uint64_t ours = out_.capabilities.max_inflight_bytes;
  return theirs == 0 ? ours : std::min(ours, theirs);
}

// Rounds of about 10 ms, and of several times their depth where that does not make them too long.
std::uint32_t PingRun::writes_for(std::uint64_t bytes, std::uint32_t depth, double rate) const {
  const double size = static_cast<double>(bytes);
  const double wanted = rate * kRoundSeconds / size, most = 5 * wanted;
  double count = std::max(wanted, std::min(4.0 * depth, most));
  count = std::min({count, static_cast<double>(kMostRoundBytes) / size, double{kMostWrites}});
  // A worker is asked for no more at once than it allows in flight.
  if (out_.limited()) count = std::min(count, static_cast<double>(most_inflight()) / size);
  return static_cast<std::uint32_t>(std::max(1.0, count));
}

probe::PlainOrder PingRun::order(const SizeResult& size) const {
  probe::PlainOrder out;
  out.write_bytes = size.bytes;
  out.depth = size.depth;
  out.count = size.writes;
  out.seed = size.bytes;
  return out;
}

Status PingRun::first_write() {
  probe::PlainOrder one;
  one.write_bytes = options_.bytes.front();
  one.count = 1;
  const auto rounds = session_.run(one, Duration{0});
  if (!rounds.ok()) return rounds.status();
  if (!rounds->empty()) out_.first_write_ns = rounds->front();
  return {};
}

Status PingRun::latency(SizeResult* size) {
  probe::PlainOrder one = order(*size);
  one.depth = one.count = 1;
  auto rounds = session_.run(one, share_of(options_.time, 0.25));
  if (!rounds.ok()) return rounds.status();
  size->latency_ns = std::move(*rounds);
  const std::size_t warm_up = std::min(kWarmUp, size->latency_ns.size() / 2);
  size->latency_ns.erase(size->latency_ns.begin(),
                         size->latency_ns.begin() + static_cast<std::ptrdiff_t>(warm_up));
  std::sort(size->latency_ns.begin(), size->latency_ns.end());
  return {};
}

// The best of three, unless --depth names one.
Status PingRun::choose_depth(SizeResult* size) {
  const double bytes = static_cast<double>(size->bytes);
  double rate = bytes / std::max(1.0, percentile(size->latency_ns, 0.5)) * 1e9;
  const auto most = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
      most_inflight() / size->bytes, 1, out_.capabilities.max_inflight_ops));
  std::vector<std::uint32_t> depths = {most, most / 2, most / 4};
  if (options_.depth) depths = {std::min(*options_.depth, most)};
  double best = 0;
  std::uint32_t chosen = depths.front();
  for (const std::uint32_t depth : depths) {
    if (depth == 0) continue;
    size->depth = depth;
    size->writes = writes_for(size->bytes, depth, rate);
    const auto rounds = session_.run(order(*size), share_of(options_.time, 0.05));
    if (!rounds.ok()) return rounds.status();
    const double now = bytes * size->writes / percentile(*rounds, 0.5) * 1e9;
    rate = std::max(rate, now);
    if (now <= best) continue;
    best = now;
    chosen = depth;
  }
  size->depth = chosen;
  size->writes = writes_for(size->bytes, chosen, best);
  return {};
}

Status PingRun::count_begin() {
  if (options_.brief) return {};
  auto there = session_.sample();
  if (!there.ok()) return there.status();
  out_.rdma_ports_there = there->active_rdma_ports;
  out_.cpu_there_known = there->cpu_ns != 0;
  there_ = std::move(there->interfaces);
  cpu_there_ = there->cpu_ns;
  here_ = probe::read_interface_counts();
  cpu_here_ = cpu_now_ns();
  return {};
}

void add_growth(std::vector<proto::InterfaceCount>* sum,
                const std::vector<proto::InterfaceCount>& growth) {
  for (const proto::InterfaceCount& one : growth) {
    const auto known = std::find_if(sum->begin(), sum->end(), [&](const auto& other) {
      return other.name == one.name && other.rdma == one.rdma;
    });
    if (known == sum->end()) {
      sum->push_back(one);
      continue;
    }
    known->sent_bytes += one.sent_bytes;
    known->received_bytes += one.received_bytes;
  }
}

Status PingRun::count_end(double bytes) {
  if (options_.brief) return {};
  out_.cpu_here_ns += cpu_now_ns() - cpu_here_;
  add_growth(&out_.here, probe::interface_growth(here_, probe::read_interface_counts()));
  auto there = session_.sample();
  if (!there.ok()) return there.status();
  add_growth(&out_.there, probe::interface_growth(there_, there->interfaces));
  out_.cpu_there_ns += static_cast<double>(there->cpu_ns - cpu_there_);
  out_.payload_bytes += bytes;
  return {};
}

Status PingRun::bandwidth(SizeResult* size) {
  KVD_RETURN_IF_ERROR(count_begin());
  const auto rounds = session_.run(order(*size), share_of(options_.time, 0.4));
  if (!rounds.ok()) return rounds.status();
  const double bytes = static_cast<double>(size->bytes) * size->writes;
  for (const double ns : *rounds) size->rates.push_back(bytes / ns * 1e9);
  return count_end(bytes * static_cast<double>(rounds->size()));
}

Status PingRun::reads(SizeResult* size) {
  if (!out_.capabilities.remote_read || options_.session.reverse) return {};
  probe::PlainOrder read = order(*size);
  read.read = true;
  const auto rounds = session_.run(read, share_of(options_.time, 0.2));
  if (!rounds.ok()) return rounds.status();
  const double bytes = static_cast<double>(size->bytes) * size->writes;
  for (const double ns : *rounds) size->read_rates.push_back(bytes / ns * 1e9);
  return {};
}

// As many pages as move in a moment, so that a slow link is not waited for.
Status PingRun::verify(const SizeResult& size) {
  const double rate = percentile(size.rates, 0.5);
  const double wanted =
      std::max(kLeastVerified, rate * kVerifySeconds / static_cast<double>(size.bytes));
  const std::uint64_t most =
      std::min({out_.opened.region_bytes, session_.memory_bytes(), kMostVerified}) / size.bytes;
  const auto pages = static_cast<std::uint32_t>(
      std::max(1.0, std::min({wanted, static_cast<double>(most), 16384.0})));
  KVD_RETURN_IF_ERROR(session_.verify(size.bytes, pages, ++out_.epoch));
  out_.verified_pages += pages;
  out_.verified_bytes += pages * size.bytes;
  return {};
}

Status PingRun::measure(std::uint64_t bytes) {
  SizeResult size;
  size.bytes = bytes;
  const bool first = bytes == options_.bytes.front(), last = bytes == options_.bytes.back();
  if (!options_.brief || first || last) KVD_RETURN_IF_ERROR(latency(&size));
  if (!options_.brief || last) {
    KVD_RETURN_IF_ERROR(choose_depth(&size));
    KVD_RETURN_IF_ERROR(bandwidth(&size));
    if (!options_.brief) KVD_RETURN_IF_ERROR(reads(&size));
    KVD_RETURN_IF_ERROR(verify(size));
  }
  out_.sizes.push_back(std::move(size));
  report();
  return {};
}

Status PingRun::run() {
  KVD_RETURN_IF_ERROR(open());
  for (const std::uint64_t bytes : options_.bytes) {
    if (bytes <= out_.capabilities.max_write_bytes) continue;
    return invalid_argument("--bytes " + format_bytes(bytes) + ": a write of " +
                            out_.capabilities.provider + " has " +
                            format_bytes(out_.capabilities.max_write_bytes) + " at most");
  }
  out_.epoch = secure_random_u63() >> 8;
  KVD_RETURN_IF_ERROR(first_write());
  for (const std::uint64_t bytes : options_.bytes) KVD_RETURN_IF_ERROR(measure(bytes));
  session_.close();
  return {};
}

}  // namespace

void run_ping(const PingOptions& options, PingResult* result,
              const std::function<void(const PingResult&)>& progress) {
  result->reverse = options.session.reverse;
  PingRun run(options, result, progress);
  result->status = run.run();
}

}  // namespace kvd::tools
