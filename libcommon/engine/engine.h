// The engine as the event loop and the HTTP threads see it: a model on a thread of its own, reached
// only through bounded queues.
//
// Engine::submit/cancel may be called from any thread. Events come out on the engine's thread
// through EngineSink and must not block for long (they push into a queue).
//
// Pages: the engine reads and writes the pages of a request from submit() until its kFinished event
// (the last event of a request, always sent, also after cancel()); never before or after.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/metrics.h"
#include "base/sampling.h"
#include "base/status.h"
#include "engine/chat_template.h"
#include "engine/tokenizer.h"
#include "kv/layout.h"

namespace kvd::engine {

enum class EngineKind { kCpu, kMock };

struct EngineOptions {
  EngineKind kind = EngineKind::kCpu;
  std::string model_path;     // kCpu
  std::string chat_template;  // empty: by the file's own template; else a built-in name ("chatml")
  std::string shape = "smollm2-135m";  // kMock
  double mock_us_per_token = 0;  // kMock: compute time of prefill and of a decode step, per token
  std::uint32_t context = 0;     // 0: the model's own
  std::uint32_t page_size = 32;
  std::uint32_t max_running = 64;
  std::uint32_t chunk = 512;  // prefill tokens a step at most
  std::uint32_t threads = 0;  // 0: all cores of the process's affinity
  std::vector<int> pin_cpus;  // empty: no pinning
  // One kernel whatever the batch and the thread count. All but AMX are always so: a row's bits
  // never depend on either (cpu/kernels.h). With AMX this uses the kernels of "avx512".
  bool deterministic = false;
  std::string cpu;  // "", "scalar", "avx2", "avx512", "amx"
  // File that gets one line a decode step and sequence; empty: none. A line is
  //   POSITION TOKEN HASH ID:LOGIT ID:LOGIT
  // of the drawn token: its position in the sequence (prompt and output, from 0), its id, xxh3-64
  // (16 hex digits) of the raw float logits it was drawn from, and the two largest of them (9
  // digits). Nothing in it names the request or the host, and the token drawn by prefill has no
  // line: for one request at a time the files of a decode worker and of `--prefill local` are equal
  // byte for byte.
  std::string trace_logits;
};

enum class SequenceMode {
  kPrefill,  // compute the prompt, draw the first token, finish
  kDecode,   // the prompt's KV is in the pages, the first token is drawn: generate
  kFull,     // both
};

struct SequenceRequest {
  std::uint64_t id = 0;  // the caller's key, unique among running requests
  SequenceMode mode = SequenceMode::kFull;
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::uint32_t choice = 0;
  std::vector<PageIndex> pages;        // kPrefill: the prompt's; else prompt + max_tokens
  SampledToken first;                  // kDecode
  std::vector<kv::LayerGroup> groups;  // kPrefill: report kLayersReady once a group and chunk
};

// K and V of `group` for prompt tokens [token_begin, token_end) are in the pages.
struct LayersReady {
  std::uint64_t id = 0;
  kv::LayerGroup group;
  std::uint32_t token_begin = 0, token_end = 0;
};
// kPrefill and kFull: the prompt is computed and the first token drawn.
struct PrefillDone {
  std::uint64_t id = 0;
  SampledToken first;
  Duration queued{0}, compute{0};
};
// One generated token (the first one too, except in kPrefill). `text` is what became printable:
// whole UTF-8 characters, nothing that may still turn out to be part of a stop string; may be
// empty.
struct TokenOut {
  std::uint64_t id = 0;
  SampledToken token;
  std::string text;
};
enum class FinishReason { kStop, kLength, kCancelled, kError };
struct Finished {
  std::uint64_t id = 0;
  FinishReason reason = FinishReason::kStop;
  std::string text;  // what was held back and is now known to be output
  std::uint32_t completion_tokens = 0;
  Status status;  // of kError
};
using EngineEvent = std::variant<LayersReady, PrefillDone, TokenOut, Finished>;

class EngineSink {
 public:
  virtual ~EngineSink() = default;
  virtual void on_event(EngineEvent event) = 0;
};

// What is known once the model is loaded. Immutable; any thread.
struct ModelInfo {
  std::string name;         // the file's name without weight type and .gguf, or the shape
  std::string fingerprint;  // equal only if KV is interchangeable (file digest; mock: shape)
  kv::KvLayout layout;
  std::uint32_t vocab = 0;
  std::uint32_t context = 0;  // longest prompt + output
  std::uint64_t weight_bytes = 0;
  std::string kernels;  // "scalar", "avx2", "avx512", "amx", "mock"
  TokenId eos = -1, bos = -1;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const ModelInfo& info() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const ChatTemplate& chat_template() const = 0;
  // Gives the KV memory that `pages` refer to (page i at base + i * page_bytes) and starts the
  // thread. Call once.
  virtual void start(std::byte* pool_base, std::uint32_t page_count, EngineSink* sink) = 0;
  // False when the queue is full (bounded by 4 * max_running + 64).
  virtual bool submit(SequenceRequest request) = 0;
  virtual void cancel(std::uint64_t id) = 0;
  // Requests submitted and not finished; of them, those in the running batch.
  virtual std::uint32_t queued() const = 0;
  virtual std::uint32_t running() const = 0;
  // Ends the thread; unfinished requests get kFinished(kCancelled) first.
  virtual void stop() = 0;
};

// Loads the model. Errors: kInvalidArgument with file, offset and what to do (exit 2).
Result<std::unique_ptr<Engine>> create_engine(const EngineOptions& options, Metrics* metrics);

}  // namespace kvd::engine
