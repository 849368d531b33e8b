#include "node/route_members.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"
#include "http/body_edit.h"

namespace kvd::node {
namespace {

constexpr const char* kStates[] = {"ready",      "draining", "silent", "unknown",
                                   "wrong-role", "suspect",  "tripped"};

// KV can go from a prefill to a decode only when this is equal on both.
std::string kv_kind(const proto::Described& info) {
  const proto::LayoutInfo& layout = info.layout;
  return info.fingerprint + "/" + layout.dtype + "/" + std::to_string(layout.page_size) + "/" +
         std::to_string(layout.layers) + "/" + std::to_string(layout.kv_heads) + "/" +
         std::to_string(layout.head_dim);
}

}  // namespace

void Breaker::success(Probe probe) {
  if (counts(probe)) reset();
}

void Breaker::failure(Probe probe, TimePoint now) {
  if (!counts(probe)) return;
  ++failures_;
  if (open_) wait_ = std::min(wait_ * 2, kLongestWait);
  if (failures_ < kThreshold) return;
  open_ = true;
  probing_ = 0;
  next_probe_ = now + wait_;
}

void Breaker::neutral(Probe probe) {
  if (probe == probing_) probing_ = 0;
}

void Breaker::reset() {
  const Probe last = last_probe_;
  *this = Breaker{};
  last_probe_ = last;
}

RouteMembers::RouteMembers(bool standalone, Duration dead_after, std::uint64_t seed)
    : standalone_(standalone), dead_after_(dead_after), rng_(seed) {}

Result<std::unique_ptr<RouteMembers>> RouteMembers::create(std::string_view policy, bool standalone,
                                                           Duration dead_after,
                                                           std::uint64_t seed) {
  std::unique_ptr<RouteMembers> members(new RouteMembers(standalone, dead_after, seed));
  Result<std::unique_ptr<router::RoutingPolicy>> made = router::make_policy(policy, &members->rng_);
  if (!made.ok()) return made.status();
  members->policy_ = std::move(*made);
  return members;
}

void RouteMembers::add_listed(const std::string& role, const std::string& address) {
  const std::lock_guard lock(mutex_);
  Worker& worker = workers_[address];
  worker.role = role;
  worker.listed = true;
}

void RouteMembers::set_discovered(const std::vector<proto::Member>& members) {
  const std::lock_guard lock(mutex_);
  std::set<std::string> named;
  for (const proto::Member& member : members) {
    if (member.role != "prefill" && member.role != "decode") continue;
    if (workers_.size() >= kMaxWorkers && !workers_.contains(member.control)) continue;
    named.insert(member.control);
    Worker& worker = workers_[member.control];
    if (!worker.listed) worker.role = member.role;
  }
  for (auto& [address, worker] : workers_) worker.discovered = named.contains(address);
}

std::vector<std::string> RouteMembers::addresses() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  out.reserve(workers_.size());
  for (const auto& [address, worker] : workers_) out.push_back(address);
  return out;
}

bool RouteMembers::on_described(const std::string& address, Incarnation from,
                                const proto::Described& described, TimePoint now) {
  const std::lock_guard lock(mutex_);
  const auto entry = workers_.find(address);
  if (entry == workers_.end()) return false;
  Worker& worker = entry->second;
  const bool restarted = worker.described && worker.incarnation != from;
  if (!worker.alive || restarted) {
    log_info("worker is there", {{"role", described.role},
                                 {"worker", address},
                                 {"incarnation", from},
                                 {"model", described.model}});
    if (described.role != worker.role) {
      log_warn("worker is listed for another role",
               {{"worker", address}, {"listed", worker.role}, {"role", described.role}});
    }
    worker.breaker.reset();
  }
  worker.described = true;
  worker.alive = true;
  worker.suspect = false;
  worker.incarnation = from;
  worker.last_answer = now;
  worker.info = described;
  return restarted;
}

std::vector<std::string> RouteMembers::take_silent(TimePoint now) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (auto& [address, worker] : workers_) {
    if (!worker.alive || now - worker.last_answer <= dead_after_) continue;
    worker.alive = false;
    log_warn("worker is silent", {{"role", worker.role},
                                  {"worker", address},
                                  {"silent_ms", to_ms(now - worker.last_answer)}});
    out.push_back(address);
  }
  std::erase_if(workers_, [](const auto& entry) {
    const Worker& worker = entry.second;
    return !worker.listed && !worker.discovered && !worker.alive;
  });
  return out;
}

