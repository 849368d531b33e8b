#include "engine/scheduler.h"

#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "engine/sampler.h"

namespace kvd::engine {

Result<LogitTrace> LogitTrace::open(const std::string& path) {
  LogitTrace trace;
  trace.file_.reset(std::fopen(path.c_str(), "we"));
  if (trace.file_ == nullptr) {
    return invalid_argument("cannot write --trace-logits " + path + ": " + std::strerror(errno));
  }
  return trace;
}

void LogitTrace::write(std::uint32_t position, TokenId token, std::span<const float> logits) {
  const std::uint64_t hash = XXH3_64bits(logits.data(), logits.size_bytes());
  std::size_t best = 0, second = logits.size() > 1 ? 1 : 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) {
      second = best;
      best = i;
    } else if (second == best || (i != second && logits[i] > logits[second])) {
      second = i;
    }
  }
  std::fprintf(file_.get(), "%u %d %016llx %zu:%.9g %zu:%.9g\n", position, token,
               static_cast<unsigned long long>(hash), best, static_cast<double>(logits[best]),
               second, static_cast<double>(logits[second]));
  std::fflush(file_.get());
}

struct Scheduler::Sequence {
  Sequence(SequenceRequest r, const Tokenizer* tokenizer, TimePoint now)
      : request(std::move(r)),
        tokens(request.prompt),
        text(tokenizer, request.sampling.stop),
        submitted(now) {}

  std::uint32_t prompt_size() const { return static_cast<std::uint32_t>(request.prompt.size()); }
  bool decoding() const { return computed >= prompt_size(); }

  SequenceRequest request;
  std::vector<TokenId> tokens;  // prompt, then what was generated
  std::uint32_t computed = 0;   // tokens whose K and V are in the pages
  std::uint32_t generated = 0;
  TextStream text;
  TimePoint submitted;
  std::optional<TimePoint> started;
  bool finished = false;
};

// A sequence's part in a step.
struct Scheduler::Planned {
  Sequence* sequence;
  std::uint32_t begin, end;  // tokens
  bool decode;
  bool wants_logits() const { return end == sequence->tokens.size(); }
};

Scheduler::Scheduler(const SchedulerOptions& options, Model* model, const Tokenizer* tokenizer,
                     EngineSink* sink, LogitTrace* trace, Metrics* metrics)
    : options_(options), model_(model), tokenizer_(tokenizer), sink_(sink), trace_(trace) {
  if (metrics == nullptr) return;
  const std::string help = "Tokens computed by the engine";
  prefill_tokens_ = metrics->counter("kvd_engine_tokens_total", help, {{"phase", "prefill"}});
  decode_tokens_ = metrics->counter("kvd_engine_tokens_total", help, {{"phase", "decode"}});
  batch_ = metrics->gauge("kvd_engine_running", "Sequences in the engine's running batch");
}

Scheduler::~Scheduler() = default;

Status Scheduler::check(const SequenceRequest& request) const {
  const std::size_t prompt = request.prompt.size();
  const bool generates = request.mode != SequenceMode::kPrefill;
  const std::uint64_t total = prompt + (generates ? request.sampling.max_tokens : 0);
  if (prompt == 0) return invalid_argument("the prompt is empty");
  if (request.sampling.max_tokens == 0) return invalid_argument("max_tokens must be at least 1");
  if (total > options_.context) {
    return invalid_argument("prompt and max_tokens are " + std::to_string(total) +
                            " tokens, the context is " + std::to_string(options_.context));
  }
  for (TokenId token : request.prompt) {
    if (token < 0 || static_cast<std::uint32_t>(token) >= model_->vocab()) {
      return invalid_argument("token " + std::to_string(token) + " is not in the vocabulary");
    }
  }
  const TokenId first = request.first.id;
  if (request.mode == SequenceMode::kDecode &&
      (first < 0 || static_cast<std::uint32_t>(first) >= model_->vocab())) {
    return invalid_argument("first token " + std::to_string(first) + " is not in the vocabulary");
  }
  // The last token's K and V are never written.
  const std::uint32_t pages = model_->layout().pages_for(generates ? total - 1 : total);
  if (request.pages.size() < pages) {
    return internal_error("request has " + std::to_string(request.pages.size()) + " pages, needs " +
                          std::to_string(pages));
  }
  for (PageIndex page : request.pages) {
    if (page >= options_.page_count) {
      return internal_error("page " + std::to_string(page) + " is outside the pool");
    }
  }
  return {};
}

void Scheduler::add(SequenceRequest request, TimePoint submitted) {
  if (Status status = check(request); !status.ok()) {
    sink_->on_event(Finished{request.id, FinishReason::kError, "", 0, std::move(status)});
    return;
  }
  waiting_.push_back(std::make_unique<Sequence>(std::move(request), tokenizer_, submitted));
}

void Scheduler::cancel(std::uint64_t id) {
  const auto is_it = [id](const SequencePtr& s) { return s->request.id == id; };
  if (auto w = std::find_if(waiting_.begin(), waiting_.end(), is_it); w != waiting_.end()) {
    finish(**w, FinishReason::kCancelled, "");
    waiting_.erase(w);
    return;
  }
  auto r = std::find_if(running_.begin(), running_.end(), is_it);
  if (r == running_.end()) return;
  finish(**r, FinishReason::kCancelled, "");
  remove_finished();
}

void Scheduler::cancel_all() {
  for (const SequencePtr& sequence : running_) finish(*sequence, FinishReason::kCancelled, "");
  for (const SequencePtr& sequence : waiting_) finish(*sequence, FinishReason::kCancelled, "");
  waiting_.clear();
  remove_finished();
}

void Scheduler::step() {
  admit();
  std::vector<Planned> planned = plan();
  if (!planned.empty()) forward(planned);
  remove_finished();
}

