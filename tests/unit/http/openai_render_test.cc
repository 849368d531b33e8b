// What is written by hand is read back by a JSON library.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "http/json_text.h"
#include "http/openai.h"

namespace kvd::http {
namespace {

using Json = nlohmann::json;

Json event(const std::string& text) {
  INFO(text);
  REQUIRE(text.starts_with("data: "));
  REQUIRE(text.ends_with("\n\n"));
  const std::string body = text.substr(6, text.size() - 8);
  REQUIRE(body.find('\n') == std::string::npos);  // one line, or SSE would split it
  return Json::parse(body);
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

KvdInfo some_info() {
  KvdInfo info;
  info.room = "00000000000000ff";
  info.prefill = "127.0.0.1:7100";
  info.provider = "tcp";
  info.kv_bytes = 1ULL << 40U;
  info.kv_pages = 7;
  info.token_ids = {1, 2, 3};
  info.stages.queue = 0;
  info.stages.ttft = 12.3456;
  info.stages.total = std::nan("");
  return info;
}

Choice with_logprobs() {
  Choice choice;
  choice.text = "h\xC3\xA9llo";
  choice.logprobs = true;
  choice.text_offset = 10;
  choice.entries = {{"h", -0.5F, {{"h", -0.5F}, {"\xff", -1.0F}, {"\xfe", -2.0F}}},
                    {"\xC3", -std::numeric_limits<float>::infinity(), {}},
                    {"\xA9llo", std::nanf(""), {{"x", -3.25F}}}};
  return choice;
}

TEST_CASE("render: a whole completion") {
  const Renderer renderer(false, "cmpl-1", 1700000000, "m \"x\"");
  Choice a;
  a.text = "line\n\"quoted\" \\ \x01 \xF0\x9F\x98\x80";
  a.finish_reason = "stop";
  Choice b;
  b.index = 1;
  const Json json = Json::parse(renderer.whole({a, b}, {5, 7}, {some_info()}));
  CHECK(json["id"] == "cmpl-1");
  CHECK(json["object"] == "text_completion");
  CHECK(json["created"] == 1700000000);
  CHECK(json["model"] == "m \"x\"");
  REQUIRE(json["choices"].size() == 2);
  CHECK(json["choices"][0]["text"] == a.text);
  CHECK(json["choices"][0]["finish_reason"] == "stop");
  CHECK(json["choices"][0]["logprobs"].is_null());
  CHECK(json["choices"][1]["index"] == 1);
  CHECK(json["choices"][1]["finish_reason"].is_null());
  CHECK(json["usage"] ==
        Json({{"prompt_tokens", 5}, {"completion_tokens", 7}, {"total_tokens", 12}}));
  REQUIRE(json["kvd"].size() == 1);
  const Json& kvd = json["kvd"][0];
  CHECK(kvd["room"] == "00000000000000ff");
  CHECK(kvd["prefill"] == "127.0.0.1:7100");
  CHECK(kvd["provider"] == "tcp");
  CHECK(kvd["kv_bytes"] == 1ULL << 40U);
  CHECK(kvd["kv_pages"] == 7);
  CHECK(kvd["token_ids"] == Json({1, 2, 3}));
  CHECK(kvd["stages_ms"] == Json({{"queue", 0.0}, {"ttft", 12.346}}));
}

TEST_CASE("render: a whole chat") {
  const Renderer renderer(true, "chatcmpl-1", 1, "m");
  Choice choice;
  choice.text = "hi";
  choice.finish_reason = "length";
  const Json json = Json::parse(renderer.whole({choice}, {1, 2}, {}));
  CHECK(json["object"] == "chat.completion");
  CHECK(json["choices"][0]["message"]["role"] == "assistant");
  CHECK(json["choices"][0]["message"]["content"] == "hi");
  CHECK_FALSE(json.contains("kvd"));
}

TEST_CASE("render: every stage that is known, and the estimate's mark") {
  KvdInfo info;
  info.stages = {1, 2, 3, 4, 5, 6, 7, 8, 9, true};
  const Json json = Json::parse(Renderer(false, "i", 1, "m").whole({}, {}, {info, KvdInfo{}}));
  const Json& stages = json["kvd"][0]["stages_ms"];
  CHECK(stages["queue"] == 1.0);
  CHECK(stages["bootstrap"] == 2.0);
  CHECK(stages["prefill_compute"] == 3.0);
  CHECK(stages["transfer_total"] == 4.0);
  CHECK(stages["transfer_exposed"] == 5.0);
  CHECK(stages["commit"] == 6.0);
  CHECK(stages["ttft"] == 7.0);
  CHECK(stages["decode"] == 8.0);
  CHECK(stages["total"] == 9.0);
  CHECK(stages["commit_is_estimate"] == true);
  CHECK(json["kvd"][1]["stages_ms"].empty());
}

TEST_CASE("render: a completion's logprobs") {
  const Json json = event(Renderer(false, "i", 1, "m").chunk(with_logprobs()));
  CHECK(json["object"] == "text_completion");
  const Json& logprobs = json["choices"][0]["logprobs"];
  CHECK(logprobs["tokens"] == Json({"h", "\xEF\xBF\xBD", "\xEF\xBF\xBDllo"}));
  CHECK(logprobs["token_logprobs"] == Json({-0.5, -9999.0, nullptr}));
  CHECK(logprobs["text_offset"] == Json({10, 11, 12}));
  // Two tokens that look alike share a key: the likelier keeps it.
  CHECK(logprobs["top_logprobs"] ==
        Json::array({Json({{"h", -0.5}, {"\xEF\xBF\xBD", -1.0}}), nullptr, Json({{"x", -3.25}})}));
  Choice bare = with_logprobs();
  for (LogprobEntry& entry : bare.entries) entry.top.clear();
  CHECK(event(Renderer(false, "i", 1, "m").chunk(bare))["choices"][0]["logprobs"]["top_logprobs"]
            .is_null());
}

TEST_CASE("render: a chat's logprobs carry the bytes") {
  const Json json = event(Renderer(true, "i", 1, "m").chunk(with_logprobs()));
  const Json& content = json["choices"][0]["logprobs"]["content"];
  REQUIRE(content.size() == 3);
  CHECK(content[0]["token"] == "h");
  CHECK(content[0]["bytes"] == Json({104}));
  CHECK(content[0]["logprob"] == -0.5);
  REQUIRE(content[0]["top_logprobs"].size() == 3);
  CHECK(content[0]["top_logprobs"][2] ==
        Json({{"token", "\xEF\xBF\xBD"}, {"logprob", -2.0}, {"bytes", {0xFE}}}));
  CHECK(content[1]["bytes"] == Json({0xC3}));
  CHECK(content[1]["logprob"] == -9999.0);
  CHECK(content[2]["logprob"].is_null());
}

TEST_CASE("render: the chunks of a stream") {
  const Renderer chat(true, "c", 1, "m");
  const Json role = event(chat.role_chunk(2));
  CHECK(role["object"] == "chat.completion.chunk");
  CHECK(role["choices"][0]["index"] == 2);
  CHECK(role["choices"][0]["delta"] == Json({{"role", "assistant"}, {"content", ""}}));
  CHECK(role["choices"][0]["finish_reason"].is_null());
  Choice choice;
  choice.text = "tok";
  CHECK(event(chat.chunk(choice))["choices"][0]["delta"] == Json({{"content", "tok"}}));
  choice.text.clear();
  choice.finish_reason = "stop";
  const Json last = event(chat.chunk(choice));
  CHECK(last["choices"][0]["delta"] == Json::object());
  CHECK(last["choices"][0]["finish_reason"] == "stop");
  const Renderer plain(false, "c", 1, "m");
  CHECK(plain.role_chunk(0).empty());
  choice.text = "tok";
  CHECK(event(plain.chunk(choice))["choices"][0]["text"] == "tok");
  const Json usage = event(plain.usage_chunk({1, 2}, {some_info()}));
  CHECK(usage["choices"] == Json::array());
  CHECK(usage["usage"]["total_tokens"] == 3);
  CHECK(usage["kvd"][0]["provider"] == "tcp");
  CHECK(event(plain.error_chunk(unavailable("gone")))["error"]["message"] == "gone");
  CHECK(Renderer::done() == "data: [DONE]\n\n");
}

TEST_CASE("render: the list of models") {
  const Json json = Json::parse(models_body("m", 5));
  CHECK(json["object"] == "list");
  REQUIRE(json["data"].size() == 1);
  CHECK(json["data"][0] ==
        Json({{"id", "m"}, {"object", "model"}, {"created", 5}, {"owned_by", "kvd"}}));
}

TEST_CASE("json text: bytes of every kind come out as valid JSON") {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const char bytes[] = {static_cast<char>(first), static_cast<char>(second), '\x80', 'z'};
      const std::string out = json_string({bytes, 4});
      REQUIRE(is_valid_utf8(out));
      const Json back = Json::parse(out);
      const std::string text = back.get<std::string>();
      REQUIRE(text.ends_with("z"));
      if (is_valid_utf8({bytes, 4})) REQUIRE((text == std::string(bytes, 4)));
    }
  }
}

TEST_CASE("json text: ill-formed UTF-8 is replaced part by part") {
  const std::string r = "\xEF\xBF\xBD";
  const std::pair<const char*, std::string> cases[] = {
      {"\xC3", r},                          // cut off
      {"\xE2\x82", r},                      // cut off: one part
      {"\xF0\x9F\x98", r},                  // cut off: one part
      {"\xE2\x82z", r + "z"},               // broken off
      {"\xC0\x80", r + r},                  // overlong
      {"\xED\xA0\x80", r + r + r},          // a surrogate
      {"\xF4\x90\x80\x80", r + r + r + r},  // above U+10FFFF
      {"\x80\xFF", r + r},
      {"\xE2\x82\xAC\xE2", "\xE2\x82\xAC" + r},
      {"\x7F", "\x7F"},
  };
  for (const auto& [text, expected] : cases) CHECK(Json::parse(json_string(text)) == expected);
}

TEST_CASE("json text: floats read back as they were") {
  for (const float value : {0.0F, -0.1F, 1e-30F, 3.4e38F, -12.345678F, 1.0F}) {
    std::string out;
    append_json_float(out, value);
    CHECK(Json::parse(out).get<float>() == value);
  }
}

}  // namespace
}  // namespace kvd::http
