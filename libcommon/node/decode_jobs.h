// The requests of a decode worker: admission (pages for all rooms of a request at once, in order of
// arrival), a room for each choice, the running batch, retries before the first token, deadlines.
//
// Invariants: a lease is owned by exactly one of: an item here, KvReceiver (phase kRoom), an orphan
// that waits for the engine to let go. Every job ends in exactly one answer.
//
// Calling thread: the event loop's.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "node/answer.h"
#include "node/worker_core.h"
#include "transfer/kv_receiver.h"

namespace kvd::node {

// A request as the HTTP thread hands it over.
struct NewJob {
  PreparedRequest request;
  std::shared_ptr<http::Responder> responder;
  TimePoint arrival, deadline;
};

class DecodeJobs final : public transfer::ReceiverHost {
 public:
  explicit DecodeJobs(WorkerCore* core);
  // Null: both phases run here. Set before the first submit().
  void set_receiver(transfer::KvReceiver* receiver) { receiver_ = receiver; }

  void submit(NewJob job);
  void on_engine_event(const engine::EngineEvent& event);
  // Admits, retries, ends what is late or whose client has gone. `look_for_gone`: some client left.
  void poll(bool look_for_gone);
  TimePoint next_deadline() const;
  bool empty() const { return jobs_.empty() && orphans_.empty(); }
  void fail_all(const Status& why);

  void on_committed(transfer::CommittedRoom room) override;
  void on_failed(std::uint64_t request, Status why, bool retryable) override;
  void on_timings(std::uint64_t request, const transfer::RoomTimings& timings) override;
  void on_pages_freed() override { try_admit_ = true; }
  proto::Load load() override;
  void set_draining() { draining_ = true; }

 private:
  enum class Phase { kWaiting, kRoom, kEngine, kDone };
  struct Item {
    std::uint64_t key = 0;  // of the room request and of the engine's sequence
    Phase phase = Phase::kWaiting;
    kv::LeaseId lease;  // ours in kEngine only
    TimePoint first_token;
  };
  struct Job {
    NewJob in;
    std::unique_ptr<Answer> answer;
    std::vector<Item> items;
    std::string prefill;             // where its rooms are
    std::vector<std::string> tried;  // prefills that failed it
    std::uint32_t attempts = 0;
    bool corrupted = false;  // a room's KV was not what prefill sent: once more, not twice
    TimePoint admitted;
    TimePoint waits_for_pages{0};  // since when; 0: it does not
    TimePoint link_deadline{0};    // until when a link may come up; 0: not set
  };
  using JobId = std::uint64_t;

  void admit();
  // False: leave it in the queue; *blocks is set when nobody behind it may overtake.
  bool try_start(JobId id, Job* job, bool* blocks);
  // The prefill to use; empty when none is ready. An error ends the job.
  Result<std::string> choose_prefill(Job* job);
  bool reserve(Job* job);
  void start(JobId id, Job* job);
  Status start_item(Job* job, std::size_t index);
  void retry_or_fail(JobId id, const Status& why, bool retryable);
  // Takes every item out of rooms and engine; leases find their way back.
  void abandon_items(Job* job, const std::string& reason);
  void fail(JobId id, const Status& why, int http_status);
  void end(JobId id, const char* outcome);
  void finish_item(Job* job, std::size_t index, const engine::Finished& event);
  void fill_stages(Job* job, std::size_t index);
  Job* find(std::uint64_t key, JobId* id, std::size_t* index);
  bool standalone(const Job& job) const { return !job.in.request.api.bootstrap.empty(); }

  WorkerCore* core_;
  transfer::KvReceiver* receiver_ = nullptr;
  JobId next_job_ = 1;
  std::uint64_t next_key_ = 1;
  std::unordered_map<JobId, Job> jobs_;
  std::deque<JobId> queue_;
  std::unordered_map<std::uint64_t, std::pair<JobId, std::size_t>> by_key_;
  std::unordered_map<std::uint64_t, kv::LeaseId>
      orphans_;  // cancelled in the engine, not yet finished
  std::size_t running_items_ = 0;
  std::size_t next_prefill_ = 0;
  bool try_admit_ = false, draining_ = false;
  TimePoint next_scan_{0};
  std::unordered_map<std::string, Counter> outcomes_;
  Histogram stage_ttft_, stage_queue_, stage_decode_;
};

}  // namespace kvd::node
