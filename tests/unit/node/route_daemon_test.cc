#include <catch2/catch.hpp>

#include "http/openai.h"
#include "unit/node/fake_worker.h"

using namespace kvd;
using namespace kvd::node;
using namespace kvd::node::testing;

namespace {

constexpr const char* kBody = R"({"model":"m","prompt":"hi","max_tokens":3,"user":"me"})";
constexpr const char* kStreamBody = R"({"prompt":"hi","stream":true})";

RouteOptions lists(const std::vector<const FakeWorker*>& prefills,
                   const std::vector<const FakeWorker*>& decodes) {
  RouteOptions out = Router::options();
  for (const FakeWorker* worker : prefills) out.prefills.push_back(worker->address());
  for (const FakeWorker* worker : decodes) out.decodes.push_back(worker->address());
  return out;
}

FakeWorker::Answer json(int status, const std::string& body) {
  return [=](const http::Request&, const std::shared_ptr<http::Responder>& to) {
    answer_json(to, status, body);
  };
}

FakeWorker::Answer silence() {
  return [](const http::Request&, const std::shared_ptr<http::Responder>&) {};
}

FakeWorker::Answer first_event_only() {
  return [](const http::Request&, const std::shared_ptr<http::Responder>& to) {
    to->begin(200, "text/event-stream");
    to->write("data: {\"n\":1}\n\n");
  };
}

bool has_line(Router& router, const std::string& line) {
  const std::string body = "\n" + router.get("/metrics").body;
  return body.find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("router: a plain answer is passed on byte for byte, and decode is told the prefill") {
  const std::string body = "{ \"id\" : \"x\",\n \"odd\":   [1,2 ] }";
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", json(200, body));
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  const auto response = router.post(kBody);
  CHECK(response.head.status == 200);
  CHECK(response.body == body);
  CHECK(prefill.seen.count() == 0);
  const std::string sent = decode.seen.body(0);
  CHECK(sent.find("\"kvd_prefill\":\"" + prefill.address() + "\"") != std::string::npos);
  CHECK(sent.find("\"kvd_timeout_ms\":") != std::string::npos);
  CHECK(sent.find("\"user\":\"me\"") != std::string::npos);
  CHECK(eventually([&] { return has_line(router, "kvd_requests_total{outcome=\"ok\"} 1"); }));
}

TEST_CASE("router: with decodes alone the choice of the prefill is left to them") {
  FakeWorker decode("decode", json(200, "{}"));
  Router router(lists({}, {&decode}));
  REQUIRE(router.wait_healthy());
  CHECK(router.post(kBody).head.status == 200);
  CHECK(decode.seen.body(0).find("\"kvd_prefill\":null") != std::string::npos);
}

TEST_CASE("router: the first event of a stream is passed on before the second exists") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", first_event_only());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kStreamBody), stream.callbacks());
  REQUIRE(eventually([&] { return stream.has("data: {\"n\":1}\n\n"); }));
  {
    const std::lock_guard lock(decode.seen.mutex);
    decode.seen.held.at(0)->write("data: [DONE]\n\n");
    decode.seen.held.at(0)->finish();
  }
  REQUIRE(eventually([&] { return stream.is_over(); }));
  CHECK(stream.end.ok());
  CHECK(stream.status == 200);
  CHECK(stream.chunks == std::vector<std::string>{"data: {\"n\":1}\n\n", "data: [DONE]\n\n"});
}

TEST_CASE("router: a failing decode is replaced before the first byte") {
  FakeWorker prefill("prefill", silence());
  FakeWorker bad("decode", json(500, "{\"error\":{\"message\":\"no\"}}"));
  FakeWorker good("decode", json(200, "{\"good\":1}"));
  Router router(lists({&prefill}, {&bad, &good}));
  REQUIRE(router.wait_healthy());
  REQUIRE(eventually(
      [&] { return has_line(router, "kvd_router_workers{role=\"decode\",state=\"ready\"} 2"); }));
  for (int i = 0; i < 4; ++i) CHECK(router.post(kBody).body == "{\"good\":1}");
  CHECK(bad.seen.count() >= 1);
}

TEST_CASE(
    "router: a decode that dies is replaced at once, also while it is still listed as alive") {
  FakeWorker prefill("prefill", silence());
  FakeWorker dying("decode", silence());
  FakeWorker good("decode", json(200, "{\"good\":1}"));
  Router router(lists({&prefill}, {&dying, &good}));
  REQUIRE(eventually(
      [&] { return has_line(router, "kvd_router_workers{role=\"decode\",state=\"ready\"} 2"); }));
  // Both get one; one of them waits at the decode that dies.
  Stream first, second;
  first.call = router.client->start(router.completion(kBody), first.callbacks());
  second.call = router.client->start(router.completion(kBody), second.callbacks());
  REQUIRE(eventually([&] { return dying.seen.count() == 1; }));
  dying.die();
  REQUIRE(eventually([&] { return first.is_over() && second.is_over(); }, Duration(2'000'000'000)));
  CHECK(first.text == "{\"good\":1}");
  CHECK(second.text == "{\"good\":1}");
  CHECK(router.post(kBody).body == "{\"good\":1}");
}

TEST_CASE("router: a stream whose decode dies ends with an error event and a cut connection") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", first_event_only());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kStreamBody), stream.callbacks());
  REQUIRE(eventually([&] { return stream.has("\"n\":1"); }));
  decode.die();
  REQUIRE(eventually([&] { return stream.is_over(); }, Duration(3'000'000'000)));
  CHECK_FALSE(stream.end.ok());
  CHECK(stream.has("data: {\"error\":"));
  CHECK_FALSE(stream.has("[DONE]"));
}

TEST_CASE("router: a decode that falls silent with open connections is given up after dead_after") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", first_event_only());
  RouteOptions options = lists({&prefill}, {&decode});
  options.common.dead_after = Duration(700'000'000);
  Router router(options);
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kStreamBody), stream.callbacks());
  REQUIRE(eventually([&] { return stream.has("\"n\":1"); }));
  decode.fall_silent();
  REQUIRE(eventually([&] { return stream.is_over(); }, Duration(3'000'000'000)));
  CHECK(stream.has("the worker no longer answers"));
  CHECK(router.get("/health").head.status == 503);
  const auto refused = router.post(kBody);
  CHECK(refused.head.status == 503);
  CHECK(refused.body.find("no usable decode worker: " + decode.address() + " is silent") !=
        std::string::npos);
}

TEST_CASE("router: a client that goes away takes its request with it") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", first_event_only());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kStreamBody), stream.callbacks());
  REQUIRE(eventually([&] { return stream.has("\"n\":1"); }));
  stream.call->cancel();
  CHECK(eventually([&] { return decode.seen.gone_count() == 1; }));
  CHECK(eventually([&] { return has_line(router, "kvd_router_requests_inflight 0"); }));
  CHECK(has_line(router, "kvd_requests_total{outcome=\"cancelled\"} 1"));
  CHECK(router.get("/workers").body.find("\"assigned\":1") == std::string::npos);
}

TEST_CASE("router: answers of the kinds 4xx and 504 are passed on and never retried") {
  for (const int status : {400, 404, 429, 504}) {
    FakeWorker prefill("prefill", silence());
    FakeWorker decode("decode", json(status, "{\"error\":{\"message\":\"mine\"}}"));
    Router router(lists({&prefill}, {&decode}));
    REQUIRE(router.wait_healthy());
    const auto response = router.post(kBody);
    CHECK(response.head.status == status);
    CHECK(response.body == "{\"error\":{\"message\":\"mine\"}}");
    CHECK(decode.seen.count() == 1);
  }
}

TEST_CASE("router: a prefill that decode cannot reach is replaced, and decode is not blamed") {
  FakeWorker dead("prefill", silence());
  FakeWorker good("prefill", silence());
  FakeWorker decode("decode", [&](const http::Request& request,
                                  const std::shared_ptr<http::Responder>& to) {
    const bool fine = request.body.find(good.address()) != std::string::npos;
    answer_json(to, fine ? 200 : 503,
                fine ? "{\"good\":1}" : http::error_body(unavailable("no link to that prefill")));
  });
  Router router(lists({&dead, &good}, {&decode}));
  REQUIRE(router.wait_healthy());
  REQUIRE(eventually(
      [&] { return has_line(router, "kvd_router_workers{role=\"prefill\",state=\"ready\"} 2"); }));
  for (int i = 0; i < 12; ++i) CHECK(router.post(kBody).body == "{\"good\":1}");
  CHECK(router.get("/workers").body.find("\"breaker\":\"open\"") == std::string::npos);
}

TEST_CASE("router: the last failure is the answer when the attempts are used up") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", json(503, "{\"error\":{\"message\":\"full\"}}"));
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  const auto response = router.post(kBody);
  CHECK(response.head.status == 503);
  CHECK(response.body == "{\"error\":{\"message\":\"full\"}}");
  CHECK(decode.seen.count() == 3);
  CHECK(has_line(router, "kvd_router_retries_total 2"));
}

TEST_CASE("router: KV that arrived wrong is tried once more, and no oftener") {
  const char* body = "{\"error\":{\"message\":\"the digest\",\"code\":\"corrupted\"}}";
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", json(502, body));
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  const auto response = router.post(kBody);
  CHECK(response.head.status == 502);
  CHECK(response.body == body);
  CHECK(decode.seen.count() == 2);
}

TEST_CASE("router: the deadline in the body holds for the whole exchange") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", silence());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  const auto response = router.post(R"({"prompt":"hi","kvd_timeout_ms":200})");
  CHECK(response.head.status == 504);
  CHECK(decode.seen.count() == 1);
  CHECK(eventually([&] { return decode.seen.gone_count() == 1; }));
}

TEST_CASE("router: bad input is answered by the router itself") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", json(200, "{}"));
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  CHECK(router.post("{\"prompt\":").head.status == 400);
  CHECK(router.post("{\"prompt\":\"x\",\"n\":0}").head.status == 400);
  CHECK(router.post(R"({"prompt":"x","model":"other"})").head.status == 404);
  CHECK(router.get("/v1/completions").head.status == 405);
  CHECK(router.get("/nothing").head.status == 404);
  CHECK(router.get("/nothing").body.find("\"error\"") != std::string::npos);
  CHECK(decode.seen.count() == 0);
  const std::string models = router.get("/v1/models").body;
  CHECK(models.find("\"id\":\"m\",\"object\":\"model\"") != std::string::npos);
}

TEST_CASE("router: with neither lists nor --join it is the registry that workers join") {
  Router router(Router::options());
  REQUIRE_FALSE(router.control.empty());
  CHECK(router.get("/health").head.status == 503);
  FakeWorker prefill("prefill", silence(), router.control);
  FakeWorker decode("decode", json(200, "{\"good\":1}"), router.control);
  REQUIRE(router.wait_healthy());
  CHECK(router.post(kBody).body == "{\"good\":1}");
  // A second router takes the workers of that registry.
  RouteOptions options = Router::options();
  options.common.join = router.control;
  Router second(options);
  CHECK(second.control.empty());
  REQUIRE(second.wait_healthy());
  CHECK(second.post(kBody).body == "{\"good\":1}");
}

TEST_CASE("router: a drain finishes what runs and ends without error") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", first_event_only());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kStreamBody), stream.callbacks());
  REQUIRE(eventually([&] { return stream.has("\"n\":1"); }));
  Status ended(StatusCode::kInternal, "not ended");
  std::thread runner([&] { ended = router.daemon->run(router.signals); });
  router.signals = 1;
  http::ClientRequest fresh;
  fresh.url = router.url + "/health";
  const std::unique_ptr<http::Client> other = http::Client::create();
  CHECK(eventually([&] { return !other->fetch(fresh).ok(); }));
  {
    const std::lock_guard lock(decode.seen.mutex);
    decode.seen.held.at(0)->write("data: [DONE]\n\n");
    decode.seen.held.at(0)->finish();
  }
  runner.join();
  CHECK(ended.ok());
  REQUIRE(eventually([&] { return stream.is_over(); }));
  CHECK(stream.end.ok());
  CHECK(stream.has("[DONE]"));
}

