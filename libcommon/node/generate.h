// `kvd-route generate`: router and client in one process. Prompts are pulled, results are handed
// over; this module does neither input nor output.
//
// Calling thread: generate() blocks its caller. `next_prompt` is called on the caller's thread, the
// sink on another one, one call at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "node/options.h"

namespace kvd::node {

struct GenerateOptions {
  // Where: `url` ("http://HOST:PORT" of a running server), or the workers as for `serve`.
  std::string url;
  std::string join;                            // --join ADDR
  std::vector<std::string> prefills, decodes;  // --prefill, --decode
  Flow flow = Flow::kDecodeFirst;
  std::string policy = "round-robin";
  std::uint32_t retries = 3;  // attempts on fresh pairs in all
  std::string api_key;
  std::string keys;                           // --keys FILE
  Duration timeout{30'000'000'000};           // --timeout: waiting for workers
  Duration request_timeout{600'000'000'000};  // --request-timeout
  Duration dead_after{2'000'000'000};

  // What: fields that are not set are left to the server.
  bool chat = false;   // a text prompt is one user message of /v1/chat/completions
  std::string system;  // with chat: a system message in front of a text prompt
  std::string model;
  std::optional<std::uint32_t> max_tokens, top_k, n, logprobs;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  std::uint32_t concurrency = 1;
  bool stream = false;   // on_text is called as tokens come
  bool ordered = false;  // results in the order of the prompts, not as they end
  const std::atomic<int>* interrupt = nullptr;  // not 0: stop; may be null
};

struct Prompt {
  std::string id;           // repeated in the result; empty: the prompt's number, from 0
  std::string text;         // unless one of the next two is set
  std::string prompt_json;  // the field `prompt` as JSON (token ids)
  std::string messages;     // the field `messages` as JSON: chat
  std::string overrides;    // JSON object: fields of the request body, stronger than the options
};

struct GenerateResult {
  std::uint64_t index = 0;  // number of the prompt, from 0
  std::string id;
  Status status;
  std::string text;           // of choice 0; what there is when status is not ok
  std::string finish_reason;  // of choice 0
  std::string provider;
  std::uint64_t kv_bytes = 0;
  double ttft_ms = -1, total_ms = -1;  // negative: not known
  // One JSON object on one line, DESIGN 9: id, text, token_ids, finish_reason, prompt_tokens,
  // provider, kv_bytes, kv_pages, stages_ms; with several choices also `choices`; after a failure
  // `error`.
  std::string json;
};

struct GenerateSink {
  // With `stream`: more text of choice 0 of a prompt. May be empty. With `ordered` only the first
  // prompt that has not ended streams; text of a later one is handed over in one piece when its
  // turn comes.
  std::function<void(std::uint64_t index, std::string_view text)> on_text;
  std::function<void(const GenerateResult&)> on_result;  // exactly once a prompt
};

// `next_prompt` fills the next prompt and returns true; false ends the input. It may block, but
// must return false soon after *interrupt is set.
//
// Status: ok when each prompt got its answer; kInvalidArgument for options, and for a single bad
// prompt; kUnavailable when no workers were there within `timeout`; kFailed when only some
// succeeded, or when interrupted; the first failure's own code when none succeeded.
Status generate(const GenerateOptions& options, const std::function<bool(Prompt*)>& next_prompt,
                const GenerateSink& sink);

}  // namespace kvd::node
