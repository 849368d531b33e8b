#include "node/generate_job.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/units.h"
#include "http/openai.h"

namespace kvd::node {
namespace {

// Shortest text that reads back as the same number; JSON has no infinities.
std::string number(double value) {
  std::array<char, 40> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end.ptr};
}

Status status_of_http(int status, std::string message) {
  switch (status) {
    case 400:
    case 413:
    case 422:
      return invalid_argument(std::move(message));
    case 401:
    case 403:
      return {StatusCode::kUnauthorized, std::move(message)};
    case 404:
      return {StatusCode::kNotFound, std::move(message)};
    case 429:
    case 503:
      return unavailable(std::move(message));
    case 504:
      return {StatusCode::kDeadline, std::move(message)};
    default:
      return {StatusCode::kFailed, std::move(message)};
  }
}

void add_sampling(const GenerateOptions& options, bool chat, std::vector<http::BodyField>* out) {
  const auto integer = [&](const char* name, const auto& value) {
    if (value) out->push_back({name, std::to_string(*value)});
  };
  const auto real = [&](const char* name, const std::optional<double>& value) {
    if (value) out->push_back({name, number(*value)});
  };
  if (!options.model.empty()) out->push_back({"model", http::json_string(options.model)});
  integer("max_tokens", options.max_tokens);
  integer("top_k", options.top_k);
  integer("n", options.n);
  integer("seed", options.seed);
  real("temperature", options.temperature);
  real("top_p", options.top_p);
  real("min_p", options.min_p);
  real("repetition_penalty", options.repetition_penalty);
  if (options.ignore_eos) out->push_back({"ignore_eos", "true"});
  if (options.logprobs && chat) out->push_back({"logprobs", "true"});
  integer(chat ? "top_logprobs" : "logprobs", options.logprobs);
  if (!options.stop.empty()) {
    std::string list = "[";
    for (const std::string& each : options.stop) {
      list += (list.size() == 1 ? "" : ",") + http::json_string(each);
    }
    out->push_back({"stop", list + "]"});
  }
}

std::string message(const char* role, const std::string& content) {
  return std::string("{\"role\":\"") + role + "\",\"content\":" + http::json_string(content) + "}";
}

}  // namespace

Result<std::string> generate_body(const GenerateOptions& options, const Prompt& prompt, bool chat) {
  if (!is_valid_utf8(prompt.text)) return invalid_argument("prompt: it is not valid UTF-8");
  std::vector<http::BodyField> fields;
  if (!chat) {
    fields.push_back({"prompt", prompt.prompt_json.empty() ? http::json_string(prompt.text)
                                                           : prompt.prompt_json});
  } else if (!prompt.messages.empty()) {
    fields.push_back({"messages", prompt.messages});
  } else {
    std::string messages = "[";
    if (!options.system.empty()) messages += message("system", options.system) + ",";
    fields.push_back({"messages", messages + message("user", prompt.text) + "]"});
  }
  add_sampling(options, chat, &fields);
  Result<std::string> body = http::set_fields("{}", fields);
  if (!body.ok()) return body;
  if (!prompt.overrides.empty()) {
    body = http::merge_bodies(*body, prompt.overrides);
    if (!body.ok()) return body;
  }
  std::vector<http::BodyField> form = {{"stream", options.stream ? "true" : "false"}};
  if (options.stream) form.push_back({"stream_options", "{\"include_usage\":true}"});
  return http::set_fields(*body, form);
}

GenerateJob::GenerateJob(std::uint64_t index, std::string id, bool stream, const Clock* clock,
                         std::function<void(bool)> changed)
    : index_(index),
      id_(std::move(id)),
      stream_(stream),
      clock_(clock),
      changed_(std::move(changed)),
      started_(clock->now()) {}

void GenerateJob::head(int status) {
  const std::lock_guard lock(mutex_);
  http_status_ = status;
}

Status GenerateJob::absorb(const http::Answer& answer) {
  if (answer.error) return *answer.error;
  for (const http::AnswerChoice& each : answer.choices) {
    if (each.index >= http::kMaxChoices)
      return {StatusCode::kFailed, "the answer has too many choices"};
    ChoiceState& choice = choices_[each.index];
    choice.text += each.text;
    if (!each.finish_reason.empty()) choice.finish_reason = each.finish_reason;
    if (each.text.empty()) continue;
    if (first_text_ms_ < 0) first_text_ms_ = to_ms(clock_->now() - started_);
    if (each.index == 0 && stream_) fresh_ += each.text;
  }
  if (answer.usage) {
    usage_ = *answer.usage;
    usage_known_ = true;
  }
  if (!answer.kvd.empty()) kvd_ = answer.kvd;
  return {};
}

Status GenerateJob::absorb_stream(std::string_view data) {
  const Result<std::vector<std::string>> events = events_.feed(data);
  if (!events.ok()) return events.status();
  for (const std::string& event : *events) {
    if (event == "[DONE]") {
      done_seen_ = true;
      continue;
    }
    const Result<http::Answer> answer = http::parse_answer(event);
    if (!answer.ok()) return answer.status();
    KVD_RETURN_IF_ERROR(absorb(*answer));
  }
  return {};
}

void GenerateJob::bytes(std::string_view data) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_ || !broken_.ok()) return;
    received_ += data.size();
    if (received_ > kMaxBytes) {
      broken_ = Status(StatusCode::kFailed, "the answer is too long");
    } else if (stream_ && http_status_ == 200) {
      broken_ = absorb_stream(data);
    } else {
      body_.append(data);
    }
    if (fresh_.empty()) return;
  }
  changed_(false);
}

