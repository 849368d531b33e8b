#include "kvd-bench/pages_run.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "common/cpu_distance.h"
#include "common/measure.h"
#include "probe/plain_writes.h"
#include "transfer/write_plan.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr double kGib = 1u << 30;
// A round begins and ends with an empty wire, which must not show.
constexpr double kRoundSeconds = 0.15;
constexpr int kDepthRounds = 5;
constexpr std::uint64_t kDepthPart = 4;  // they are shorter than those that count
constexpr std::size_t kPairsPerMib = 4;  // a round at 1 MiB after so many pairs
constexpr std::size_t kPairsPerVerify = 16;
constexpr std::uint32_t kIsolatedRequests = 300;
constexpr std::uint32_t kMostRequests = 4096;  // of a round

class PagesRun {
 public:
  PagesRun(const PagesPlan& plan, const PagesWatch& watch) : watch_(watch) { out_.plan = plan; }
  Status run();
  PagesResult take() { return std::move(out_); }

 private:
  bool stopped() const { return watch_.stop && watch_.stop(); }
  bool over() const { return clock_.now() >= end_ || stopped(); }
  Status open();
  Status shape_ceiling();
  Status choose_depth();
  Status pairs();
  Status one_pair();
  Status isolated();
  Status verify();
  Result<KvRound> kv_round();
  Result<PlainRound> plain_round(probe::PlainOrder order, std::uint64_t bytes);
  bool tight() const;

  const PagesWatch& watch_;
  const SteadyClock clock_;
  TimePoint end_ = kNever;  // the pools are there: what comes now is measuring
  std::unique_ptr<PagesPair> pair_;
  PagesResult out_;
  std::uint64_t round_bytes_ = 0;
};

Status PagesRun::open() {
  auto pair = PagesPair::start(out_.plan, false);
  if (!pair.ok()) return pair.status();
  pair_ = std::move(*pair);
  out_.provider = pair_->provider();
  out_.shared_clock = pair_->shares_clock();
  out_.libfabric_name = pair_->capabilities().libfabric_name;
  out_.huge_pages = pair_->huge_pages();
  out_.copies = pair_->capabilities().target_copies ? 1 : 0;
  out_.cold = pair_->cold();
  end_ = clock_.now() + out_.plan.options.max_time;
  return {};
}

Result<KvRound> PagesRun::kv_round() {
  const PagesOptions& options = out_.plan.options;
  return pair_->kv_round(out_.plan.requests_a_round, options.concurrency, false,
                         options.rate.value_or(0));
}

Result<PlainRound> PagesRun::plain_round(probe::PlainOrder order, std::uint64_t bytes) {
  order.seed = 1;  // of one shape the places stay, and are not drawn for each round
  order.signal = true;
  order.count = static_cast<std::uint32_t>(
      std::max<std::uint64_t>(1, (bytes + order.write_bytes / 2) / order.write_bytes));
  return pair_->plain_round(order);
}

Status PagesRun::verify() {
  const std::uint32_t requests = out_.plan.options.concurrency;
  const auto round = pair_->kv_round(requests, requests, true, 0);
  if (!round.ok()) return round.status();
  out_.verified += round->verified;
  out_.runs = static_cast<double>(round->runs) / requests;
  return {};
}

// What the writes of a request look like: the ceiling's are alike.
Status PagesRun::shape_ceiling() {
  const auto round = kv_round();
  if (!round.ok()) return round.status();
  const auto requests = static_cast<double>(round->requests.size());
  out_.pages = static_cast<double>(round->pages) / requests;
  out_.writes = static_cast<double>(round->writes) / requests;
  out_.bytes = static_cast<double>(round->bytes) / requests;
  const PagesOptions& options = out_.plan.options;
  std::uint32_t* a_round = &out_.plan.requests_a_round;
  if (!options.rate) {  // else a round lasts as long as its requests take to come
    const double longer = std::clamp(kRoundSeconds / round->seconds, 0.0, 64.0);
    *a_round = std::clamp(static_cast<std::uint32_t>(*a_round * longer), options.concurrency,
                          kMostRequests);
  }
  round_bytes_ = static_cast<std::uint64_t>(out_.bytes * *a_round);
  const auto per_write = [&](std::uint64_t n) {
    return std::max<std::uint64_t>(
        1, (n + round->writes / 2) / std::max<std::uint64_t>(1, round->writes));
  };
  const auto pieces = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(per_write(round->pieces), probe::kMostPieces));
  const std::uint64_t bytes =
      transfer::nearest_for_packets(per_write(round->bytes), pair_->capabilities().packet_bytes);
  // Whole cache lines a piece.
  const std::uint64_t piece = std::max<std::uint64_t>(64, bytes / pieces / 64 * 64);
  out_.ceiling.pieces = pieces;
  out_.ceiling.write_bytes = piece * pieces;
  return {};
}

