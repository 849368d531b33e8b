#include <catch2/catch.hpp>
#include <set>

#include "unit/node/fake_worker.h"

using namespace kvd;
using namespace kvd::node;
using namespace kvd::node::testing;

namespace {

constexpr const char* kBody = R"({"prompt":"hi","max_tokens":3})";

RouteOptions standalone(const std::vector<const FakeWorker*>& prefills,
                        const std::vector<const FakeWorker*>& decodes) {
  RouteOptions out = Router::options();
  out.flow = Flow::kStandalone;
  for (const FakeWorker* worker : prefills) out.prefills.push_back(worker->address());
  for (const FakeWorker* worker : decodes) out.decodes.push_back(worker->address());
  return out;
}

void ok(const http::Request&, const std::shared_ptr<http::Responder>& to) {
  answer_json(to, 200, "{\"good\":1}");
}
void hang(const http::Request&, const std::shared_ptr<http::Responder>&) {}
void fail(const http::Request&, const std::shared_ptr<http::Responder>& to) {
  answer_json(to, 500, "{\"error\":{\"message\":\"broken\"}}");
}
constexpr const char* kTooLong = "{\"error\":{\"message\":\"too long\"}}";

std::string room_of(const std::string& body) {
  const std::string key = "\"bootstrap_room\":";
  const std::size_t begin = body.find(key);
  REQUIRE(begin != std::string::npos);
  return body.substr(begin + key.size(), body.find_first_of(",}]", begin) - begin - key.size());
}

bool ready(Router& router, const std::string& role, int count) {
  const std::string line =
      "kvd_router_workers{role=\"" + role + "\",state=\"ready\"} " + std::to_string(count) + "\n";
  return eventually([&] { return router.get("/metrics").body.find(line) != std::string::npos; });
}

}  // namespace