// What the end of the connection makes of the answer.
Status GenerateJob::outcome(const Status& end) {
  if (!broken_.ok()) return broken_;
  if (!end.ok()) return end;
  if (stream_ && http_status_ == 200) {
    if (done_seen_) return {};
    return {StatusCode::kFailed, "the stream ended without [DONE]"};
  }
  const Result<http::Answer> answer = http::parse_answer(body_);
  if (http_status_ != 200) {
    std::string text = answer.ok() && answer->error
                           ? answer->error->message()
                           : "the server answered " + std::to_string(http_status_);
    const bool precise =
        answer.ok() && answer->error && answer->error->code() != StatusCode::kFailed;
    return precise ? *answer->error : status_of_http(http_status_, std::move(text));
  }
  if (!answer.ok()) return {StatusCode::kFailed, answer.status().message()};
  KVD_RETURN_IF_ERROR(absorb(*answer));
  if (choices_.empty()) return {StatusCode::kFailed, "the answer has no choices"};
  return {};
}

void GenerateJob::end(const Status& status) {
  std::function<void()> dropped;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    status_ = outcome(status);
    total_ms_ = to_ms(clock_->now() - started_);
    ended_ = true;
    body_.clear();
    dropped.swap(cancel_);  // it may hold what holds us
  }
  changed_(true);
}

void GenerateJob::on_cancel(std::function<void()> cancel) {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) {
      cancel_ = std::move(cancel);
      return;
    }
    if (status_.code() != StatusCode::kCancelled) return;
  }
  cancel();
}

void GenerateJob::cancel() {
  std::function<void()> stop;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    status_ = Status(StatusCode::kCancelled, "interrupted");
    total_ms_ = to_ms(clock_->now() - started_);
    ended_ = true;
    stop.swap(cancel_);
  }
  if (stop) stop();
  changed_(true);
}

bool GenerateJob::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

bool GenerateJob::take(std::string* text) {
  const std::lock_guard lock(mutex_);
  text->append(fresh_);
  fresh_.clear();
  return ended_;
}

GenerateResult GenerateJob::result() const {
  const std::lock_guard lock(mutex_);
  GenerateResult out;
  out.index = index_;
  out.id = id_;
  out.status = status_;
  if (const auto first = choices_.find(0); first != choices_.end()) {
    out.text = first->second.text;
    out.finish_reason = first->second.finish_reason;
  }
  out.ttft_ms = stream_ ? first_text_ms_ : -1;
  out.total_ms = total_ms_;
  for (const http::KvdInfo& info : kvd_) {
    if (out.provider.empty()) out.provider = info.provider;
    out.kv_bytes += info.kv_bytes;
  }
  if (!kvd_.empty() && kvd_.front().stages.ttft >= 0) out.ttft_ms = kvd_.front().stages.ttft;
  out.json = json(out);
  return out;
}

std::string GenerateJob::json(const GenerateResult& result) const {
  const auto ids = [&](std::size_t choice) {
    std::string list = "[";
    if (choice < kvd_.size()) {
      for (const TokenId id : kvd_[choice].token_ids) {
        list += (list.size() == 1 ? "" : ",") + std::to_string(id);
      }
    }
    return list + "]";
  };
  const auto reason = [](const std::string& text) {
    return text.empty() ? std::string("null") : http::json_string(text);
  };
  std::string out =
      "{\"id\":" + http::json_string(id_) + ",\"text\":" + http::json_string(result.text) +
      ",\"token_ids\":" + ids(0) + ",\"finish_reason\":" + reason(result.finish_reason) +
      ",\"prompt_tokens\":" + (usage_known_ ? std::to_string(usage_.prompt_tokens) : "null");
  std::uint64_t pages = 0;
  for (const http::KvdInfo& info : kvd_) pages += info.kv_pages;
  out += ",\"provider\":" + reason(result.provider) +
         ",\"kv_bytes\":" + std::to_string(result.kv_bytes) +
         ",\"kv_pages\":" + std::to_string(pages);
  const http::KvdInfo first = kvd_.empty() ? http::KvdInfo{} : kvd_.front();
  if (!kvd_.empty()) {
    out += ",\"room\":" + reason(first.room) + ",\"prefill\":" + reason(first.prefill);
  }
  out += ",\"stages_ms\":" + http::stages_json(first.stages);
  if (choices_.size() > 1) {
    out += ",\"choices\":[";
    bool begun = false;
    for (const auto& [index, choice] : choices_) {
      out += std::string(begun ? "," : "") + "{\"index\":" + std::to_string(index) +
             ",\"text\":" + http::json_string(choice.text) + ",\"token_ids\":" + ids(index) +
             ",\"finish_reason\":" + reason(choice.finish_reason) + "}";
      begun = true;
    }
    out += "]";
  }
  if (!status_.ok()) {
    out += ",\"error\":{\"code\":\"" + std::string(to_string(status_.code())) +
           "\",\"message\":" + http::json_string(status_.message()) + "}";
  }
  return out + "}";
}

JobResponder::~JobResponder() { job_->end(internal_error("the request was dropped")); }

void JobResponder::send(int status, const std::string&, std::string body,
                        const std::map<std::string, std::string>&) {
  job_->head(status);
  job_->bytes(body);
  job_->end({});
}

void JobResponder::begin(int status, const std::string&,
                         const std::map<std::string, std::string>&) {
  job_->head(status);
}

bool JobResponder::write(std::string chunk) {
  job_->bytes(chunk);
  return !job_->ended();
}

void JobResponder::finish() { job_->end({}); }

void JobResponder::abort() { job_->end(Status(StatusCode::kFailed, "the answer broke off")); }

}  // namespace kvd::node
