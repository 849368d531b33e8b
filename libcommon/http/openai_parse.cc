// Request bodies: bounded and checked before anything is built from them.
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "http/openai.h"

namespace kvd::http {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;
// A value costs the parser up to 32 bytes, so that a body of 32 MiB could ask for half a GiB; this
// many hold 64 prompts of 64 Ki tokens.
constexpr std::size_t kMaxValues = 4U << 20U;
constexpr std::size_t kMaxMessages = 4096;
constexpr std::size_t kMaxStopTokenIds = 256;
constexpr std::size_t kMaxNameBytes = 256;
constexpr std::uint64_t kMaxTimeoutMs = 7ULL * 24 * 3600 * 1000;
constexpr std::uint64_t kMaxRoom = std::numeric_limits<std::int64_t>::max();

// Depth and number of values, before the parser takes memory for them.
Status check_shape(std::string_view body) {
  int depth = 0;
  std::size_t values = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == ',' || c == '[' || c == '{') ++values;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kMaxDepth) {
      return invalid_argument("the body is nested deeper than " + std::to_string(kMaxDepth) +
                              " levels");
    }
    if (values > kMaxValues) {
      return invalid_argument("the body has more than " + std::to_string(kMaxValues) + " values");
    }
  }
  return {};
}

Result<Json> parse_object(std::string_view body) {
  if (body.empty()) return invalid_argument("the body is empty; send a JSON object");
  if (!is_valid_utf8(body)) return invalid_argument("the body is not valid UTF-8");
  // The parser would take a NUL for the end and never look at the rest.
  if (body.find('\0') != std::string_view::npos)
    return invalid_argument("the body holds a NUL byte");
  KVD_RETURN_IF_ERROR(check_shape(body));
  try {
    Json parsed = Json::parse(body.begin(), body.end());
    if (!parsed.is_object()) return invalid_argument("the body must be a JSON object");
    return parsed;
  } catch (const Json::parse_error& error) {
    return invalid_argument("the body is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const Json::exception&) {
    return invalid_argument("the body has a number that is out of range");
  }
}

// An integer of JSON as (value, sign); false for anything else, 1.0 included.
bool integer_of(const Json& value, std::uint64_t* magnitude, bool* negative) {
  if (value.is_number_unsigned()) {
    *magnitude = value.get<std::uint64_t>();
    *negative = false;
    return true;
  }
  if (!value.is_number_integer()) return false;
  const auto number = value.get<std::int64_t>();
  *negative = number < 0;
  *magnitude =
      *negative ? ~static_cast<std::uint64_t>(number) + 1 : static_cast<std::uint64_t>(number);
  return true;
}

std::optional<std::uint64_t> unsigned_of(const Json& value, std::uint64_t low, std::uint64_t high) {
  std::uint64_t magnitude = 0;
  bool negative = false;
  if (!integer_of(value, &magnitude, &negative) || negative) return std::nullopt;
  if (magnitude < low || magnitude > high) return std::nullopt;
  return magnitude;
}

std::string shown(double number) {
  const auto whole = static_cast<std::int64_t>(number);
  return static_cast<double>(whole) == number ? std::to_string(whole) : std::to_string(number);
}

// Reads fields of one object into variables; null counts as absent. The first fault is kept, and
// the variable it concerns stays as it was.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) {}

  const Json* find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool present(const char* name) const { return object_.contains(name); }

  void fail(const std::string& param, const std::string& text) {
    if (status_.ok()) status_ = invalid_argument(param + ": " + text);
  }

  template <typename T>
  bool integer(const char* name, std::uint64_t low, std::uint64_t high, T* out) {
    const Json* value = find(name);
    if (value == nullptr) return false;
    if (const auto number = unsigned_of(*value, low, high)) {
      *out = static_cast<T>(*number);
      return true;
    }
    fail(name, "must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return false;
  }

  void number(const char* name, double low, double high, float* out) {
    const Json* value = find(name);
    if (value == nullptr) return;
    const double given = value->is_number() ? value->get<double>() : std::nan("");
    if (given >= low && given <= high) {
      *out = static_cast<float>(given);
    } else {
      fail(name, "must be a number from " + shown(low) + " to " + shown(high));
    }
  }

  void boolean(const char* name, bool* out) {
    const Json* value = find(name);
    if (value == nullptr) return;
    if (value->is_boolean()) {
      *out = value->get<bool>();
    } else {
      fail(name, "must be true or false");
    }
  }

  void string(const char* name, std::size_t max_bytes, std::string* out) {
    const Json* value = find(name);
    if (value == nullptr) return;
    if (value->is_string() && value->get_ref<const std::string&>().size() <= max_bytes) {
      *out = value->get<std::string>();
    } else {
      fail(name, "must be a string of at most " + std::to_string(max_bytes) + " bytes");
    }
  }

  const Status& status() const { return status_; }

 private:
  const Json& object_;
  Status status_;
};

void read_stop(Reader& in, SamplingParams& sampling) {
  const Json* stop = in.find("stop");
  if (stop == nullptr) return;
  if (!stop->is_string() && !stop->is_array()) {
    return in.fail("stop", "must be a string or a list of strings");
  }
  const std::size_t count = stop->is_array() ? stop->size() : 1;
  if (count > kMaxStopStrings) {
    return in.fail("stop", "has " + std::to_string(count) + " strings, at most " +
                               std::to_string(kMaxStopStrings) + " are allowed");
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Json& item = stop->is_array() ? (*stop)[i] : *stop;
    if (!item.is_string()) return in.fail("stop", "must be a string or a list of strings");
    const auto& text = item.get_ref<const std::string&>();
    if (text.empty() || text.size() > kMaxStopBytes) {
      return in.fail("stop",
                     "each string must have 1 to " + std::to_string(kMaxStopBytes) + " bytes");
    }
    sampling.stop.push_back(text);
  }
}

// Token ids; false (with the fault told) when `value` is no list of them.
bool read_token_ids(Reader& in, const std::string& param, const Json& value,
                    std::vector<TokenId>* out) {
  out->reserve(value.size());
  for (const Json& item : value) {
    const auto id = unsigned_of(item, 0, std::numeric_limits<TokenId>::max());
    if (!id) {
      in.fail(param, "must be a list of token ids from 0 to 2147483647");
      return false;
    }
    out->push_back(static_cast<TokenId>(*id));
  }
  return true;
}

void read_stop_token_ids(Reader& in, SamplingParams& sampling) {
  const Json* ids = in.find("stop_token_ids");
  if (ids == nullptr) return;
  if (!ids->is_array() || ids->size() > kMaxStopTokenIds) {
    return in.fail("stop_token_ids",
                   "must be a list of at most " + std::to_string(kMaxStopTokenIds) + " token ids");
  }
  read_token_ids(in, "stop_token_ids", *ids, &sampling.stop_token_ids);
}

void read_seed(Reader& in, ApiRequest& request) {
  const Json* seed = in.find("seed");
  if (seed == nullptr) return;
  std::uint64_t magnitude = 0;
  bool negative = false;
  if (!integer_of(*seed, &magnitude, &negative)) {
    return in.fail("seed", "must be an integer of 64 bits");
  }
  request.sampling.seed = negative ? ~magnitude + 1 : magnitude;
  request.seed_given = true;
}

void read_top_k(Reader& in, SamplingParams& sampling) {
  const Json* top_k = in.find("top_k");
  if (top_k == nullptr) return;
  std::uint64_t magnitude = 0;
  bool negative = false;
  const bool all = integer_of(*top_k, &magnitude, &negative) && negative && magnitude == 1;
  if (all) {
    sampling.top_k = 0;  // -1 is how vLLM and SGLang say "all"
  } else {
    in.integer("top_k", 0, std::numeric_limits<std::int32_t>::max(), &sampling.top_k);
  }
}

void read_sampling(Reader& in, ApiRequest& request) {
  SamplingParams& sampling = request.sampling;
  constexpr std::uint64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();
  const bool old_name = in.integer("max_tokens", 1, kMaxTokens, &sampling.max_tokens);
  const bool new_name = in.integer("max_completion_tokens", 1, kMaxTokens, &sampling.max_tokens);
  request.max_tokens_given = old_name || new_name;
  in.number("temperature", 0, 2, &sampling.temperature);
  in.number("top_p", 0, 1, &sampling.top_p);
  in.number("min_p", 0, 1, &sampling.min_p);
  in.number("repetition_penalty", 0.01, 10, &sampling.repetition_penalty);
  read_top_k(in, sampling);
  read_seed(in, request);
  read_stop(in, sampling);
  read_stop_token_ids(in, sampling);
  in.boolean("ignore_eos", &sampling.ignore_eos);
}

void read_stream(Reader& in, ApiRequest& request) {
  in.boolean("stream", &request.stream);
  const Json* options = in.find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return in.fail("stream_options", "must be an object");
  Reader inner(*options);
  inner.boolean("include_usage", &request.include_usage);
  if (!inner.status().ok()) in.fail("stream_options.include_usage", "must be true or false");
}

void read_kvd(Reader& in, ApiRequest& request) {
  if (const Json* prefill = in.find("kvd_prefill")) {
    if (prefill->is_string() && parse_host_port(prefill->get_ref<const std::string&>()).ok()) {
      request.prefill_field = ApiRequest::PrefillField::kNamed;
      request.prefill = prefill->get<std::string>();
    } else {
      in.fail("kvd_prefill", "must be null or the HOST:PORT of a prefill worker");
    }
  } else if (in.present("kvd_prefill")) {
    request.prefill_field = ApiRequest::PrefillField::kNull;
  }
  std::uint64_t timeout = 0;
  if (in.integer("kvd_timeout_ms", 1, kMaxTimeoutMs, &timeout)) request.timeout_ms = timeout;
}

// The i-th of a field that is a scalar or a list; null (also of a list) and absent are nullptr.
const Json* item_of(const Json* field, std::size_t i) {
  if (field == nullptr) return nullptr;
  const Json* item = field->is_array() ? &(*field)[i] : field;
  return item->is_null() ? nullptr : item;
}

bool read_one_bootstrap(Reader& in, const Json* host, const Json* port, const Json* room,
                        Bootstrap* out) {
  if (host == nullptr || !host->is_string() || host->get_ref<const std::string&>().empty() ||
      host->get_ref<const std::string&>().size() > kMaxNameBytes) {
    in.fail("bootstrap_host", "must be the host name or address of a prefill worker");
    return false;
  }
  out->host = host->get<std::string>();
  const auto number = room == nullptr ? std::nullopt : unsigned_of(*room, 1, kMaxRoom);
  if (!number) {
    in.fail("bootstrap_room", "must be an integer from 1 to " + std::to_string(kMaxRoom));
    return false;
  }
  out->room = RoomId{*number};
  if (port == nullptr) return true;
  const auto value = unsigned_of(*port, 1, 65535);
  if (!value) {
    in.fail("bootstrap_port", "must be null or an integer from 1 to 65535");
    return false;
  }
  out->port = static_cast<std::uint16_t>(*value);
  return true;
}

void read_bootstrap(Reader& in, ApiRequest& request) {
  const Json* host = in.find("bootstrap_host");
  const Json* port = in.find("bootstrap_port");
  const Json* room = in.find("bootstrap_room");
  if (host == nullptr && port == nullptr && room == nullptr) return;
  const std::size_t needed = request.prompts.size() * request.n;
  const std::pair<const char*, const Json*> fields[] = {
      {"bootstrap_host", host}, {"bootstrap_port", port}, {"bootstrap_room", room}};
  for (const auto& [name, field] : fields) {
    if (field == nullptr) continue;
    const std::size_t count = field->is_array() ? field->size() : 1;
    if (count != needed) {
      return in.fail(name, "has " + std::to_string(count) + " entries, the request needs " +
                               std::to_string(needed) + ": one for each prompt and choice");
    }
  }
  for (std::size_t i = 0; i < needed; ++i) {
    Bootstrap entry;
    if (!read_one_bootstrap(in, item_of(host, i), item_of(port, i), item_of(room, i), &entry))
      return;
    request.bootstrap.push_back(std::move(entry));
  }
}

// One entry of a list of prompts; all must be of the first one's kind.
bool read_prompt_item(Reader& in, const Json& item, bool text, ApiRequest& request) {
  if (text != item.is_string() || (!text && (!item.is_array() || item.empty()))) {
    in.fail("prompt",
            "must be a string, a list of strings, or one or more non-empty lists of token ids");
    return false;
  }
  if (text) {
    request.prompts.emplace_back(item.get<std::string>());
    return true;
  }
  std::vector<TokenId> ids;
  if (!read_token_ids(in, "prompt", item, &ids)) return false;
  request.prompts.emplace_back(std::move(ids));
  return true;
}

void read_prompts(Reader& in, ApiRequest& request) {
  const Json* prompt = in.find("prompt");
  if (prompt == nullptr) return in.fail("prompt", "is required");
  if (prompt->is_string()) {
    read_prompt_item(in, *prompt, true, request);
    return;
  }
  if (!prompt->is_array() || prompt->empty()) {
    return in.fail(
        "prompt",
        "must be a string, a list of strings, or one or more non-empty lists of token ids");
  }
  const Json& first = prompt->front();
  if (first.is_number()) {
    read_prompt_item(in, *prompt, false, request);
    return;
  }
  if (prompt->size() > kMaxPrompts) {
    return in.fail("prompt", "has " + std::to_string(prompt->size()) + " prompts, at most " +
                                 std::to_string(kMaxPrompts) + " are allowed");
  }
  for (const Json& item : *prompt) {
    if (!read_prompt_item(in, item, first.is_string(), request)) return;
  }
}

// A message's content: a string, or a list of {"type":"text","text":...}. Only an assistant may
// leave it out (it then called a tool).
void read_content(Reader& in, const std::string& where, const Json& message, Message* out) {
  const auto it = message.find("content");
  const bool missing = it == message.end() || it->is_null();
  if (missing && out->role == "assistant") return;
  if (!missing && it->is_string()) {
    out->content = it->get<std::string>();
    return;
  }
  if (missing || !it->is_array()) {
    return in.fail(where + ".content", "must be a string or a list of text parts");
  }
  for (std::size_t i = 0; i < it->size(); ++i) {
    const Json& part = (*it)[i];
    const std::string param = where + ".content[" + std::to_string(i) + "]";
    const bool text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                      part.contains("text") && part["text"].is_string();
    if (!text)
      return in.fail(param, R"(must be {"type":"text","text":"..."}: the model reads text only)");
    out->content += part["text"].get_ref<const std::string&>();
  }
}

// The role goes into the rendered chat as it stands, so only known ones may pass.
bool known_role(const std::string& role) {
  for (const char* known : {"system", "user", "assistant", "tool", "function"}) {
    if (role == known) return true;
  }
  return false;
}

void read_messages(Reader& in, ApiRequest& request) {
  const Json* messages = in.find("messages");
  if (messages == nullptr) return in.fail("messages", "is required");
  if (!messages->is_array() || messages->empty() || messages->size() > kMaxMessages) {
    return in.fail("messages",
                   "must be a list of 1 to " + std::to_string(kMaxMessages) + " messages");
  }
  for (std::size_t i = 0; i < messages->size() && in.status().ok(); ++i) {
    const Json& item = (*messages)[i];
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (!item.is_object()) return in.fail(where, "must be an object with role and content");
    Message message;
    const auto role = item.find("role");
    if (role != item.end() && role->is_string()) message.role = role->get<std::string>();
    if (message.role == "developer") message.role = "system";  // OpenAI's newer name for it
    if (!known_role(message.role)) {
      return in.fail(where + ".role",
                     "must be system, developer, user, assistant, tool or function");
    }
    read_content(in, where, item, &message);
    request.messages.push_back(std::move(message));
  }
}

void read_completion_logprobs(Reader& in, SamplingParams& sampling) {
  sampling.logprobs = in.integer("logprobs", 0, kMaxTopLogprobs, &sampling.top_logprobs);
}

void read_chat_logprobs(Reader& in, SamplingParams& sampling) {
  in.boolean("logprobs", &sampling.logprobs);
  in.integer("top_logprobs", 0, kMaxTopLogprobs, &sampling.top_logprobs);
  if (sampling.top_logprobs > 0 && !sampling.logprobs) {
    in.fail("top_logprobs", "needs logprobs to be true");
  }
}

Result<ApiRequest> parse(std::string_view body, bool chat) {
  Result<Json> json = parse_object(body);
  if (!json.ok()) return json.status();
  Reader in(*json);
  ApiRequest request;
  request.chat = chat;
  in.string("model", kMaxNameBytes, &request.model);
  if (chat) {
    request.prompts.emplace_back(std::string());
    read_messages(in, request);
    read_chat_logprobs(in, request.sampling);
  } else {
    read_prompts(in, request);
    read_completion_logprobs(in, request.sampling);
    in.boolean("echo", &request.echo);
  }
  in.integer("n", 1, kMaxChoices, &request.n);
  read_sampling(in, request);
  read_stream(in, request);
  read_kvd(in, request);
  if (in.status().ok()) read_bootstrap(in, request);
  if (!in.status().ok()) return in.status();
  return request;
}

}  // namespace

Result<ApiRequest> parse_completion(std::string_view body) { return parse(body, false); }
Result<ApiRequest> parse_chat(std::string_view body) { return parse(body, true); }

}  // namespace kvd::http
