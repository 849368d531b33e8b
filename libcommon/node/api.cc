#include "node/api.h"

#include <algorithm>

#include "base/rng.h"

namespace kvd::node {
namespace {

constexpr std::uint32_t kDefaultChatTokens = 512;
constexpr std::size_t kLongestToken = 512;  // bytes

Result<std::vector<TokenId>> tokenize(const engine::Engine& engine, const http::ApiRequest& api,
                                      std::size_t index) {
  const engine::Tokenizer& tokenizer = engine.tokenizer();
  if (api.chat) {
    std::vector<engine::ChatMessage> messages;
    for (const http::Message& m : api.messages) messages.push_back({m.role, m.content});
    return engine.chat_template().apply(messages, true);
  }
  const auto& prompt = api.prompts[index];
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
    for (const TokenId id : *ids) {
      if (id < 0 || static_cast<std::uint32_t>(id) >= engine.info().vocab) {
        return invalid_argument("prompt: token " + std::to_string(id) +
                                " is not in the vocabulary of " +
                                std::to_string(engine.info().vocab));
      }
    }
    return *ids;
  }
  const std::string& text = std::get<std::string>(prompt);
  // No token is as long as that: the text cannot fit, and need not be tokenized to know it.
  if (text.size() / kLongestToken > engine.info().context) {
    return invalid_argument("prompt: " + std::to_string(text.size()) +
                            " bytes of text do not fit a context of " +
                            std::to_string(engine.info().context) + " tokens");
  }
  std::vector<TokenId> ids = tokenizer.encode(text);
  if (tokenizer.add_bos() && tokenizer.bos() >= 0) ids.insert(ids.begin(), tokenizer.bos());
  return ids;
}

Status fit(const engine::ModelInfo& model, const ApiLimits& limits, PreparedRequest* request) {
  http::ApiRequest& api = request->api;
  std::uint32_t longest = 0;
  for (const auto& prompt : request->prompts) {
    if (prompt.empty()) return invalid_argument("prompt: it has no tokens");
    longest = std::max(longest, static_cast<std::uint32_t>(prompt.size()));
  }
  if (longest >= model.context) {
    return invalid_argument("prompt: " + std::to_string(longest) +
                            " tokens leave no room for an answer in a context of " +
                            std::to_string(model.context));
  }
  const std::uint32_t room = model.context - longest;
  std::uint32_t& max_tokens = api.sampling.max_tokens;
  if (!api.max_tokens_given) {
    max_tokens = std::min(api.chat ? kDefaultChatTokens : max_tokens, room);
  } else if (max_tokens > room) {
    return invalid_argument("max_tokens: " + std::to_string(longest) + " prompt tokens and " +
                            std::to_string(max_tokens) + " more exceed the context of " +
                            std::to_string(model.context));
  }
  std::uint64_t pages = 0;
  for (const auto& prompt : request->prompts) {
    pages += std::uint64_t{model.layout.pages_for(prompt.size() + max_tokens)} * api.n;
  }
  if (pages > limits.page_count) {
    return invalid_argument("the request needs " + std::to_string(pages) +
                            " KV pages, this worker has " + std::to_string(limits.page_count) +
                            "; shorten it, or give the worker more --kv-memory");
  }
  if (request->items() > limits.max_items) {
    return invalid_argument("prompts times n is " + std::to_string(request->items()) +
                            ", this worker runs at most " + std::to_string(limits.max_items) +
                            " at once (--max-running)");
  }
  return {};
}

}  // namespace

Result<PreparedRequest> prepare(const engine::Engine& engine, const ApiLimits& limits,
                                std::string_view target, std::string_view body) {
  auto parsed =
      target == "/v1/chat/completions" ? http::parse_chat(body) : http::parse_completion(body);
  if (!parsed.ok()) return parsed.status();
  PreparedRequest out;
  out.api = std::move(*parsed);
  if (!out.api.model.empty() && out.api.model != limits.served_model) {
    return Status(StatusCode::kNotFound, "model '" + out.api.model + "' is not served here; '" +
                                             limits.served_model + "' is");
  }
  const std::size_t prompts = out.api.chat ? 1 : out.api.prompts.size();
  for (std::size_t i = 0; i < prompts; ++i) {
    auto ids = tokenize(engine, out.api, i);
    if (!ids.ok()) return ids.status();
    out.prompts.push_back(std::move(*ids));
  }
  KVD_RETURN_IF_ERROR(fit(engine.info(), limits, &out));
  if (!out.api.seed_given) out.api.sampling.seed = secure_random_u63();
  return out;
}

}  // namespace kvd::node
