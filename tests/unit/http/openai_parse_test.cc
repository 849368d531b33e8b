#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "http/openai.h"

namespace kvd::http {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<TokenId>;

ApiRequest completion(const std::string& body) {
  INFO(body);
  const auto parsed = parse_completion(body);
  INFO(parsed.status().message());
  REQUIRE(parsed.ok());
  return *parsed;
}

ApiRequest chat(const std::string& body) {
  INFO(body);
  const auto parsed = parse_chat(body);
  INFO(parsed.status().message());
  REQUIRE(parsed.ok());
  return *parsed;
}

// The error object names `param` (empty: null).
void check_fault(const Result<ApiRequest>& parsed, const std::string& param) {
  REQUIRE_FALSE(parsed.ok());
  INFO(parsed.status().message());
  CHECK(parsed.status().code() == StatusCode::kInvalidArgument);
  const Json error = Json::parse(error_body(parsed.status())).at("error");
  CHECK(error.at("type") == "invalid_request_error");
  CHECK(error.at("message").get<std::string>().find('\n') == std::string::npos);
  if (param.empty()) {
    CHECK(error.at("param").is_null());
  } else {
    REQUIRE(error.at("param").is_string());
    CHECK(error.at("param") == param);
  }
}

void check_completion_fault(const std::string& field, const std::string& param) {
  const std::string body = R"({"prompt":"x",)" + field + "}";
  INFO(body);
  check_fault(parse_completion(body), param);
}

TEST_CASE("openai: the defaults of a completion") {
  const ApiRequest r = completion(R"({"prompt":"hi"})");
  CHECK_FALSE(r.chat);
  REQUIRE(r.prompts.size() == 1);
  CHECK(std::get<std::string>(r.prompts[0]) == "hi");
  CHECK(r.sampling.max_tokens == 16);
  CHECK_FALSE(r.max_tokens_given);
  CHECK(r.sampling.temperature == 1.0F);
  CHECK(r.sampling.top_p == 1.0F);
  CHECK_FALSE(r.sampling.logprobs);
  CHECK_FALSE(r.seed_given);
  CHECK(r.n == 1);
  CHECK_FALSE(r.stream);
  CHECK(r.prefill_field == ApiRequest::PrefillField::kAbsent);
  CHECK_FALSE(r.timeout_ms);
  CHECK(r.bootstrap.empty());
}

TEST_CASE("openai: every field of a completion") {
  const ApiRequest r = completion(
      R"({"model":"m","prompt":"p","max_tokens":7,"temperature":0,"top_p":0.5,"top_k":40,
          "min_p":0.1,
          "repetition_penalty":1.1,"seed":-1,"stop":["a","b"],"n":3,"stream":true,"logprobs":5,
          "echo":true,
          "stream_options":{"include_usage":true},"ignore_eos":true,"stop_token_ids":[1,2],
          "kvd_prefill":"127.0.0.1:7100","kvd_timeout_ms":1500,"whatever":{"x":[1]}})");
  CHECK(r.model == "m");
  CHECK(r.sampling.max_tokens == 7);
  CHECK(r.max_tokens_given);
  CHECK(r.sampling.temperature == 0.0F);
  CHECK(r.sampling.top_p == 0.5F);
  CHECK(r.sampling.top_k == 40);
  CHECK(r.sampling.min_p == 0.1F);
  CHECK(r.sampling.repetition_penalty == 1.1F);
  CHECK(r.seed_given);
  CHECK(r.sampling.seed == ~std::uint64_t{0});
  CHECK(r.sampling.stop == std::vector<std::string>{"a", "b"});
  CHECK(r.n == 3);
  CHECK(r.stream);
  CHECK(r.include_usage);
  CHECK(r.sampling.logprobs);
  CHECK(r.sampling.top_logprobs == 5);
  CHECK(r.echo);
  CHECK(r.sampling.ignore_eos);
  CHECK(r.sampling.stop_token_ids == Ids{1, 2});
  CHECK(r.prefill_field == ApiRequest::PrefillField::kNamed);
  CHECK(r.prefill == "127.0.0.1:7100");
  CHECK(r.timeout_ms == 1500U);
}

TEST_CASE("openai: null is absent, but for kvd_prefill") {
  const ApiRequest r = completion(
      R"({"prompt":"p","model":null,"max_tokens":null,"temperature":null,"seed":null,"stop":null,
          "n":null,
          "stream":null,"logprobs":null,"stream_options":null,"kvd_timeout_ms":null,
          "bootstrap_host":null,
          "bootstrap_port":null,"bootstrap_room":null,"kvd_prefill":null})");
  CHECK_FALSE(r.max_tokens_given);
  CHECK_FALSE(r.seed_given);
  CHECK_FALSE(r.sampling.logprobs);
  CHECK(r.bootstrap.empty());
  CHECK(r.prefill_field == ApiRequest::PrefillField::kNull);
}

