// An API request made ready for the engine: tokenized, bounded by the model and the pool. Any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "http/openai.h"

namespace kvd::node {

struct PreparedRequest {
  http::ApiRequest api;
  std::vector<std::vector<TokenId>> prompts;
  // One room each: prompts x n, choice index = prompt * n + k.
  std::size_t items() const { return prompts.size() * api.n; }
};

// Limits that the engine does not know itself.
struct ApiLimits {
  std::string served_model;
  std::uint32_t page_count = 0;  // of the pool
  std::uint32_t max_items = 0;   // rooms of one request at most
};

// Parses a body of POST /v1/completions or /v1/chat/completions and tokenizes it. Errors:
// kInvalidArgument, kNotFound (another model). max_tokens becomes what was asked, or 512 for a chat
// that asked for nothing, and at most what the context holds behind the prompt.
Result<PreparedRequest> prepare(const engine::Engine& engine, const ApiLimits& limits,
                                std::string_view target, std::string_view body);

}  // namespace kvd::node