std::string RouteMembers::state(const Worker& worker, TimePoint now) const {
  if (!worker.described) return "unknown";
  if (!worker.alive || now - worker.last_answer > dead_after_) return "silent";
  if (worker.info.role != worker.role) return "wrong-role";
  if (worker.info.load.draining) return "draining";
  if (worker.suspect) return "suspect";
  return worker.breaker.allows(now) ? "ready" : "tripped";
}

RouteMembers::Workers RouteMembers::usable_workers(const std::string& role,
                                                   const std::string& model, TimePoint now) const {
  Workers out;
  for (auto it = workers_.begin(); it != workers_.end(); ++it) {
    const Worker& worker = it->second;
    if (worker.role != role || state(worker, now) != "ready") continue;
    if (!model.empty() && worker.info.model != model) continue;
    if ((role == "decode" || standalone_) && worker.info.http.empty()) continue;
    out.push_back(it);
  }
  return out;
}

bool RouteMembers::knows(const std::string& role) const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [&](const auto& entry) { return entry.second.role == role; });
}

std::string RouteMembers::why_none(const std::string& role, TimePoint now) const {
  std::string text = "no usable " + role + " worker";
  int named = 0;
  for (const auto& [address, worker] : workers_) {
    if (worker.role != role) continue;
    text += (named == 0 ? ": " : ", ") + address + " is " + state(worker, now);
    if (++named == 4) break;
  }
  if (named == 0) text += ": none is known yet";
  return text;
}

// Narrows both sides down to workers between which KV can go.
Status RouteMembers::match_kinds(Workers* prefills, Workers* decodes, TimePoint now) {
  std::set<std::string> kinds;
  for (const auto& decode : *decodes) {
    const std::string kind = kv_kind(decode->second.info);
    if (std::any_of(prefills->begin(), prefills->end(),
                    [&](const auto& p) { return kv_kind(p->second.info) == kind; })) {
      kinds.insert(kind);
    }
  }
  if (kinds.empty()) {
    if (prefills->empty()) return unavailable(why_none("prefill", now));
    return unavailable("no prefill and decode worker have the same model and KV layout");
  }
  const auto turn = static_cast<std::ptrdiff_t>(group_turn_++ % kinds.size());
  const std::string kind = *std::next(kinds.begin(), turn);
  const auto other = [&](const auto& it) { return kv_kind(it->second.info) != kind; };
  std::erase_if(*prefills, other);
  std::erase_if(*decodes, other);
  return {};
}

Status RouteMembers::no_decode(const std::string& model, TimePoint now) const {
  const bool served = std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
    return entry.second.role == "decode" && entry.second.info.model == model;
  });
  if (!model.empty() && !served && !usable_workers("decode", "", now).empty()) {
    return {StatusCode::kNotFound, "no worker serves model '" + model + "'"};
  }
  return unavailable(why_none("decode", now));
}

Result<Assignment> RouteMembers::pick(const std::string& model, std::span<const std::string> tried,
                                      std::span<const std::string> avoid, TimePoint now) {
  const std::lock_guard lock(mutex_);
  Workers decodes = usable_workers("decode", model, now);
  if (decodes.empty()) return no_decode(model, now);
  Workers prefills = usable_workers("prefill", model, now);
  // Without any prefill of its own the router leaves the choice to decode.
  const bool leave_choice = !standalone_ && !knows("prefill");
  if (!leave_choice) KVD_RETURN_IF_ERROR(match_kinds(&prefills, &decodes, now));

  const auto candidates = [&](const Workers& from) {
    std::vector<router::Candidate> all, fresh;
    for (const auto& it : from) {
      const proto::Load& load = it->second.info.load;
      all.push_back({it->first, load.queue, load.running, load.free_pages, load.total_pages,
                     it->second.assigned});
      if (std::find(avoid.begin(), avoid.end(), it->first) == avoid.end()) {
        fresh.push_back(all.back());
      }
    }
    return fresh.empty() ? all : fresh;
  };
  std::vector<router::Candidate> prefill_candidates = candidates(prefills);
  if (leave_choice) prefill_candidates.assign(1, router::Candidate{});
  const std::vector<router::Candidate> decode_candidates = candidates(decodes);
  const std::optional<router::Pair> pair =
      policy_->pick(prefill_candidates, decode_candidates, tried);
  if (!pair) return unavailable("no usable pair of workers");

  Assignment chosen;
  const auto take = [&](const std::string& address, std::string* http, Breaker::Probe* probe) {
    Worker& worker = workers_.at(address);
    ++worker.assigned;
    *probe = worker.breaker.take();
    *http = worker.info.http;
  };
  chosen.decode = decode_candidates[pair->decode].address;
  take(chosen.decode, &chosen.decode_http, &chosen.decode_probe);
  if (!leave_choice) {
    chosen.prefill = prefill_candidates[pair->prefill].address;
    take(chosen.prefill, &chosen.prefill_http, &chosen.prefill_probe);
  }
  return chosen;
}

