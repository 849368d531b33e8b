#include "http/body_edit.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace kvd::http {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;

// Nothing when it is not JSON or nested too deep: the parser recurses for what it keeps.
std::optional<Json> parse(std::string_view text) {
  bool too_deep = false;
  const Json::parser_callback_t guard = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  Json out = Json::parse(text, guard, /*allow_exceptions=*/false);
  if (too_deep || out.is_discarded()) return std::nullopt;
  return out;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

const Json* find(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(name);
  return it == object.end() ? nullptr : &*it;
}

std::string string_of(const Json* json) {
  return json != nullptr && json->is_string() ? json->get<std::string>() : std::string();
}

// Fractions and negative numbers count as 0: nothing here is of that kind.
std::uint64_t number_of(const Json* json) {
  return json != nullptr && json->is_number_unsigned() ? json->get<std::uint64_t>() : 0;
}

std::uint32_t small_number_of(const Json* json) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(number_of(json), UINT32_MAX));
}

double stage_of(const Json& stages, const char* name) {
  const Json* json = find(stages, name);
  return json != nullptr && json->is_number() ? json->get<double>() : -1;
}

Stages stages_of(const Json& json) {
  Stages out;
  out.queue = stage_of(json, "queue");
  out.bootstrap = stage_of(json, "bootstrap");
  out.prefill_compute = stage_of(json, "prefill_compute");
  out.transfer_total = stage_of(json, "transfer_total");
  out.transfer_exposed = stage_of(json, "transfer_exposed");
  out.commit = stage_of(json, "commit");
  out.ttft = stage_of(json, "ttft");
  out.decode = stage_of(json, "decode");
  out.total = stage_of(json, "total");
  const Json* estimate = find(json, "commit_is_estimate");
  out.commit_is_estimate = estimate != nullptr && estimate->is_boolean() && estimate->get<bool>();
  return out;
}

KvdInfo info_of(const Json& json) {
  KvdInfo out;
  out.room = string_of(find(json, "room"));
  out.prefill = string_of(find(json, "prefill"));
  out.provider = string_of(find(json, "provider"));
  out.kv_bytes = number_of(find(json, "kv_bytes"));
  out.kv_pages = small_number_of(find(json, "kv_pages"));
  if (const Json* ids = find(json, "token_ids"); ids != nullptr && ids->is_array()) {
    for (const Json& id : *ids) {
      if (id.is_number_integer()) out.token_ids.push_back(id.get<TokenId>());
    }
  }
  if (const Json* stages = find(json, "stages_ms"); stages != nullptr) {
    out.stages = stages_of(*stages);
  }
  return out;
}

AnswerChoice choice_of(const Json& json) {
  AnswerChoice out;
  out.index = small_number_of(find(json, "index"));
  out.finish_reason = string_of(find(json, "finish_reason"));
  out.text = string_of(find(json, "text"));
  for (const char* holder : {"message", "delta"}) {
    if (const Json* inner = find(json, holder); inner != nullptr) {
      out.text += string_of(find(*inner, "content"));
    }
  }
  return out;
}

Status error_of(const Json& json) {
  std::string message =
      json.is_string() ? json.get<std::string>() : string_of(find(json, "message"));
  if (message.empty()) message = "the server reports an error without a message";
  const std::string type = string_of(find(json, "type"));
  const std::string code = string_of(find(json, "code"));
  for (const StatusCode each :
       {StatusCode::kInvalidArgument, StatusCode::kNotFound, StatusCode::kUnauthorized,
        StatusCode::kResourceExhausted, StatusCode::kUnavailable, StatusCode::kDeadline,
        StatusCode::kIncompatible, StatusCode::kCorrupted, StatusCode::kCancelled,
        StatusCode::kInternal}) {
    if (code == to_string(each) || type == to_string(each)) return {each, message};
  }
  if (type == "invalid_request_error") return invalid_argument(message);
  return {StatusCode::kFailed, message};
}

}  // namespace

