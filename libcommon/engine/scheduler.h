// Continuous batching: which tokens of which sequences a step computes, and what becomes of the
// results.
//
// A step takes all decode rows first, then prefill tokens in order of arrival up to `chunk`, so a
// long prompt delays running streams by one chunk at most. Sequences join and leave between steps.
//
// Every request that was added ends with exactly one Finished, its last event.
//
// Calling thread: the engine's. Does not own what it is given.
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/status.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/tokenizer.h"

namespace kvd::engine {

// The file of --trace-logits: one line for each decode row (engine.h says what is in it).
class LogitTrace {
 public:
  // kInvalidArgument: the file cannot be written.
  static Result<LogitTrace> open(const std::string& path);
  void write(std::uint32_t position, TokenId token, std::span<const float> logits);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

struct SchedulerOptions {
  std::uint32_t context = 0;     // longest prompt + output
  std::uint32_t page_count = 0;  // of the pool
  std::uint32_t max_running = 64;
  std::uint32_t chunk = 512;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, Model* model, const Tokenizer* tokenizer,
            EngineSink* sink, LogitTrace* trace, Metrics* metrics);
  ~Scheduler();

  // A request that cannot be run (empty prompt, too few pages, ...) gets Finished(kError) at once.
  void add(SequenceRequest request, TimePoint submitted);
  // Takes effect now: the pages are not touched any more once Finished is out.
  void cancel(std::uint64_t id);
  void cancel_all();
  // One step; nothing when idle.
  void step();
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::uint32_t running() const { return static_cast<std::uint32_t>(running_.size()); }

 private:
  struct Sequence;
  struct Planned;
  using SequencePtr = std::unique_ptr<Sequence>;

  Status check(const SequenceRequest& request) const;
  void admit();
  std::vector<Planned> plan();
  void forward(std::vector<Planned>& planned);
  void report_layers(const std::vector<Planned>& planned, std::uint32_t layer);
  void take_result(const Planned& planned, std::span<const float> logits);
  void deliver(Sequence& sequence, SampledToken token);
  void finish(Sequence& sequence, FinishReason reason, std::string text, Status status = {});
  void remove_finished();

  const SchedulerOptions options_;
  Model* const model_;
  const Tokenizer* const tokenizer_;
  EngineSink* const sink_;
  LogitTrace* const trace_;
  const SteadyClock clock_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;
  std::optional<Counter> prefill_tokens_, decode_tokens_;
  std::optional<Gauge> batch_;
};

}  // namespace kvd::engine