void Scheduler::admit() {
  while (!waiting_.empty() && running_.size() < options_.max_running) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    Sequence& sequence = *running_.back();
    sequence.started = clock_.now();
    if (sequence.request.mode != SequenceMode::kDecode) continue;
    // Prefill drew the first token: it takes the same way out, without being computed again.
    sequence.computed = sequence.prompt_size();
    deliver(sequence, sequence.request.first);
    if (sequence.finished) remove_finished();
  }
  if (batch_) batch_->set(static_cast<double>(running_.size()));
}

std::vector<Scheduler::Planned> Scheduler::plan() {
  std::vector<Planned> planned;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->decoding()) continue;
    const auto end = static_cast<std::uint32_t>(sequence->tokens.size());
    planned.push_back({sequence.get(), end - 1, end, true});
  }
  std::uint32_t budget = options_.chunk;
  for (const SequencePtr& sequence : running_) {
    if (sequence->decoding() || budget == 0) continue;
    const std::uint32_t count = std::min(budget, sequence->prompt_size() - sequence->computed);
    planned.push_back({sequence.get(), sequence->computed, sequence->computed + count, false});
    budget -= count;
  }
  return planned;
}

void Scheduler::forward(std::vector<Planned>& planned) {
  std::vector<Segment> segments;
  std::uint32_t prefill = 0, decode = 0;
  bool streams = false;
  for (const Planned& part : planned) {
    const Sequence& sequence = *part.sequence;
    const std::span<const TokenId> tokens(sequence.tokens);
    segments.push_back({tokens.subspan(part.begin, part.end - part.begin), part.begin,
                        sequence.request.pages, part.wants_logits(), sequence.request.id,
                        tokens.first(part.end)});
    (part.decode ? decode : prefill) += part.end - part.begin;
    streams |= sequence.request.mode == SequenceMode::kPrefill && !sequence.request.groups.empty();
  }
  std::function<void(std::uint32_t)> on_layer;
  if (streams) on_layer = [&](std::uint32_t layer) { report_layers(planned, layer); };
  std::span<const float> logits;
  for (Model::StepError& error : model_->forward(segments, on_layer, &logits)) {
    finish(*planned[error.segment].sequence, FinishReason::kError, "", std::move(error.status));
  }
  if (prefill_tokens_) prefill_tokens_->add(prefill);
  if (decode_tokens_) decode_tokens_->add(decode);
  for (const Planned& part : planned) {
    std::span<const float> row;
    if (part.wants_logits()) {
      row = logits.first(model_->vocab());
      logits = logits.subspan(model_->vocab());
    }
    if (!part.sequence->finished) take_result(part, row);
  }
}

void Scheduler::report_layers(const std::vector<Planned>& planned, std::uint32_t layer) {
  for (const Planned& part : planned) {
    const SequenceRequest& request = part.sequence->request;
    if (request.mode != SequenceMode::kPrefill) continue;
    for (const kv::LayerGroup& group : request.groups) {
      if (group.end == layer + 1) {
        sink_->on_event(LayersReady{request.id, group, part.begin, part.end});
      }
    }
  }
}

void Scheduler::take_result(const Planned& part, std::span<const float> logits) {
  Sequence& sequence = *part.sequence;
  sequence.computed = part.end;
  if (logits.empty()) return;
  // Rows of the embedding beyond the tokenizer's vocabulary are padding.
  const std::size_t vocab = std::min<std::size_t>(logits.size(), tokenizer_->vocab_size());
  SampledToken token = sample(logits.first(vocab), sequence.request.sampling,
                              sequence.request.choice, sequence.generated, sequence.tokens);
  if (part.decode) {
    if (trace_ != nullptr) trace_->write(part.end, token.id, logits);
    deliver(sequence, std::move(token));
    return;
  }
  const Duration queued = *sequence.started - sequence.submitted;
  const Duration compute = clock_.now() - *sequence.started;
  sink_->on_event(PrefillDone{sequence.request.id, token, queued, compute});
  if (sequence.request.mode == SequenceMode::kPrefill) {
    sequence.generated = 1;
    finish(sequence, FinishReason::kStop, "");
  } else {
    deliver(sequence, std::move(token));
  }
}

void Scheduler::deliver(Sequence& sequence, SampledToken token) {
  const SamplingParams& sampling = sequence.request.sampling;
  const std::vector<TokenId>& stops = sampling.stop_token_ids;
  const bool ends = (!sampling.ignore_eos && tokenizer_->is_end(token.id)) ||
                    std::find(stops.begin(), stops.end(), token.id) != stops.end();
  sequence.tokens.push_back(token.id);
  ++sequence.generated;
  // A token that ends the sequence is counted and reported, but is no text.
  std::string text = ends ? std::string() : sequence.text.push(token.id);
  sink_->on_event(TokenOut{sequence.request.id, std::move(token), std::move(text)});
  if (sequence.text.stopped()) {
    finish(sequence, FinishReason::kStop, "");
  } else if (ends) {
    finish(sequence, FinishReason::kStop, sequence.text.finish());
  } else if (sequence.generated >= sampling.max_tokens) {
    finish(sequence, FinishReason::kLength, sequence.text.finish());
  }
}

void Scheduler::finish(Sequence& sequence, FinishReason reason, std::string text, Status status) {
  if (sequence.finished) return;
  sequence.finished = true;
  sink_->on_event(Finished{sequence.request.id, reason, std::move(text), sequence.generated,
                           std::move(status)});
}

void Scheduler::remove_finished() {
  std::erase_if(running_, [](const SequencePtr& sequence) { return sequence->finished; });
  if (batch_) batch_->set(static_cast<double>(running_.size()));
}

}  // namespace kvd::engine