TEST_CASE("router: a second signal ends at once") {
  FakeWorker prefill("prefill", silence());
  FakeWorker decode("decode", silence());
  Router router(lists({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kBody), stream.callbacks());
  REQUIRE(eventually([&] { return decode.seen.count() == 1; }));
  router.signals = 2;
  CHECK(router.daemon->run(router.signals).code() == StatusCode::kFailed);
  CHECK(eventually([&] { return stream.is_over(); }));
  CHECK_FALSE(stream.end.ok());
}

TEST_CASE("router: options that cannot work are refused") {
  const auto refused = [](auto change) {
    RouteOptions options = Router::options();
    change(options);
    return start_route(options).status().code() == StatusCode::kInvalidArgument;
  };
  CHECK(refused([](RouteOptions& o) { o.policy = "best"; }));
  CHECK(refused([](RouteOptions& o) { o.common.http = "0.0.0.0:0"; }));
  CHECK(refused([](RouteOptions& o) { o.common.listen = "0.0.0.0:0"; }));
  CHECK(refused([](RouteOptions& o) { o.decodes = {"nowhere"}; }));
  CHECK(refused([](RouteOptions& o) { o.decodes = {"127.0.0.1:0"}; }));
  CHECK(refused([](RouteOptions& o) { o.prefills = {"127.0.0.1:7100"}; }));
  CHECK(refused([](RouteOptions& o) {
    o.decodes = {"127.0.0.1:7200"};
    o.flow = Flow::kStandalone;
  }));
  Router router(Router::options());
  CHECK(refused([&](RouteOptions& o) { o.common.listen = router.control; }));
  CHECK(refused([&](RouteOptions& o) { o.common.http = router.url.substr(7); }));
}