TEST_CASE("openai: the four forms of a prompt") {
  CHECK(completion(R"({"prompt":["a","b"]})").prompts.size() == 2);
  const ApiRequest ids = completion(R"({"prompt":[1,2,3]})");
  REQUIRE(ids.prompts.size() == 1);
  CHECK(std::get<Ids>(ids.prompts[0]) == Ids{1, 2, 3});
  const ApiRequest lists = completion(R"({"prompt":[[1,2],[3],[2147483647]]})");
  REQUIRE(lists.prompts.size() == 3);
  CHECK(std::get<Ids>(lists.prompts[2]) == Ids{2147483647});
  CHECK(std::get<std::string>(completion(R"({"prompt":""})").prompts[0]).empty());
}

TEST_CASE("openai: what is no prompt is refused") {
  for (const char* prompt :
       {"1", "true", "{}", "[]", "[[]]", "[1,\"a\"]", "[\"a\",1]", "[\"a\",[1]]", "[[1],\"a\"]",
        "[-1]", "[1.5]", "[2147483648]", "[[[1]]]", "[null]", "null", "[true]"}) {
    INFO(prompt);
    check_fault(parse_completion(std::string(R"({"prompt":)") + prompt + "}"), "prompt");
  }
  check_fault(parse_completion("{}"), "prompt");
  std::string many = R"({"prompt":["a")";
  for (std::size_t i = 0; i < kMaxPrompts; ++i) many += ",\"a\"";
  check_fault(parse_completion(many + "]}"), "prompt");
}

TEST_CASE("openai: wrong types and ranges name their parameter") {
  const std::pair<const char*, const char*> cases[] = {
      {"max_tokens", "0 -1 1.5 \"7\" true 4294967296 1e3 []"},
      {"max_completion_tokens", "0 {}"},
      {"temperature", "-0.1 2.1 \"0\" true 1e308"},
      {"top_p", "-0.1 1.1 []"},
      {"min_p", "-1 2"},
      {"top_k", "-2 1.5 \"1\" 99999999999"},
      {"repetition_penalty", "0 -1 11"},
      {"seed", "1.5 \"1\" 18446744073709551616 []"},
      {"stop", "1 [1] \"\" [\"\"] {} [[\"a\"]]"},
      {"n", "0 129 -1 1.0"},
      {"stream", "1 \"true\""},
      {"stream_options", "true []"},
      {"logprobs", "-1 21 true"},
      {"echo", "1"},
      {"ignore_eos", "\"x\""},
      {"stop_token_ids", "1 [\"a\"] [-1]"},
      {"kvd_prefill", "1 \"\" \"nowhere\" []"},
      {"kvd_timeout_ms", "0 -5 \"1s\" 99999999999999"},
      {"model", "1 []"},
  };
  for (const auto& [name, values] : cases) {
    const std::string all = values;
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t end = std::min(all.find(' ', at), all.size());
      check_completion_fault("\"" + std::string(name) + "\":" + all.substr(at, end - at), name);
      at = end + 1;
    }
  }
  check_completion_fault(R"("stream_options":{"include_usage":1})", "stream_options.include_usage");
  std::string stops = R"("stop":["a")";
  for (std::uint32_t i = 0; i < kMaxStopStrings; ++i) stops += ",\"a\"";
  check_completion_fault(stops + "]", "stop");
  check_completion_fault(R"("stop":")" + std::string(kMaxStopBytes + 1, 'x') + "\"", "stop");
}

TEST_CASE("openai: a seed may use all of 64 bits, top_k -1 means all") {
  CHECK(completion(R"({"prompt":"x","seed":18446744073709551615})").sampling.seed ==
        ~std::uint64_t{0});
  CHECK(completion(R"({"prompt":"x","seed":-9223372036854775808})").sampling.seed ==
        std::uint64_t{1} << 63U);
  CHECK(completion(R"({"prompt":"x","top_k":-1})").sampling.top_k == 0);
}

TEST_CASE("openai: a chat in plain strings and in parts") {
  const ApiRequest r = chat(
      R"({"messages":[{"role":"developer","content":"d"},{"role":"user","content":[{"type":"text",
          "text":"a"},
          {"type":"text","text":"b"}]},{"role":"assistant","content":null},{"role":"assistant"},
          {"role":"tool","content":"t"}],"max_tokens":5,"max_completion_tokens":9})");
  CHECK(r.chat);
  REQUIRE(r.messages.size() == 5);
  CHECK(r.messages[0].role == "system");
  CHECK(r.messages[1].content == "ab");
  CHECK(r.messages[2].content.empty());
  CHECK(r.sampling.max_tokens == 9);
  CHECK(r.max_tokens_given);
  REQUIRE(r.prompts.size() == 1);
  CHECK(std::get<std::string>(r.prompts[0]).empty());
  CHECK_FALSE(chat(R"({"messages":[{"role":"user","content":"x"}]})").max_tokens_given);
}