TEST_CASE("standalone: both halves get the same body with host, port and room") {
  FakeWorker prefill("prefill", ok);
  FakeWorker decode("decode", ok);
  Router router(standalone({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  CHECK(router.post(kBody).body == "{\"good\":1}");
  REQUIRE(eventually([&] { return prefill.seen.count() == 1; }));
  const std::string body = decode.seen.body(0);
  CHECK(body == prefill.seen.body(0));
  const std::string port = prefill.address().substr(prefill.address().find(':') + 1);
  CHECK(body.find("\"bootstrap_host\":\"127.0.0.1\"") != std::string::npos);
  CHECK(body.find("\"bootstrap_port\":" + port) != std::string::npos);
  CHECK(std::stoull(room_of(body)) < (1ull << 63));
}

TEST_CASE("standalone: several prompts and choices get lists, a room each") {
  FakeWorker prefill("prefill", ok);
  FakeWorker decode("decode", ok);
  Router router(standalone({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  CHECK(router.post(R"({"prompt":["a","b"],"n":2})").head.status == 200);
  const std::string body = decode.seen.body(0);
  CHECK(body.find(R"("bootstrap_host":["127.0.0.1","127.0.0.1","127.0.0.1","127.0.0.1"])") !=
        std::string::npos);
  const std::size_t begin = body.find("\"bootstrap_room\":[") + 18;
  const std::string rooms = body.substr(begin, body.find(']', begin) - begin);
  std::set<std::string> distinct;
  for (std::size_t at = 0; at != std::string::npos && at < rooms.size();) {
    const std::size_t comma = std::min(rooms.find(',', at), rooms.size());
    distinct.insert(rooms.substr(at, comma - at));
    at = comma + 1;
  }
  CHECK(distinct.size() == 4);
}

TEST_CASE("standalone: a failing prefill cancels decode and the next pair gets a new room") {
  FakeWorker bad("prefill", fail);
  FakeWorker good("prefill", ok);
  // Decode waits for a prefill: it answers only the request that the good one got too.
  FakeWorker decode("decode",
                    [&](const http::Request& request, const std::shared_ptr<http::Responder>& to) {
                      const std::string port = good.address().substr(good.address().find(':') + 1);
                      if (request.body.find("\"bootstrap_port\":" + port) != std::string::npos)
                        ok(request, to);
                    });
  Router router(standalone({&bad, &good}, {&decode}));
  REQUIRE(ready(router, "prefill", 2));
  REQUIRE(router.wait_healthy());
  for (int i = 0; i < 2; ++i) CHECK(router.post(kBody).body == "{\"good\":1}");
  REQUIRE(bad.seen.count() >= 1);
  CHECK(eventually([&] { return decode.seen.gone_count() == decode.seen.count() - 2; }));
  std::set<std::string> rooms;
  for (int i = 0; i < decode.seen.count(); ++i) {
    rooms.insert(room_of(decode.seen.body(static_cast<std::size_t>(i))));
  }
  CHECK(static_cast<int>(rooms.size()) == decode.seen.count());
}

TEST_CASE("standalone: a failing decode cancels prefill") {
  FakeWorker prefill("prefill", hang);
  FakeWorker decode("decode", fail);
  Router router(standalone({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  CHECK(router.post(kBody).head.status == 500);
  CHECK(eventually([&] { return prefill.seen.gone_count() == prefill.seen.count(); }));
  CHECK(decode.seen.count() == 3);
}

TEST_CASE("standalone: what prefill rejects is answered at once, not retried") {
  FakeWorker prefill("prefill", hang);
  FakeWorker decode("decode", hang);
  Router router(standalone({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kBody), stream.callbacks());
  REQUIRE(eventually([&] { return prefill.seen.count() == 1 && decode.seen.count() == 1; }));
  {
    const std::lock_guard lock(prefill.seen.mutex);
    answer_json(prefill.seen.held.at(0), 400, kTooLong);
  }
  REQUIRE(eventually([&] { return stream.is_over(); }));
  CHECK(stream.status == 400);
  CHECK(stream.text == kTooLong);
  CHECK(eventually([&] { return decode.seen.gone_count() == 1; }));
  CHECK(decode.seen.count() == 1);
}

TEST_CASE("standalone: a prefill that falls silent is replaced") {
  FakeWorker silent("prefill", hang);
  FakeWorker good("prefill", ok);
  FakeWorker decode("decode",
                    [&](const http::Request& request, const std::shared_ptr<http::Responder>& to) {
                      const std::string port = good.address().substr(good.address().find(':') + 1);
                      if (request.body.find("\"bootstrap_port\":" + port) != std::string::npos)
                        ok(request, to);
                    });
  RouteOptions options = standalone({&silent, &good}, {&decode});
  options.common.dead_after = Duration(700'000'000);
  Router router(options);
  REQUIRE(ready(router, "prefill", 2));
  REQUIRE(router.wait_healthy());
  Stream first, second;
  first.call = router.client->start(router.completion(kBody), first.callbacks());
  second.call = router.client->start(router.completion(kBody), second.callbacks());
  REQUIRE(eventually([&] { return silent.seen.count() == 1; }));
  silent.fall_silent();
  REQUIRE(eventually([&] { return first.is_over() && second.is_over(); }, Duration(3'000'000'000)));
  CHECK(first.text == "{\"good\":1}");
  CHECK(second.text == "{\"good\":1}");
}

TEST_CASE("standalone: a client that goes away closes both halves") {
  FakeWorker prefill("prefill", hang);
  FakeWorker decode("decode", hang);
  Router router(standalone({&prefill}, {&decode}));
  REQUIRE(router.wait_healthy());
  Stream stream;
  stream.call = router.client->start(router.completion(kBody), stream.callbacks());
  REQUIRE(eventually([&] { return prefill.seen.count() == 1 && decode.seen.count() == 1; }));
  stream.call->cancel();
  CHECK(
      eventually([&] { return prefill.seen.gone_count() == 1 && decode.seen.gone_count() == 1; }));
}
