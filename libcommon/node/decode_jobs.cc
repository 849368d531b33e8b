#include "node/decode_jobs.h"

#include <algorithm>

#include "base/log.h"
#include "base/units.h"

namespace kvd::node {
namespace {

constexpr std::size_t kMaxQueuedJobs = 4096;
constexpr std::uint32_t kMaxAttempts = 3;
constexpr Duration kScanInterval{20'000'000};
// How long a request that names its prefill, or lost one, waits for a link to come up.
constexpr Duration kShortLinkWait{800'000'000};

// "localhost" and 127.0.0.1 name the same host in lists and in requests.
std::string normalized(const std::string& address) {
  return address.starts_with("localhost:") ? "127.0.0.1" + address.substr(9) : address;
}

}  // namespace

DecodeJobs::DecodeJobs(WorkerCore* core) : core_(core) {
  Metrics& m = core->metrics();
  for (const char* outcome : {"ok", "cancelled", "failed", "deadline", "refused"}) {
    outcomes_[outcome] =
        m.counter("kvd_requests_total", "API requests by how they ended.", {{"outcome", outcome}});
  }
  const char* help = "Time that a request spent in a stage.";
  stage_queue_ = m.histogram("kvd_stage_seconds", help, {{"stage", "queue"}});
  stage_ttft_ = m.histogram("kvd_stage_seconds", help, {{"stage", "ttft"}});
  stage_decode_ = m.histogram("kvd_stage_seconds", help, {{"stage", "decode"}});
}

void DecodeJobs::submit(NewJob job) {
  if (draining_ || queue_.size() >= kMaxQueuedJobs) {
    outcomes_["refused"].add();
    const Status why(
        StatusCode::kResourceExhausted,
        draining_ ? "this worker is draining" : "too many requests wait here; try later");
    job.responder->send(503, "application/json", http::error_body(why));
    return;
  }
  const JobId id = next_job_++;
  Job& entry = jobs_[id];
  entry.in = std::move(job);
  entry.answer = std::make_unique<Answer>(entry.in.request, core_->served_name(),
                                          &core_->engine().tokenizer(), entry.in.responder);
  entry.items.resize(entry.in.request.items());
  queue_.push_back(id);
  try_admit_ = true;
}

void DecodeJobs::poll(bool look_for_gone) {
  const TimePoint now = core_->clock().now();
  if (look_for_gone || now >= next_scan_) {
    next_scan_ = now + kScanInterval;
    std::vector<JobId> gone, late;
    for (const auto& [id, job] : jobs_) {
      if (job.in.responder->gone()) {
        gone.push_back(id);
      } else if (now >= job.in.deadline) {
        late.push_back(id);
      }
    }
    for (const JobId id : gone) {
      if (!jobs_.contains(id)) continue;
      abandon_items(&jobs_.at(id), "client went away");
      end(id, "cancelled");
    }
    for (const JobId id : late) {
      if (!jobs_.contains(id)) continue;
      const bool queued = std::find(queue_.begin(), queue_.end(), id) != queue_.end();
      if (queued) {
        fail(id, {StatusCode::kResourceExhausted, "no place was free within the request's time"},
             503);
      } else {
        fail(id, {StatusCode::kDeadline, "the request's time is over"}, 504);
      }
    }
    try_admit_ = true;
  }
  if (try_admit_) {
    try_admit_ = false;
    admit();
  }
}

TimePoint DecodeJobs::next_deadline() const { return jobs_.empty() ? kNever : next_scan_; }

void DecodeJobs::admit() {
  bool blocked = false;
  for (std::size_t i = 0; i < queue_.size() && !blocked;) {
    const JobId id = queue_[i];
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) {
      queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    // A job that started, or ended, is out of the queue: the next one is at this place then.
    if (!try_start(id, &it->second, &blocked)) ++i;
  }
}

bool DecodeJobs::try_start(JobId id, Job* job, bool* blocks) {
  if (running_items_ + job->items.size() > core_->options().engine.max_running) {
    *blocks = true;
    return false;
  }
  if (receiver_ != nullptr) {
    auto chosen = choose_prefill(job);
    if (!chosen.ok()) {
      const Status why = chosen.status();
      fail(id, why, http::http_status(why.code()));
      return true;
    }
    if (chosen->empty()) return false;
    job->prefill = std::move(*chosen);
  }
  if (!reserve(job)) {
    *blocks = true;
    return false;
  }
  std::erase(queue_, id);  // before start(): a retry puts it in again
  start(id, job);
  return true;
}

Result<std::string> DecodeJobs::choose_prefill(Job* job) {
  const http::ApiRequest& api = job->in.request.api;
  std::string named =
      api.prefill_field == http::ApiRequest::PrefillField::kNamed ? api.prefill : "";
  if (standalone(*job)) {
    const http::Bootstrap& meet = api.bootstrap.front();
    named = to_string(HostPort{meet.host, meet.port.value_or(7100)});
  }
  const std::vector<transfer::PrefillView> views = receiver_->prefills();
  std::vector<const transfer::PrefillView*> ready;
  const transfer::PrefillView* wanted = nullptr;
  Status why = unavailable("no prefill worker is there");
  for (const transfer::PrefillView& view : views) {
    if (!named.empty() && normalized(view.address) == normalized(named)) wanted = &view;
    if (view.state == transfer::LinkState::kReady && !view.load.draining) {
      ready.push_back(&view);
    } else if (!view.why.ok()) {
      why = unavailable("prefill " + view.address + ": " + view.why.message());
    }
  }
  if (!named.empty()) {
    // With a registry, the router may have heard of a prefill before this worker has; without one
    // there is nothing to wait for, but another pair may do.
    if (wanted == nullptr && core_->registry() == nullptr) {
      return unavailable("prefill " + named +
                         " is not one that this worker may use (--prefill, --join)");
    }
    why = unavailable("prefill " + named + " is not linked to this worker");
    if (wanted != nullptr && !wanted->why.ok()) {
      why = unavailable("prefill " + wanted->address + ": " + wanted->why.message());
    }
    std::erase_if(ready, [&](const auto* view) { return view != wanted; });
  }
  if (ready.empty()) {
    const TimePoint now = core_->clock().now();
    const bool own_choice =
        named.empty() && api.prefill_field == http::ApiRequest::PrefillField::kAbsent;
    const Duration patience =
        own_choice && job->attempts == 0 ? core_->options().common.timeout : kShortLinkWait;
    if (job->link_deadline.ns == 0) job->link_deadline = now + patience;
    if (now >= job->link_deadline) return why;
    return std::string();
  }
  job->link_deadline = TimePoint{0};
  // One that has not failed this request, in turn; any when all have.
  for (std::size_t i = 0; i < ready.size(); ++i) {
    const auto* view = ready[next_prefill_++ % ready.size()];
    if (std::find(job->tried.begin(), job->tried.end(), view->address) == job->tried.end()) {
      return view->address;
    }
  }
  return ready[next_prefill_++ % ready.size()]->address;
}

bool DecodeJobs::reserve(Job* job) {
  kv::PagePool& pool = core_->pool();
  const PreparedRequest& request = job->in.request;
  const TimePoint now = core_->clock().now();
  const auto pages_of = [&](std::size_t item) {
    return pool.layout().pages_for(request.prompts[item / request.api.n].size() +
                                   request.api.sampling.max_tokens);
  };
  std::uint32_t wanted = 0;
  for (std::size_t i = 0; i < job->items.size(); ++i) wanted += pages_of(i);
  if (wanted > pool.counts().free) {
    if (job->waits_for_pages.ns == 0) job->waits_for_pages = now;
    if (receiver_ != nullptr) receiver_->starving(wanted, job->waits_for_pages);
    return false;
  }
  job->waits_for_pages = TimePoint{0};
  for (std::size_t i = 0; i < job->items.size(); ++i) {
    job->items[i].lease = pool.lease(pages_of(i), now).value();
  }
  return true;
}

void DecodeJobs::start(JobId id, Job* job) {
  job->admitted = core_->clock().now();
  ++job->attempts;
  stage_queue_.observe(to_ms(job->admitted - job->in.arrival) / 1e3);
  for (std::size_t i = 0; i < job->items.size(); ++i) {
    Item& item = job->items[i];
    item.key = next_key_++;
    by_key_[item.key] = {id, i};
    const Status started = start_item(job, i);
    if (started.ok()) {
      ++running_items_;
      continue;
    }
    // Leases of this item and of those behind it were told to nobody.
    by_key_.erase(item.key);
    for (std::size_t k = i; k < job->items.size(); ++k) {
      core_->pool().release(job->items[k].lease, kv::Proof::kNeverExposed);
      job->items[k].phase = Phase::kDone;
    }
    retry_or_fail(id, started, true);
    return;
  }
}

Status DecodeJobs::start_item(Job* job, std::size_t index) {
  Item& item = job->items[index];
  const PreparedRequest& request = job->in.request;
  const std::vector<TokenId>& prompt = request.prompts[index / request.api.n];
  const auto choice = static_cast<std::uint32_t>(index % request.api.n);
  if (receiver_ != nullptr) {
    transfer::RoomRequest room;
    room.request = item.key;
    room.prompt = prompt;
    room.sampling = request.api.sampling;
    room.choice = choice;
    room.lease = item.lease;
    room.deadline = job->in.deadline;
    if (standalone(*job)) room.room = request.api.bootstrap[index].room;
    const Status opened = receiver_->open_room(job->prefill, std::move(room));
    if (opened.ok()) item.phase = Phase::kRoom;
    return opened;
  }
  engine::SequenceRequest sequence;
  sequence.id = item.key;
  sequence.mode = engine::SequenceMode::kFull;
  sequence.prompt = prompt;
  sequence.sampling = request.api.sampling;
  sequence.choice = choice;
  const auto pages = core_->pool().pages(item.lease);
  sequence.pages.assign(pages.begin(), pages.end());
  if (!core_->engine().submit(std::move(sequence))) {
    return {StatusCode::kResourceExhausted, "the engine's queue is full"};
  }
  item.phase = Phase::kEngine;
  return {};
}

void DecodeJobs::on_committed(transfer::CommittedRoom room) {
  JobId id = 0;
  std::size_t index = 0;
  Job* job = find(room.request, &id, &index);
  KVD_CHECK(job != nullptr);  // an aborted room is never reported
  Item& item = job->items[index];
  const PreparedRequest& request = job->in.request;
  http::KvdInfo& info = job->answer->info(index);
  info.room = to_string(room.room);
  info.prefill = job->prefill;
  info.provider = room.provider;
  info.kv_bytes = room.bytes;
  info.kv_pages = room.pages;
  info.stages.bootstrap = to_ms(room.bootstrap);
  info.stages.prefill_compute = to_ms(room.prefill_compute);
  info.stages.commit = to_ms(room.commit);
  info.stages.commit_is_estimate = room.commit_is_estimate;
  info.stages.queue = to_ms(job->admitted - job->in.arrival + room.queue);
  engine::SequenceRequest sequence;
  sequence.id = item.key;
  sequence.mode = engine::SequenceMode::kDecode;
  sequence.prompt = request.prompts[index / request.api.n];
  sequence.sampling = request.api.sampling;
  sequence.choice = static_cast<std::uint32_t>(index % request.api.n);
  sequence.first = std::move(room.first);
  item.lease = room.lease;
  item.phase = Phase::kEngine;
  const auto pages = core_->pool().pages(item.lease);
  sequence.pages.assign(pages.begin(), pages.end());
  if (!core_->engine().submit(std::move(sequence))) {
    item.phase = Phase::kDone;
    --running_items_;
    by_key_.erase(item.key);
    core_->pool().release(item.lease, kv::Proof::kSequenceDone);
    fail(id, {StatusCode::kResourceExhausted, "the engine's queue is full"}, 503);
  }
}

void DecodeJobs::on_failed(std::uint64_t request, Status why, bool retryable) {
  JobId id = 0;
  std::size_t index = 0;
  Job* job = find(request, &id, &index);
  KVD_CHECK(job != nullptr);
  job->items[index].phase = Phase::kDone;  // KvReceiver has the lease
  --running_items_;
  by_key_.erase(request);
  retry_or_fail(id, why, retryable);
}

void DecodeJobs::on_timings(std::uint64_t request, const transfer::RoomTimings& timings) {
  JobId id = 0;
  std::size_t index = 0;
  Job* job = find(request, &id, &index);
  if (job == nullptr) return;  // the answer is out already
  job->answer->info(index).stages.transfer_total = to_ms(timings.transfer_total);
  job->answer->info(index).stages.transfer_exposed = to_ms(timings.transfer_exposed);
}

void DecodeJobs::retry_or_fail(JobId id, const Status& why, bool retryable) {
  Job& job = jobs_.at(id);
  const http::ApiRequest& api = job.in.request.api;
  const bool ours =
      api.prefill_field == http::ApiRequest::PrefillField::kAbsent && !standalone(job);
  abandon_items(&job, why.message());
  const bool corrupted = why.code() == StatusCode::kCorrupted;
  const bool again = !(corrupted && job.corrupted) && job.attempts < kMaxAttempts;
  if (!retryable || !ours || job.answer->started() || !again) {
    fail(id, why, http::http_status(why.code()));
    return;
  }
  job.corrupted = job.corrupted || corrupted;
  log_info("request sent again",
           {{"request", id}, {"prefill", job.prefill}, {"why", why.message()}});
  job.tried.push_back(job.prefill);
  job.items.assign(job.items.size(), Item{});
  job.link_deadline = TimePoint{0};
  queue_.push_front(id);
  try_admit_ = true;
}

void DecodeJobs::abandon_items(Job* job, const std::string& reason) {
  for (Item& item : job->items) {
    const Phase phase = item.phase;
    if (phase != Phase::kRoom && phase != Phase::kEngine) continue;
    item.phase = Phase::kDone;
    --running_items_;
    by_key_.erase(item.key);
    if (phase == Phase::kRoom) {
      receiver_->abort(item.key, reason);
    } else {
      orphans_[item.key] = item.lease;
      core_->engine().cancel(item.key);
    }
  }
}

void DecodeJobs::fail(JobId id, const Status& why, int http_status) {
  Job& job = jobs_.at(id);
  abandon_items(&job, why.message());
  log_warn("request failed", {{"request", id}, {"status", http_status}, {"why", why.message()}});
  job.answer->fail(why, http_status);
  end(id, why.code() == StatusCode::kDeadline ? "deadline" : "failed");
}

void DecodeJobs::end(JobId id, const char* outcome) {
  outcomes_[outcome].add();
  jobs_.erase(id);
  std::erase(queue_, id);
  try_admit_ = true;
}

void DecodeJobs::on_engine_event(const engine::EngineEvent& event) {
  JobId id = 0;
  std::size_t index = 0;
  if (const auto* done = std::get_if<engine::PrefillDone>(&event)) {
    if (Job* job = find(done->id, &id, &index)) {
      job->answer->info(index).stages.prefill_compute = to_ms(done->compute);
      job->answer->info(index).stages.queue = to_ms(job->admitted - job->in.arrival + done->queued);
    }
  } else if (const auto* out = std::get_if<engine::TokenOut>(&event)) {
    Job* job = find(out->id, &id, &index);
    if (job == nullptr) return;
    if (job->items[index].first_token.ns == 0) {
      job->items[index].first_token = core_->clock().now();
      stage_ttft_.observe(to_ms(job->items[index].first_token - job->in.arrival) / 1e3);
    }
    job->answer->token(index, out->token, out->text);
  } else if (const auto* finished = std::get_if<engine::Finished>(&event)) {
    if (const auto orphan = orphans_.find(finished->id); orphan != orphans_.end()) {
      core_->pool().release(orphan->second, kv::Proof::kSequenceDone);
      orphans_.erase(orphan);
      try_admit_ = true;
      return;
    }
    Job* job = find(finished->id, &id, &index);
    KVD_CHECK(job != nullptr);
    finish_item(job, index, *finished);
    if (finished->reason == engine::FinishReason::kError) {
      fail(id, finished->status, http::http_status(finished->status.code()));
    } else if (finished->reason == engine::FinishReason::kCancelled) {
      fail(id, unavailable("this worker is stopping"), 503);
    } else {
      job->answer->finish(index, finished->reason, finished->text);
      if (!job->answer->all_finished()) return;
      job->answer->complete();
      end(id, "ok");
    }
  }
}

void DecodeJobs::finish_item(Job* job, std::size_t index, const engine::Finished& event) {
  Item& item = job->items[index];
  fill_stages(job, index);
  core_->pool().release(item.lease, kv::Proof::kSequenceDone);
  by_key_.erase(event.id);
  item.phase = Phase::kDone;
  --running_items_;
  try_admit_ = true;
}

void DecodeJobs::fill_stages(Job* job, std::size_t index) {
  const TimePoint now = core_->clock().now();
  const TimePoint first = job->items[index].first_token;
  http::Stages& stages = job->answer->info(index).stages;
  stages.total = to_ms(now - job->in.arrival);
  if (first.ns == 0) return;
  stages.ttft = to_ms(first - job->in.arrival);
  stages.decode = to_ms(now - first);
  stage_decode_.observe(stages.decode / 1e3);
}

void DecodeJobs::fail_all(const Status& why) {
  std::vector<JobId> ids;
  for (const auto& [id, job] : jobs_) ids.push_back(id);
  for (const JobId id : ids) {
    if (jobs_.contains(id)) fail(id, why, 503);
  }
}

proto::Load DecodeJobs::load() {
  proto::Load out;
  out.queue = static_cast<std::uint32_t>(queue_.size());
  out.running = static_cast<std::uint32_t>(running_items_);
  out.free_pages = core_->pool().counts().free;
  out.total_pages = core_->pool().page_count();
  out.draining = draining_;
  return out;
}

DecodeJobs::Job* DecodeJobs::find(std::uint64_t key, JobId* id, std::size_t* index) {
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) return nullptr;
  *id = it->second.first;
  *index = it->second.second;
  return &jobs_.at(*id);
}

}  // namespace kvd::node