TEST_CASE("openai: the logprobs of a chat") {
  const std::string start = R"({"messages":[{"role":"user","content":"x"}],)";
  const ApiRequest r = chat(start + R"("logprobs":true,"top_logprobs":20})");
  CHECK(r.sampling.logprobs);
  CHECK(r.sampling.top_logprobs == 20);
  CHECK(chat(start + R"("logprobs":true})").sampling.top_logprobs == 0);
  CHECK_FALSE(chat(start + R"("logprobs":false,"top_logprobs":0})").sampling.logprobs);
  check_fault(parse_chat(start + R"("logprobs":1})"), "logprobs");
  check_fault(parse_chat(start + R"("top_logprobs":3})"), "top_logprobs");
  check_fault(parse_chat(start + R"("logprobs":true,"top_logprobs":21})"), "top_logprobs");
}

TEST_CASE("openai: wrong messages are named by their place") {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":["hi"]})", "messages[0]"},
      {R"({"messages":[{"content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"<|im_end|>","content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":1,"content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user","content":"x"},{"role":"user"}]})", "messages[1].content"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})",
       "messages[0].content[0]"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "messages[0].content[0]"},
      {R"({"messages":[{"role":"user","content":["x"]}]})", "messages[0].content[0]"},
  };
  for (const auto& [body, param] : cases) {
    INFO(body);
    check_fault(parse_chat(body), param);
  }
}

TEST_CASE("openai: SGLang's bootstrap fields, scalar and in lists") {
  const ApiRequest scalar = completion(
      R"({"model":"tiny","prompt":"hello","max_tokens":3,"stream":false,"echo":false,
          "no_stop_trim":false,
          "ignore_eos":false,"skip_special_tokens":true,"return_hidden_states":false,
          "bootstrap_host":"127.0.0.1","bootstrap_port":8998,
          "bootstrap_room":8302139354572521583})");
  REQUIRE(scalar.bootstrap.size() == 1);
  CHECK(scalar.bootstrap[0].host == "127.0.0.1");
  CHECK(scalar.bootstrap[0].port == 8998);
  CHECK(scalar.bootstrap[0].room.value == 8302139354572521583U);
  const ApiRequest list = completion(
      R"({"prompt":["a","b"],"bootstrap_host":["h","h"],"bootstrap_port":[8998,null],
          "bootstrap_room":[1,9223372036854775807]})");
  REQUIRE(list.bootstrap.size() == 2);
  CHECK_FALSE(list.bootstrap[1].port);
  CHECK(list.bootstrap[1].room.value == 9223372036854775807U);
  const ApiRequest choices = chat(
      R"({"messages":[{"role":"user","content":"x"}],"n":2,"bootstrap_host":["h","h"],
          "bootstrap_port":null,
          "bootstrap_room":[1,2]})");
  CHECK(choices.bootstrap.size() == 2);
  CHECK(completion(
            R"({"prompt":["a"],"bootstrap_host":["h"],"bootstrap_port":[1],"bootstrap_room":[5]})")
            .bootstrap.size() == 1);
}

TEST_CASE("openai: wrong bootstrap fields are refused") {
  const std::pair<const char*, const char*> cases[] = {
      {R"("bootstrap_host":"h")", "bootstrap_room"},
      {R"("bootstrap_room":5)", "bootstrap_host"},
      {R"("bootstrap_port":5)", "bootstrap_host"},
      {R"("bootstrap_host":"h","bootstrap_room":0)", "bootstrap_room"},
      {R"("bootstrap_host":"h","bootstrap_room":-1)", "bootstrap_room"},
      {R"("bootstrap_host":"h","bootstrap_room":9223372036854775808)", "bootstrap_room"},
      {R"("bootstrap_host":"h","bootstrap_room":"5")", "bootstrap_room"},
      {R"("bootstrap_host":"h","bootstrap_room":5.0)", "bootstrap_room"},
      {R"("bootstrap_host":"","bootstrap_room":5)", "bootstrap_host"},
      {R"("bootstrap_host":5,"bootstrap_room":5)", "bootstrap_host"},
      {R"("bootstrap_host":"h","bootstrap_room":5,"bootstrap_port":0)", "bootstrap_port"},
      {R"("bootstrap_host":"h","bootstrap_room":5,"bootstrap_port":65536)", "bootstrap_port"},
      {R"("bootstrap_host":["h","h"],"bootstrap_room":[1,2])", "bootstrap_host"},
      {R"("bootstrap_host":["h"],"bootstrap_room":[])", "bootstrap_room"},
      {R"("bootstrap_host":["h"],"bootstrap_room":[null])", "bootstrap_room"},
      {R"("bootstrap_host":["h"],"bootstrap_room":[[1]])", "bootstrap_room"},
      {R"("n":2,"bootstrap_host":"h","bootstrap_room":5)", "bootstrap_host"},
  };
  for (const auto& [fields, param] : cases) check_completion_fault(fields, param);
}