std::string json_string(std::string_view text) { return dump(Json(std::string(text))); }

Result<std::string> set_fields(std::string_view body, const std::vector<BodyField>& fields) {
  std::optional<Json> json = parse(body);
  if (!json || !json->is_object()) return invalid_argument("the body is not a JSON object");
  for (const BodyField& field : fields) {
    std::optional<Json> value = parse(field.json);
    if (!value) return invalid_argument("the value of '" + field.name + "' is not JSON");
    (*json)[field.name] = std::move(*value);
  }
  return dump(*json);
}

Result<std::string> merge_bodies(std::string_view base, std::string_view over) {
  std::optional<Json> json = parse(base);
  const std::optional<Json> fields = parse(over);
  if (!json || !json->is_object() || !fields || !fields->is_object()) {
    return invalid_argument("the fields of a request are not a JSON object");
  }
  json->update(*fields);
  return dump(*json);
}

Result<Answer> parse_answer(std::string_view text) {
  const std::optional<Json> json = parse(text);
  if (!json || !json->is_object()) return invalid_argument("the answer is not a JSON object");
  Answer out;
  if (const Json* error = find(*json, "error"); error != nullptr && !error->is_null()) {
    out.error = error_of(*error);
  }
  if (const Json* choices = find(*json, "choices"); choices != nullptr && choices->is_array()) {
    for (const Json& choice : *choices) out.choices.push_back(choice_of(choice));
  }
  if (const Json* usage = find(*json, "usage"); usage != nullptr && usage->is_object()) {
    out.usage = Usage{small_number_of(find(*usage, "prompt_tokens")),
                      small_number_of(find(*usage, "completion_tokens"))};
  }
  if (const Json* kvd = find(*json, "kvd"); kvd != nullptr) {
    if (kvd->is_object()) out.kvd.push_back(info_of(*kvd));
    if (kvd->is_array()) {
      for (const Json& one : *kvd) out.kvd.push_back(info_of(one));
    }
  }
  return out;
}

std::string stages_json(const Stages& stages) {
  Json out = Json::object();
  const auto put = [&](const char* name, double value) {
    // Microseconds are all that the clocks behind these are good for.
    out[name] = value < 0 ? Json(nullptr) : Json(std::round(value * 1000.0) / 1000.0);
  };
  put("queue", stages.queue);
  put("bootstrap", stages.bootstrap);
  put("prefill_compute", stages.prefill_compute);
  put("transfer_total", stages.transfer_total);
  put("transfer_exposed", stages.transfer_exposed);
  put("commit", stages.commit);
  put("ttft", stages.ttft);
  put("decode", stages.decode);
  put("total", stages.total);
  if (stages.commit_is_estimate) out["commit_is_estimate"] = true;
  return dump(out);
}

Result<std::vector<std::string>> SseReader::feed(std::string_view bytes) {
  pending_.append(bytes);
  std::vector<std::string> events;
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = pending_.find("\n\n", begin);
    const std::size_t end_crlf = pending_.find("\r\n\r\n", begin);
    if (end == std::string::npos && end_crlf == std::string::npos) break;
    const std::size_t stop = std::min(end, end_crlf);
    std::string data;
    std::size_t line = begin;
    while (line < stop) {
      std::size_t line_end = std::min(pending_.find('\n', line), stop);
      std::string_view text = std::string_view(pending_).substr(line, line_end - line);
      if (!text.empty() && text.back() == '\r') text.remove_suffix(1);
      if (text.starts_with("data:")) {
        text.remove_prefix(5);
        if (text.starts_with(' ')) text.remove_prefix(1);
        if (!data.empty()) data += '\n';
        data += text;
      }
      line = line_end + 1;
    }
    if (!data.empty()) events.push_back(std::move(data));
    begin = stop + (stop == end ? 2 : 4);
  }
  pending_.erase(0, begin);
  if (pending_.size() > kMaxEvent) return invalid_argument("a server-sent event is too long");
  return events;
}

}  // namespace kvd::http