// The best of three depths, none with more bytes in flight than KV has.
Status PagesRun::choose_depth() {
  const fabric::Capabilities& capabilities = pair_->capabilities();
  const std::uint64_t most = std::clamp<std::uint64_t>(
      capabilities.max_inflight_bytes / out_.ceiling.write_bytes, 1, capabilities.max_inflight_ops);
  std::map<std::uint64_t, std::vector<double>> rates;
  for (int round = 0; round < kDepthRounds; ++round) {
    for (const std::uint64_t part : {1, 2, 4}) {
      probe::PlainOrder order = out_.ceiling;
      order.depth = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, most / part));
      const auto plain = plain_round(order, round_bytes_ / kDepthPart);
      if (!plain.ok()) return plain.status();
      rates[order.depth].push_back(plain->bytes_per_s());
      if (over()) break;
    }
  }
  double best = 0;
  for (const auto& [depth, values] : rates) {
    const double median = spread_of(values).median;
    if (median <= best) continue;
    best = median;
    out_.ceiling.depth = static_cast<std::uint32_t>(depth);
  }
  return {};
}

// Which of the two goes first changes from pair to pair: what drifts falls on both.
Status PagesRun::one_pair() {
  const bool plain_first = out_.pairs.size() % 2 == 1;
  Result<PlainRound> plain = PlainRound{};
  if (plain_first) plain = plain_round(out_.ceiling, round_bytes_);
  if (!plain.ok()) return plain.status();
  auto kv = kv_round();
  if (!kv.ok()) return kv.status();
  if (!plain_first) plain = plain_round(out_.ceiling, round_bytes_);
  if (!plain.ok()) return plain.status();
  RoundPair pair;
  pair.bytes = kv->bytes;
  pair.cpu = kv->cpu;
  pair.bytes_per_s = kv->bytes_per_s();
  pair.ceiling_bytes_per_s = plain->bytes_per_s();
  pair.cpu_ns_per_gib = kv->cpu.total() / static_cast<double>(kv->bytes) * kGib;
  pair.ceiling_cpu_ns_per_gib = plain->cpu.total() / static_cast<double>(plain->bytes) * kGib;
  out_.pairs.push_back(pair);
  out_.requests.insert(out_.requests.end(), kv->requests.begin(), kv->requests.end());
  return {};
}

bool PagesRun::tight() const {
  if (out_.pairs.size() < out_.plan.options.least_pairs) return false;
  std::vector<double> ratios;
  for (const RoundPair& pair : out_.pairs) ratios.push_back(pair.ratio());
  const Interval interval = median_interval(ratios);
  const double median = spread_of(ratios).median;
  return (interval.high - interval.low) / 2 <= out_.plan.options.tight * median;
}

Status PagesRun::pairs() {
  const std::uint64_t at_once = pair_->capabilities().max_inflight_bytes / kMib;
  probe::PlainOrder mib;
  mib.write_bytes = std::min(kMib, pair_->capabilities().max_write_bytes);
  mib.depth = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, at_once));
  const auto more = [this] { return out_.pairs.empty() ? !stopped() : !over(); };
  while (more() && out_.pairs.size() < out_.plan.options.most_pairs) {
    if (out_.pairs.size() % kPairsPerMib == 0) {
      const auto plain = plain_round(mib, round_bytes_);
      if (!plain.ok()) return plain.status();
      out_.ceiling_1mib.push_back(plain->bytes_per_s());
    }
    if (out_.pairs.size() % kPairsPerVerify == 0) KVD_RETURN_IF_ERROR(verify());
    KVD_RETURN_IF_ERROR(one_pair());
    if (watch_.paired) watch_.paired(out_);
    out_.tight = tight();
    if (out_.tight) break;
  }
  return {};
}

// Another pair of processes: the same code, but a provider that claims no order.
Status PagesRun::isolated() {
  PagesPlan plan = out_.plan;
  plan.tokens = *TokenLengths::parse(std::to_string(plan.layout.page_size));
  plan.options.concurrency = 1;
  plan.options.provider = out_.provider;
  auto pair = PagesPair::start(plan, true);
  if (!pair.ok()) return pair.status();
  const auto round = (*pair)->kv_round(kIsolatedRequests, 1, false, 0);
  if (!round.ok()) return round.status();
  for (const RequestTimes& times : round->requests) out_.isolated_commit_ns.push_back(times.commit);
  return {};
}

Status PagesRun::run() {
  const PagesOptions& options = out_.plan.options;
  const bool here = options.peer.empty();
  if (here) out_.cpu_round_trip_before_ns = cpu_round_trip_ns(options.pin);
  KVD_RETURN_IF_ERROR(open());
  KVD_RETURN_IF_ERROR(verify());
  KVD_RETURN_IF_ERROR(shape_ceiling());
  KVD_RETURN_IF_ERROR(choose_depth());
  KVD_RETURN_IF_ERROR(pairs());
  KVD_RETURN_IF_ERROR(verify());
  pair_.reset();
  if (here) out_.cpu_round_trip_after_ns = cpu_round_trip_ns(options.pin);
  const Status alone = stopped() ? Status() : isolated();
  out_.partial = stopped() || !alone.ok();
  if (alone.ok() || stopped()) return {};
  // Another client may have its turn at the peer, for longer than we wait; what was measured
  // stands.
  const bool waited =
      alone.code() == StatusCode::kDeadline || alone.code() == StatusCode::kUnavailable;
  if (here || !waited) return alone;
  if (options.notice) options.notice("the commit alone was not measured: " + alone.message());
  return {};
}

}  // namespace

Result<PagesResult> run_pages(const PagesPlan& plan, const PagesWatch& watch) {
  PagesRun run(plan, watch);
  if (const Status status = run.run(); !status.ok()) return status;
  return run.take();
}

}  // namespace kvd::tools