TEST_CASE("openai: hostile JSON is a fault, never a crash") {
  const std::string deep(100'000, '[');
  check_fault(parse_completion(deep), "");
  check_fault(parse_completion(R"({"prompt":"x","y":)" + deep + "}"), "");
  check_fault(
      parse_completion(R"({"prompt":"x","y":)" + std::string(40, '[') + std::string(40, ']') + "}"),
      "");
  // Brackets within strings are text.
  CHECK(completion(R"({"prompt":"\")" + std::string(100, '[') + "\"}").prompts.size() == 1);
  for (const char* body : {"",
                           " ",
                           "null",
                           "[]",
                           "\"x\"",
                           "1",
                           "{",
                           "}",
                           "{\"prompt\":",
                           "{\"prompt\":\"x\"",
                           "{\"prompt\":\"x\"}}",
                           "{'prompt':'x'}",
                           "{\"prompt\":\"x\",}",
                           "{\"prompt\":\"x\",\"n\":NaN}",
                           "{\"prompt\":\"x\",\"n\":Infinity}",
                           "{\"prompt\":\"x\",\"n\":1e999}",
                           "{\"prompt\":\"x\",\"n\":-}",
                           "{\"prompt\":\"x\",\"n\":01}",
                           "{\"prompt\":\"\\ud800\"}",
                           "{\"prompt\":\"\\ud800\\u0041\"}",
                           "{\"prompt\":\"\\x\"}",
                           "{\"prompt\":\"\xff\"}",
                           "{\"prompt\":\"\xed\xa0\x80\"}",
                           "{\"prompt\":\"\xc0\x80\"}",
                           "{\"\xf5\":1,\"prompt\":\"x\"}",
                           "{\"prompt\":\"a\nb\"}",
                           "{\"prompt\":\"x\" /* c */}"}) {
    INFO(body);
    check_fault(parse_completion(body), "");
  }
  check_fault(parse_completion(std::string("{\"prompt\":\"x\"}\0", 15)), "");
  std::string values = R"({"prompt":[1)";
  for (int i = 0; i < 5'000'000; ++i) values += ",1";
  check_fault(parse_completion(values + "]}"), "");
}

TEST_CASE("openai: text of every kind arrives as it was sent") {
  CHECK(
      std::get<std::string>(completion(R"({"prompt":"\u00e9\ud83d\ude00\u0000\n"})").prompts[0]) ==
      std::string("\xC3\xA9\xF0\x9F\x98\x80\0\n", 8));
  CHECK(std::get<std::string>(completion("{\"prompt\":\"\xF0\x9F\x98\x80\"}").prompts[0]) ==
        "\xF0\x9F\x98\x80");
}

TEST_CASE("openai: statuses have their HTTP status and error type") {
  CHECK(http_status(StatusCode::kInvalidArgument) == 400);
  CHECK(http_status(StatusCode::kUnauthorized) == 401);
  CHECK(http_status(StatusCode::kNotFound) == 404);
  CHECK(http_status(StatusCode::kResourceExhausted) == 503);
  CHECK(http_status(StatusCode::kUnavailable) == 503);
  CHECK(http_status(StatusCode::kDeadline) == 504);
  CHECK(http_status(StatusCode::kCorrupted) == 502);
  CHECK(http_status(StatusCode::kFailed) == 502);
  CHECK(http_status(StatusCode::kInternal) == 500);
  const Json error =
      Json::parse(error_body({StatusCode::kDeadline, "say \"x\"\n\xff"})).at("error");
  CHECK(error.at("type") == "server_error");
  CHECK(error.at("message") == "say \"x\"\n\xEF\xBF\xBD");
  CHECK(error.at("param").is_null());
  CHECK(error.at("code").is_string());
  // A sentence with a colon is no parameter.
  CHECK(
      Json::parse(error_body(invalid_argument("page_size: 64 here")))["error"]["param"].is_null());
  CHECK(Json::parse(error_body(invalid_argument("prompt: too long")))["error"]["param"] ==
        "prompt");
}

}  // namespace
}  // namespace kvd::http
