// Answers and stream chunks, written without a document tree: chunk() runs once a token.
#include <cmath>

#include "http/json_text.h"
#include "http/openai.h"

namespace kvd::http {
namespace {

void append_finish_reason(std::string& out, const std::string& reason) {
  out += R"(,"finish_reason":)";
  if (reason.empty()) {
    out += "null";
  } else {
    append_json_string(out, reason);
  }
}

// {"token","logprob","bytes" of the token and, for an entry of its own, "top_logprobs"}
void append_chat_token(std::string& out, const std::string& text, float logprob) {
  out += R"({"token":)";
  append_json_string(out, text);
  out += R"(,"logprob":)";
  append_json_float(out, logprob);
  out += R"(,"bytes":[)";
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(static_cast<unsigned char>(text[i]));
  }
  out += ']';
}

void append_chat_logprobs(std::string& out, const Choice& choice) {
  out += R"({"content":[)";
  bool first = true;
  for (const LogprobEntry& entry : choice.entries) {
    if (!first) out += ',';
    first = false;
    append_chat_token(out, entry.text, entry.logprob);
    out += R"(,"top_logprobs":[)";
    for (std::size_t i = 0; i < entry.top.size(); ++i) {
      if (i > 0) out += ',';
      append_chat_token(out, entry.top[i].first, entry.top[i].second);
      out += '}';
    }
    out += "]}";
  }
  out += R"(],"refusal":null})";
}

// One token's alternatives as an object. Two tokens may look the same once repaired to UTF-8: the
// likelier one, which comes first, keeps the key.
void append_top_object(std::string& out, const LogprobEntry& entry) {
  std::vector<std::string> keys;
  keys.reserve(entry.top.size());
  out += '{';
  for (const auto& [text, logprob] : entry.top) {
    std::string key;
    append_json_string(key, text);
    bool seen = false;
    for (const std::string& other : keys) seen = seen || other == key;
    if (seen) continue;
    if (!keys.empty()) out += ',';
    out += key;
    out += ':';
    append_json_float(out, logprob);
    keys.push_back(std::move(key));
  }
  out += '}';
}

void append_completion_logprobs(std::string& out, const Choice& choice) {
  std::string token_logprobs;
  std::string top;
  std::string offsets;
  std::uint32_t offset = choice.text_offset;
  bool any_top = false;
  out += R"({"tokens":[)";
  bool first = true;
  for (const LogprobEntry& entry : choice.entries) {
    if (!first) {
      for (std::string* list : {&out, &token_logprobs, &top, &offsets}) *list += ',';
    }
    first = false;
    append_json_string(out, entry.text);
    append_json_float(token_logprobs, entry.logprob);
    if (entry.top.empty()) {
      top += "null";
    } else {
      append_top_object(top, entry);
      any_top = true;
    }
    offsets += std::to_string(offset);
    offset += character_count(entry.text);
  }
  out += R"(],"token_logprobs":[)" + token_logprobs;
  out += any_top ? R"(],"top_logprobs":[)" + top + "]" : R"(],"top_logprobs":null)";
  out += R"(,"text_offset":[)" + offsets + "]}";
}

void append_logprobs(std::string& out, bool chat, const Choice& choice) {
  out += R"(,"logprobs":)";
  if (!choice.logprobs) {
    out += "null";
  } else if (chat) {
    append_chat_logprobs(out, choice);
  } else {
    append_completion_logprobs(out, choice);
  }
}

void append_usage(std::string& out, const Usage& usage) {
  const std::uint64_t total = std::uint64_t{usage.prompt_tokens} + usage.completion_tokens;
  out += R"("usage":{"prompt_tokens":)" + std::to_string(usage.prompt_tokens);
  out += R"(,"completion_tokens":)" + std::to_string(usage.completion_tokens);
  out += R"(,"total_tokens":)" + std::to_string(total) + "}";
}

void append_stages(std::string& out, const Stages& stages) {
  const std::pair<const char*, double> rows[] = {
      {"queue", stages.queue},
      {"bootstrap", stages.bootstrap},
      {"prefill_compute", stages.prefill_compute},
      {"transfer_total", stages.transfer_total},
      {"transfer_exposed", stages.transfer_exposed},
      {"commit", stages.commit},
      {"ttft", stages.ttft},
      {"decode", stages.decode},
      {"total", stages.total},
  };
  out += R"("stages_ms":{)";
  bool first = true;
  for (const auto& [name, value] : rows) {
    if (!std::isfinite(value) || value < 0) continue;
    if (!first) out += ',';
    first = false;
    out += '"';
    out += name;
    out += "\":";
    append_json_ms(out, value);
  }
  if (stages.commit_is_estimate) {
    if (!first) out += ',';
    out += R"("commit_is_estimate":true)";
  }
  out += '}';
}

void append_kvd(std::string& out, const std::vector<KvdInfo>& kvd) {
  if (kvd.empty()) return;
  out += R"(,"kvd":[)";
  bool first = true;
  for (const KvdInfo& info : kvd) {
    if (!first) out += ',';
    first = false;
    out += R"({"room":)";
    append_json_string(out, info.room);
    out += R"(,"prefill":)";
    append_json_string(out, info.prefill);
    out += R"(,"provider":)";
    append_json_string(out, info.provider);
    out += R"(,"kv_bytes":)" + std::to_string(info.kv_bytes);
    out += R"(,"kv_pages":)" + std::to_string(info.kv_pages);
    out += R"(,"token_ids":[)";
    for (std::size_t i = 0; i < info.token_ids.size(); ++i) {
      if (i > 0) out += ',';
      out += std::to_string(info.token_ids[i]);
    }
    out += "],";
    append_stages(out, info.stages);
    out += '}';
  }
  out += ']';
}

std::string head(std::string_view object, const std::string& id, std::int64_t created,
                 const std::string& model) {
  std::string out = R"({"id":)";
  append_json_string(out, id);
  out += R"(,"object":")";
  out += object;
  out += R"(","created":)" + std::to_string(created) + R"(,"model":)";
  append_json_string(out, model);
  out += R"(,"choices":[)";
  return out;
}

}  // namespace

