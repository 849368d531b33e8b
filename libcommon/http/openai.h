// The OpenAI API as data: request bodies parsed and bounded, answers and stream chunks rendered.
// Pure; any thread. What is not understood is ignored; what is wrong is a 400 with OpenAI's error
// object naming the parameter: the Status of such a fault reads "PARAM: what to do", and
// error_body() takes the parameter from there. kvd's own fields: kvd_prefill, kvd_timeout_ms;
// SGLang's: bootstrap_host/port/room.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/sampling.h"
#include "base/status.h"

namespace kvd::http {

struct Message {
  std::string role, content;
};

// SGLang's three fields for one item.
struct Bootstrap {
  std::string host;
  std::optional<std::uint16_t> port;
  RoomId room;
};

struct ApiRequest {
  bool chat = false;
  std::string model;
  // Completions: one entry a prompt, text or token ids. Chat: exactly one, empty (see messages).
  std::vector<std::variant<std::string, std::vector<TokenId>>> prompts;
  std::vector<Message> messages;
  SamplingParams sampling;
  bool max_tokens_given = false;
  bool seed_given = false;
  std::uint32_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool echo = false;
  // kvd_prefill: absent / null (decode chooses, and may not retry) / an address.
  enum class PrefillField { kAbsent, kNull, kNamed } prefill_field = PrefillField::kAbsent;
  std::string prefill;
  std::optional<std::uint64_t> timeout_ms;
  std::vector<Bootstrap> bootstrap;  // empty, or one for each of prompts x n
};

// The body is untrusted: size is bounded by the server, depth by 32, counts by these.
constexpr std::size_t kMaxPrompts = 64;
constexpr std::uint32_t kMaxChoices = 128;
Result<ApiRequest> parse_completion(std::string_view body);
Result<ApiRequest> parse_chat(std::string_view body);

// {"error":{"message","type","param","code"}} with the HTTP status that fits.
int http_status(StatusCode code);
std::string error_body(const Status& status);

struct Usage {
  std::uint32_t prompt_tokens = 0, completion_tokens = 0;
};

// Milliseconds; negative: not known. DESIGN 9 `stages_ms`.
struct Stages {
  double queue = -1, bootstrap = -1, prefill_compute = -1, transfer_total = -1,
         transfer_exposed = -1, commit = -1, ttft = -1, decode = -1, total = -1;
  bool commit_is_estimate = false;
};

// kvd's own part of an answer, field "kvd": one entry a choice.
struct KvdInfo {
  std::string room, prefill, provider;
  std::uint64_t kv_bytes = 0;
  std::uint32_t kv_pages = 0;
  std::vector<TokenId> token_ids;
  Stages stages;
};

struct LogprobEntry {
  std::string text;  // of the token (bytes, may be invalid UTF-8: rendered with U+FFFD and "bytes")
  float logprob = 0;  // not a number: null (the first token of an echoed prompt has none)
  std::vector<std::pair<std::string, float>> top;
};

struct Choice {
  std::uint32_t index = 0;
  std::string text;
  std::string finish_reason;  // empty: null
  bool logprobs = false;
  std::vector<LogprobEntry> entries;
  std::uint32_t text_offset = 0;  // completions' logprobs: of the first entry
};

// Renders answers of one request; `id` is "cmpl-..." or "chatcmpl-...", `created` seconds since
// 1970.
class Renderer {
 public:
  Renderer(bool chat, std::string id, std::int64_t created, std::string model);
  std::string whole(const std::vector<Choice>& choices, const Usage& usage,
                    const std::vector<KvdInfo>& kvd) const;
  // SSE events, "data: {...}\n\n".
  std::string role_chunk(std::uint32_t index) const;  // chat: the first chunk of a choice
  std::string chunk(const Choice& choice) const;
  std::string usage_chunk(const Usage& usage, const std::vector<KvdInfo>& kvd) const;
  std::string error_chunk(const Status& status) const;
  static std::string done() { return "data: [DONE]\n\n"; }

 private:
  bool chat_;
  std::string id_, model_;
  std::int64_t created_;
  std::string chunk_head_;  // of every stream chunk, up to its choices
};

std::string models_body(const std::string& model, std::int64_t created);

}  // namespace kvd::http
