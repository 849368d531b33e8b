// Statuses as OpenAI's error object.
#include "http/openai.h"

#include <algorithm>
#include <iterator>

#include "http/json_text.h"

namespace kvd::http {
namespace {

// The parameters a message may begin with ("temperature: must be ..."); anything else before a
// colon is part of the sentence.
constexpr std::string_view kParams[] = {
    "model",       "prompt",         "messages",       "max_tokens",     "max_completion_tokens",
    "temperature", "top_p",          "top_k",          "min_p",          "repetition_penalty",
    "seed",        "stop",           "stop_token_ids", "ignore_eos",     "n",
    "stream",      "stream_options", "logprobs",       "top_logprobs",   "echo",
    "kvd_prefill", "kvd_timeout_ms", "bootstrap_host", "bootstrap_port", "bootstrap_room"};

// "messages[0].role: ..." -> "messages[0].role"; empty when the message names no parameter.
std::string_view param_of(std::string_view message) {
  const std::size_t colon = message.find(": ");
  if (colon == std::string_view::npos) return {};
  const std::string_view param = message.substr(0, colon);
  const std::string_view root = param.substr(0, param.find_first_of(".["));
  if (param.find(' ') != std::string_view::npos) return {};
  if (std::find(std::begin(kParams), std::end(kParams), root) == std::end(kParams)) return {};
  return param;
}

std::string_view type_of(StatusCode code) {
  const int status = http_status(code);
  if (status == 401) return "authentication_error";
  if (status == 404) return "not_found_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

}  // namespace

int http_status(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return 200;
    case StatusCode::kInvalidArgument:
      return 400;
    case StatusCode::kUnauthorized:
      return 401;
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kCancelled:
      return 499;  // nobody reads it; shows in logs, as nginx writes it
    case StatusCode::kInternal:
      return 500;
    case StatusCode::kIncompatible:
    case StatusCode::kCorrupted:
    case StatusCode::kFailed:
      return 502;
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
    case StatusCode::kNoProvider:
    case StatusCode::kAgain:
      return 503;
    case StatusCode::kDeadline:
      return 504;
  }
  return 500;
}

std::string error_body(const Status& status) {
  const std::string_view param =
      status.code() == StatusCode::kInvalidArgument ? param_of(status.message()) : "";
  std::string out = R"({"error":{"message":)";
  append_json_string(out, status.message());
  out += R"(,"type":")";
  out += type_of(status.code());
  out += R"(","param":)";
  if (param.empty()) {
    out += "null";
  } else {
    append_json_string(out, param);
  }
  out += R"(,"code":)";
  append_json_string(out, to_string(status.code()));
  out += "}}";
  return out;
}

std::string models_body(const std::string& model, std::int64_t created) {
  std::string out = R"({"object":"list","data":[{"id":)";
  append_json_string(out, model);
  out += R"(,"object":"model","created":)" + std::to_string(created) + R"(,"owned_by":"kvd"}]})";
  return out;
}

}  // namespace kvd::http