Renderer::Renderer(bool chat, std::string id, std::int64_t created, std::string model)
    : chat_(chat), id_(std::move(id)), model_(std::move(model)), created_(created) {
  chunk_head_ =
      "data: " + head(chat ? "chat.completion.chunk" : "text_completion", id_, created_, model_);
}

std::string Renderer::whole(const std::vector<Choice>& choices, const Usage& usage,
                            const std::vector<KvdInfo>& kvd) const {
  std::string out = head(chat_ ? "chat.completion" : "text_completion", id_, created_, model_);
  bool first = true;
  for (const Choice& choice : choices) {
    if (!first) out += ',';
    first = false;
    out += R"({"index":)" + std::to_string(choice.index);
    out += chat_ ? R"(,"message":{"role":"assistant","content":)" : R"(,"text":)";
    append_json_string(out, choice.text);
    if (chat_) out += R"(,"refusal":null})";
    append_logprobs(out, chat_, choice);
    append_finish_reason(out, choice.finish_reason);
    out += '}';
  }
  out += "],";
  append_usage(out, usage);
  append_kvd(out, kvd);
  out += '}';
  return out;
}

std::string Renderer::role_chunk(std::uint32_t index) const {
  if (!chat_) return {};
  return chunk_head_ + R"({"index":)" + std::to_string(index) +
         R"(,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})" +
         "\n\n";
}

std::string Renderer::chunk(const Choice& choice) const {
  std::string out;
  out.reserve(chunk_head_.size() + choice.text.size() + 128 + choice.entries.size() * 128);
  out += chunk_head_;
  out += R"({"index":)";
  out += std::to_string(choice.index);
  if (!chat_) {
    out += R"(,"text":)";
    append_json_string(out, choice.text);
  } else if (choice.text.empty()) {
    out += R"(,"delta":{})";
  } else {
    out += R"(,"delta":{"content":)";
    append_json_string(out, choice.text);
    out += '}';
  }
  append_logprobs(out, chat_, choice);
  append_finish_reason(out, choice.finish_reason);
  out += "}]}\n\n";
  return out;
}

std::string Renderer::usage_chunk(const Usage& usage, const std::vector<KvdInfo>& kvd) const {
  std::string out = chunk_head_ + "],";
  append_usage(out, usage);
  append_kvd(out, kvd);
  out += "}\n\n";
  return out;
}

std::string Renderer::error_chunk(const Status& status) const {
  return "data: " + error_body(status) + "\n\n";
}

}  // namespace kvd::http
