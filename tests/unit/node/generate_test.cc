#include "node/generate.h"

#include <catch2/catch.hpp>
#include <map>

#include "http/body_edit.h"
#include "node/admin.h"
#include "unit/node/fake_worker.h"

using namespace kvd;
using namespace kvd::node;
using namespace kvd::node::testing;

namespace {

// Echoes the prompt's place in the request as an answer of one choice.
void echo(const http::Request& request, const std::shared_ptr<http::Responder>& to) {
  const bool chat = request.target == "/v1/chat/completions";
  const auto parsed = chat ? http::parse_chat(request.body) : http::parse_completion(request.body);
  if (!parsed.ok()) {
    answer_json(to, 400, http::error_body(parsed.status()));
    return;
  }
  std::string said = "ids";
  if (chat) {
    said = parsed->messages.back().content;
  } else if (const auto* text = std::get_if<std::string>(&parsed->prompts[0])) {
    said = *text;
  }
  if (said == "bad") {
    answer_json(to, 400, http::error_body(invalid_argument("prompt: it is bad")));
    return;
  }
  http::KvdInfo info;
  info.provider = "tcp";
  info.kv_bytes = 4096;
  info.kv_pages = 2;
  info.token_ids = {1, 2};
  info.stages.ttft = 1.5;
  const http::Renderer renderer(chat, "x", 1, "m");
  http::Choice choice;
  choice.text = "<" + said + ">";
  choice.finish_reason = "length";
  if (!parsed->stream) {
    answer_json(to, 200, renderer.whole({choice}, {7, 2}, {info}));
    return;
  }
  to->begin(200, "text/event-stream");
  if (said == "endless") {
    to->write(renderer.chunk(choice));
    return;
  }
  http::Choice part;
  for (const char c : choice.text) {
    part.text = std::string(1, c);
    to->write(renderer.chunk(part));
  }
  part.text.clear();
  part.finish_reason = "stop";
  to->write(renderer.chunk(part));
  to->write(renderer.usage_chunk({7, 2}, {info}));
  to->write(http::Renderer::done());
  to->finish();
}

struct Outcome {
  Status status;
  std::vector<GenerateResult> results;
  std::map<std::uint64_t, std::string> streamed;
};

Outcome ask(const GenerateOptions& options, const std::vector<Prompt>& prompts) {
  Outcome out;
  std::size_t next = 0;
  GenerateSink sink;
  sink.on_text = [&](std::uint64_t index, std::string_view text) { out.streamed[index] += text; };
  sink.on_result = [&](const GenerateResult& result) { out.results.push_back(result); };
  out.status = generate(
      options,
      [&](Prompt* prompt) {
        if (next == prompts.size()) return false;
        *prompt = prompts[next++];
        return true;
      },
      sink);
  return out;
}

Prompt text(const std::string& words) {
  Prompt out;
  out.text = words;
  return out;
}

}  // namespace

TEST_CASE("generate: router and client in one process, a result for each prompt") {
  FakeWorker prefill("prefill", echo);
  FakeWorker decode("decode", echo);
  GenerateOptions options;
  options.prefills = {prefill.address()};
  options.decodes = {decode.address()};
  options.concurrency = 4;
  options.ordered = true;
  std::vector<Prompt> prompts;
  for (int i = 0; i < 20; ++i) prompts.push_back(text("p" + std::to_string(i)));
  const Outcome out = ask(options, prompts);
  REQUIRE(out.status.ok());
  REQUIRE(out.results.size() == 20);
  for (std::size_t i = 0; i < 20; ++i) {
    CHECK(out.results[i].index == i);
    CHECK(out.results[i].text == "<p" + std::to_string(i) + ">");
  }
  CHECK(out.results[0].json ==
        R"({"id":"0","text":"<p0>","token_ids":[1,2],"finish_reason":"length","prompt_tokens":7,)"
        R"("provider":"tcp","kv_bytes":4096,"kv_pages":2,"room":null,"prefill":null,"stages_ms":)"
        R"({"bootstrap":null,"commit":null,"decode":null,"prefill_compute":null,"queue":null,)"
        R"("total":null,"transfer_exposed":null,"transfer_total":null,"ttft":1.5}})");
  CHECK(decode.seen.body(0).find("\"kvd_prefill\":\"" + prefill.address()) != std::string::npos);
}

