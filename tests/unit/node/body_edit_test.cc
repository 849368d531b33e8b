#include "http/body_edit.h"

#include <catch2/catch.hpp>

using namespace kvd;

TEST_CASE("body edit: set fields replace or add, all others keep their values") {
  const Result<std::string> out =
      http::set_fields(R"({"model":"m","prompt":["a","é"],"temperature":0.1,"kvd_prefill":"x",)"
                       R"("seed":18446744073709551615,"other":{"deep":[1,null,true]}})",
                       {{"kvd_prefill", "null"}, {"kvd_timeout_ms", "250"}});
  REQUIRE(out.ok());
  CHECK(*out ==
        R"({"kvd_prefill":null,"kvd_timeout_ms":250,"model":"m","other":{"deep":[1,null,true]},)"
        R"("prompt":["a","é"],"seed":18446744073709551615,"temperature":0.1})");
}

TEST_CASE("body edit: a body that is no object, or nests too deep, is an error") {
  CHECK(http::set_fields("[1]", {}).status().code() == StatusCode::kInvalidArgument);
  CHECK(http::set_fields("{\"a\":", {}).status().code() == StatusCode::kInvalidArgument);
  CHECK(http::set_fields("{}", {{"a", "nope"}}).status().message() ==
        "the value of 'a' is not JSON");
  const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  CHECK(http::set_fields(deep, {}).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("body edit: merged fields of the second body are stronger") {
  const Result<std::string> out = http::merge_bodies(R"({"a":1,"b":2})", R"({"b":3,"c":4})");
  REQUIRE(out.ok());
  CHECK(*out == R"({"a":1,"b":3,"c":4})");
  CHECK_FALSE(http::merge_bodies("{}", "[]").ok());
}

TEST_CASE("body edit: a JSON string escapes what JSON must") {
  CHECK(http::json_string("a\"\\\n\x01") == R"("a\"\\\n\u0001")");
  CHECK(http::json_string("\xff") == "\"\xEF\xBF\xBD\"");
}

TEST_CASE("answer: what the renderer writes is read back") {
  http::KvdInfo info;
  info.room = "00000000000000ab";
  info.prefill = "127.0.0.1:7100";
  info.provider = "tcp";
  info.kv_bytes = 1u << 20;
  info.kv_pages = 4;
  info.token_ids = {5, 6, 7};
  info.stages.ttft = 12.5;
  info.stages.commit = 0.25;
  info.stages.commit_is_estimate = true;
  const http::Renderer renderer(true, "chatcmpl-1", 1, "m");
  http::Choice choice;
  choice.text = "hello";
  choice.finish_reason = "stop";
  const Result<http::Answer> whole = http::parse_answer(renderer.whole({choice}, {3, 4}, {info}));
  REQUIRE(whole.ok());
  REQUIRE(whole->choices.size() == 1);
  CHECK(whole->choices[0].text == "hello");
  CHECK(whole->choices[0].finish_reason == "stop");
  REQUIRE(whole->usage);
  CHECK(whole->usage->prompt_tokens == 3);
  CHECK(whole->usage->completion_tokens == 4);
  REQUIRE(whole->kvd.size() == 1);
  CHECK(whole->kvd[0].provider == "tcp");
  CHECK(whole->kvd[0].kv_bytes == 1u << 20);
  CHECK(whole->kvd[0].token_ids == std::vector<TokenId>{5, 6, 7});
  CHECK(whole->kvd[0].stages.ttft == Approx(12.5));
  CHECK(whole->kvd[0].stages.commit_is_estimate);
  CHECK(whole->kvd[0].stages.decode < 0);
}

TEST_CASE("answer: an error object becomes the Status it was made of") {
  for (const StatusCode code : {StatusCode::kInvalidArgument, StatusCode::kUnavailable,
                                StatusCode::kDeadline, StatusCode::kCorrupted}) {
    const Result<http::Answer> answer = http::parse_answer(http::error_body(Status(code, "why")));
    REQUIRE(answer.ok());
    REQUIRE(answer->error);
    CHECK(answer->error->code() == code);
    CHECK(answer->error->message() == "why");
  }
}

TEST_CASE("events: a stream cut anywhere gives the same events") {
  const std::string bytes =
      "data: one\n\n: a comment\n\ndata: two\ndata: lines\r\n\r\ndata:three\n\n";
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    http::SseReader reader;
    std::vector<std::string> events;
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      const Result<std::vector<std::string>> some =
          reader.feed(std::string_view(bytes).substr(at, step));
      REQUIRE(some.ok());
      events.insert(events.end(), some->begin(), some->end());
    }
    REQUIRE(events == std::vector<std::string>{"one", "two\nlines", "three"});
  }
}

TEST_CASE("events: one without end is refused, not kept for ever") {
  http::SseReader reader;
  const std::string block(1u << 20, 'x');
  Status status;
  for (int i = 0; i < 32 && status.ok(); ++i) status = reader.feed(block).status();
  CHECK(status.code() == StatusCode::kInvalidArgument);
}
