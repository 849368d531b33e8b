#include "transfer/transfer_metrics.h"

namespace kvd::transfer {
namespace {
constexpr std::size_t kMaxPeerLabels = 256;
}  // namespace

TransferMetrics::TransferMetrics(Metrics* metrics) : metrics_(metrics) {
  if (metrics_ == nullptr) return;
  for (std::size_t i = 0; i < room_gauges_.size(); ++i) {
    room_gauges_[i] =
        metrics_->gauge("kvd_rooms", "Rooms by state",
                        {{"state", std::string(to_string(static_cast<room::RoomState>(i)))}});
  }
  drains_gauge_ = metrics_->gauge("kvd_drains_pending",
                                  "Failed rooms whose last write is not yet proven to be over");
  stale_ = metrics_->counter("kvd_stale_commits_total",
                             "Commit signals that named no leased slot and were dropped");
  ignored_ = metrics_->counter("kvd_room_events_ignored_total", "Late or repeated events of rooms");
  violations_ = metrics_->counter("kvd_room_violations_total",
                                  "Events of rooms that broke the protocol and ended a link");
  links_ended_ = metrics_->counter("kvd_links_ended_total", "Links that were ended");
}

void TransferMetrics::count(room::RoomState state, room::Drain drain, int delta) {
  const auto index = static_cast<std::size_t>(state);
  rooms_[index] += delta;
  const bool drains = drain == room::Drain::kPending || drain == room::Drain::kUnproven;
  if (drains) drains_ += delta;
  if (metrics_ == nullptr) return;
  room_gauges_[index].set(static_cast<double>(rooms_[index]));
  if (drains) drains_gauge_.set(static_cast<double>(drains_));
}

void TransferMetrics::ignored_event() {
  ++ignored_events_;
  if (metrics_ != nullptr) ignored_.add();
}

void TransferMetrics::violation() {
  if (metrics_ != nullptr) violations_.add();
}

void TransferMetrics::stale_commit() {
  ++stale_commits_;
  if (metrics_ != nullptr) stale_.add();
}

void TransferMetrics::link_ended() {
  if (metrics_ != nullptr) links_ended_.add();
}

void TransferMetrics::bytes(const std::string& provider, const std::string& peer,
                            std::uint64_t bytes) {
  if (metrics_ == nullptr) return;
  // Peers that restart for ever must not grow the metrics for ever.
  const bool known = bytes_.size() < kMaxPeerLabels || bytes_.contains({provider, peer});
  const std::string label = known ? peer : "other";
  auto [it, fresh] = bytes_.try_emplace({provider, label});
  if (fresh) {
    it->second = metrics_->counter("kvd_transfer_bytes_total",
                                   "KV bytes committed (decode) or written (prefill)",
                                   {{"provider", provider}, {"peer", label}});
  }
  it->second.add(static_cast<double>(bytes));
}

void TransferMetrics::stage(const std::string& stage, Duration duration) {
  if (metrics_ == nullptr) return;
  auto [it, fresh] = stages_.try_emplace(stage);
  if (fresh) {
    it->second = metrics_->histogram("kvd_stage_seconds", "Time of one stage of a request",
                                     {{"stage", stage}});
  }
  it->second.observe(static_cast<double>(duration.count()) / 1e9);
}

void TransferMetrics::link_state(const std::string& peer, int state) {
  if (metrics_ == nullptr) return;
  auto [it, fresh] = link_states_.try_emplace(peer);
  if (fresh) {
    it->second = metrics_->gauge("kvd_link_state", "0 down, 1 being set up, 2 ready, 3 refused",
                                 {{"peer", peer}});
  }
  it->second.set(state);
}

}  // namespace kvd::transfer