TEST_CASE("generate: streamed text is the same as the result's, in both flows and over a URL") {
  FakeWorker prefill("prefill", echo);
  FakeWorker decode("decode", echo);
  GenerateOptions options;
  options.prefills = {prefill.address()};
  options.decodes = {decode.address()};
  options.stream = true;
  options.concurrency = 2;
  SECTION("decode-first") {}
  SECTION("standalone") { options.flow = Flow::kStandalone; }
  SECTION("a URL") {
    const AdminOptions admin{"", {}, {decode.address()}, "", Duration(5'000'000'000), nullptr};
    const auto rows = list_workers(admin);
    REQUIRE(rows.ok());
    options.url = rows->at(0).http + "/";
  }
  const Outcome out = ask(options, {text("one"), text("two"), text("three")});
  REQUIRE(out.status.ok());
  REQUIRE(out.results.size() == 3);
  for (const GenerateResult& result : out.results) {
    CHECK(result.finish_reason == "stop");
    CHECK(result.provider == "tcp");
    CHECK(out.streamed.at(result.index) == result.text);
  }
}

TEST_CASE("generate: chat, token ids and overrides reach the request") {
  FakeWorker decode("decode", echo);
  GenerateOptions options;
  options.decodes = {decode.address()};
  options.max_tokens = 5;
  options.temperature = 0.25;
  options.stop = {"\n"};
  Prompt ids;
  ids.prompt_json = "[1,2,3]";
  ids.overrides = R"({"max_tokens":9,"seed":4})";
  Prompt chat;
  chat.id = "c";
  chat.messages = R"([{"role":"user","content":"hello"}])";
  const Outcome out = ask(options, {ids, chat});
  REQUIRE(out.status.ok());
  CHECK(out.results[0].text == "<ids>");
  CHECK(out.results[1].text == "<hello>");
  CHECK(out.results[1].id == "c");
  const std::string body = decode.seen.body(0);
  CHECK(body.find("\"max_tokens\":9") != std::string::npos);
  CHECK(body.find("\"seed\":4") != std::string::npos);
  CHECK(body.find("\"temperature\":0.25") != std::string::npos);
  CHECK(body.find(R"("stop":["\n"])") != std::string::npos);
}

TEST_CASE("generate: failures are results too, and the status says how many") {
  FakeWorker decode("decode", echo);
  GenerateOptions options;
  options.decodes = {decode.address()};
  Outcome out = ask(options, {text("good"), text("bad"), text("\xff")});
  CHECK(out.status.code() == StatusCode::kFailed);
  REQUIRE(out.results.size() == 3);
  CHECK(out.results[1].status.message() == "prompt: it is bad");
  CHECK(out.results[1].json.find(
            R"("error":{"code":"invalid_argument","message":"prompt: it is bad"})") !=
        std::string::npos);
  CHECK(out.results[2].status.code() == StatusCode::kInvalidArgument);
  out = ask(options, {text("bad")});
  CHECK(out.status.code() == StatusCode::kInvalidArgument);
}

TEST_CASE("generate: an interrupt ends with what there is") {
  FakeWorker decode("decode", echo);
  GenerateOptions options;
  options.decodes = {decode.address()};
  options.stream = true;
  std::atomic<int> interrupt{0};
  options.interrupt = &interrupt;
  GenerateSink sink;
  std::vector<GenerateResult> results;
  sink.on_text = [&](std::uint64_t, std::string_view) { interrupt = 1; };
  sink.on_result = [&](const GenerateResult& result) { results.push_back(result); };
  int asked = 0;
  const Status status = generate(
      options,
      [&](Prompt* prompt) {
        *prompt = text("endless");
        return asked++ == 0;
      },
      sink);
  CHECK(status.code() == StatusCode::kFailed);
  REQUIRE(results.size() == 1);
  CHECK(results[0].text == "<endless>");
  CHECK(results[0].json.find("\"message\":\"interrupted\"") != std::string::npos);
  CHECK(eventually([&] { return decode.seen.gone_count() == 1; }));
}

TEST_CASE("generate: workers that never come are named in the error") {
  GenerateOptions options;
  options.timeout = Duration(200'000'000);
  CHECK(ask(options, {text("x")}).status.code() == StatusCode::kInvalidArgument);
  options.decodes = {"127.0.0.1:1"};
  const Status status = ask(options, {text("x")}).status;
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK(status.message() == "after 200 ms: no usable decode worker: 127.0.0.1:1 is unknown");
}

TEST_CASE("admin: workers are listed with their state, absent ones too") {
  FakeWorker decode("decode", echo);
  AdminOptions options;
  options.decodes = {decode.address(), "127.0.0.1:1"};
  options.timeout = Duration(400'000'000);
  const auto rows = list_workers(options);
  REQUIRE(rows.ok());
  REQUIRE(rows->size() == 2);
  CHECK(rows->at(0).state == "unreachable");
  CHECK(rows->at(1).state == "ready");
  CHECK(rows->at(1).model == "m");
  CHECK(worker_rows_json(*rows).find("\"state\":\"unreachable\"") != std::string::npos);
  options.decodes.clear();
  CHECK(list_workers(options).status().code() == StatusCode::kInvalidArgument);
  options.join = "127.0.0.1:1";
  CHECK(list_workers(options).status().code() == StatusCode::kUnavailable);
}

TEST_CASE("admin: a registry's workers are listed") {
  Router router(Router::options());
  FakeWorker decode("decode", echo, router.control);
  AdminOptions options;
  options.join = router.control;
  REQUIRE(eventually([&] {
    const auto rows = list_workers(options);
    return rows.ok() && rows->size() == 1 && rows->at(0).state == "ready";
  }));
}

TEST_CASE("admin: only what is no worker is called that; other errors are told as they are") {
  const auto answer = [](const std::string& code) {
    FakeWorker decode("decode", echo);
    decode.refuse_all(code);
    AdminOptions options;
    options.timeout = Duration(5'000'000'000);
    return list_leases(decode.address(), options).status();
  };
  const Status other = answer("unexpected");
  CHECK(other.code() == StatusCode::kIncompatible);
  CHECK(other.message().find("is no prefill or decode worker: because") != std::string::npos);
  CHECK(answer("unauthorized").code() == StatusCode::kNoProvider);
  const Status broken = answer("malformed");
  CHECK(broken.code() == StatusCode::kFailed);
  CHECK(broken.message().find("answered with an error: because") != std::string::npos);
}

TEST_CASE("admin: drain asks the worker and waits until it is idle") {
  FakeWorker decode("decode", echo);
  AdminOptions options;
  options.timeout = Duration(5'000'000'000);
  const auto row = drain_worker(decode.address(), true, options);
  REQUIRE(row.ok());
  CHECK(row->state == "draining");
  FakeWorker idle("decode", echo);
  idle.end_on_drain();
  const auto gone = drain_worker(idle.address(), true, options);
  REQUIRE(gone.ok());
  CHECK(gone->state == "gone");
  options.timeout = Duration(200'000'000);
  CHECK(drain_worker("127.0.0.1:1", false, options).status().code() == StatusCode::kUnavailable);
  const auto keys = make_keys();
  REQUIRE(keys.ok());
  CHECK(keys->public_key.size() == 40);
}