void RouteMembers::settle(const std::string& address, Breaker::Probe probe, Outcome outcome,
                          TimePoint now) {
  const auto entry = workers_.find(address);
  if (entry == workers_.end()) return;
  Worker& worker = entry->second;
  if (worker.assigned > 0) --worker.assigned;
  switch (outcome) {
    case Outcome::kSuccess:
      worker.breaker.success(probe);
      break;
    case Outcome::kBroken:
    case Outcome::kFailure: {
      if (outcome == Outcome::kBroken) worker.suspect = true;
      const std::string before = worker.breaker.state();
      worker.breaker.failure(probe, now);
      if (before == "closed" && before != worker.breaker.state()) {
        log_warn("worker keeps failing, its breaker is open", {{"worker", address}});
      }
      break;
    }
    case Outcome::kDoubtful:
      worker.suspect = true;
      [[fallthrough]];
    case Outcome::kNeutral:
      worker.breaker.neutral(probe);
      break;
  }
}

void RouteMembers::release(const Assignment& pair, Outcome prefill, Outcome decode, TimePoint now) {
  const std::lock_guard lock(mutex_);
  settle(pair.decode, pair.decode_probe, decode, now);
  if (!pair.prefill.empty()) settle(pair.prefill, pair.prefill_probe, prefill, now);
}

bool RouteMembers::usable(TimePoint now) const {
  const std::lock_guard lock(mutex_);
  const Workers decodes = usable_workers("decode", "", now);
  if (decodes.empty()) return false;
  if (!standalone_ && !knows("prefill")) return true;
  const Workers prefills = usable_workers("prefill", "", now);
  return std::any_of(decodes.begin(), decodes.end(), [&](const auto& decode) {
    return std::any_of(prefills.begin(), prefills.end(), [&](const auto& prefill) {
      return kv_kind(prefill->second.info) == kv_kind(decode->second.info);
    });
  });
}

std::vector<std::string> RouteMembers::suspects() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (const auto& [address, worker] : workers_) {
    if (worker.alive && worker.suspect) out.push_back(address);
  }
  return out;
}

std::vector<std::string> RouteMembers::models(TimePoint now) const {
  const std::lock_guard lock(mutex_);
  std::set<std::string> names;
  for (const auto& [address, worker] : workers_) {
    if (worker.role == "decode" && state(worker, now) != "silent" && !worker.info.model.empty()) {
      names.insert(worker.info.model);
    }
  }
  return {names.begin(), names.end()};
}

std::string RouteMembers::worker_json(const std::string& address, const Worker& worker,
                                      TimePoint now) const {
  const proto::Load& load = worker.info.load;
  const auto text = [](const char* key, const std::string& value) {
    return std::string("\"") + key + "\":" + http::json_string(value) + ",";
  };
  const auto number = [](const char* key, std::uint64_t value) {
    return std::string("\"") + key + "\":" + std::to_string(value);
  };
  std::string out = "{" + text("address", address) + text("role", worker.role) +
                    text("state", state(worker, now));
  if (worker.described) {
    out +=
        text("http", worker.info.http) + text("model", worker.info.model) +
        text("incarnation", to_string(worker.incarnation)) +
        number("silent_ms",
               static_cast<std::uint64_t>(to_ms(std::max(now - worker.last_answer, Duration{})))) +
        ",";
  }
  out += text("breaker", worker.breaker.state()) + number("assigned", worker.assigned) +
         ",\"load\":{" + number("queue", load.queue) + "," + number("running", load.running) + "," +
         number("free_pages", load.free_pages) + "," + number("total_pages", load.total_pages) +
         ",\"draining\":" + (load.draining ? "true" : "false") + "}}";
  return out;
}

std::string RouteMembers::json(TimePoint now) const {
  const std::lock_guard lock(mutex_);
  std::string out = "{\"workers\":[";
  bool first = true;
  for (const auto& [address, worker] : workers_) {
    if (!first) out += ",";
    first = false;
    out += worker_json(address, worker, now);
  }
  return out + "]}";
}

std::map<std::pair<std::string, std::string>, int> RouteMembers::counts(TimePoint now) const {
  const std::lock_guard lock(mutex_);
  std::map<std::pair<std::string, std::string>, int> out;
  for (const char* role : {"prefill", "decode"}) {
    for (const char* each : kStates) out[{role, each}] = 0;
  }
  for (const auto& [address, worker] : workers_) ++out[{worker.role, state(worker, now)}];
  return out;
}

}  // namespace kvd::node
