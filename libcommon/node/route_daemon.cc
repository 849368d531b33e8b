// kvd-route serve: the control thread, the proxy and the HTTP server wired together.
#include <unistd.h>

#include <ctime>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "http/body_edit.h"
#include "http/openai.h"
#include "http/server.h"
#include "node/exposure.h"
#include "node/route_control.h"
#include "node/route_proxy.h"
#include "node/worker.h"

namespace kvd::node {
namespace {

constexpr const char* kJson = "application/json";
constexpr const char* kPlainMetrics = "text/plain; version=0.0.4";
constexpr Duration kSignalPoll{50'000'000};
// Answers that are complete still have to reach their clients.
constexpr Duration kLastBytes{200'000'000};

class RouteDaemon final : public Daemon {
 public:
  explicit RouteDaemon(RouteOptions options) : options_(std::move(options)) {}
  ~RouteDaemon() override { shut_down(); }

  Status start();
  std::string ready_line() const override;
  Status run(const std::atomic<int>& signals) override;

 private:
  void serve(http::Request request, std::shared_ptr<http::Responder> responder);
  void get(const std::string& target, http::Responder& responder);
  void update_gauges();
  std::string models_json() const;
  void shut_down();

  RouteOptions options_;
  SteadyClock clock_;
  Metrics metrics_;
  std::atomic<bool> draining_{false};
  std::int64_t started_at_ = std::time(nullptr);
  std::unique_ptr<RouteMembers> members_;
  std::unique_ptr<RouteControl> control_;
  std::unique_ptr<RouteProxy> proxy_;
  std::unique_ptr<http::Server> server_;
  // tick() and on_lost() may come before proxy_ is there.
  std::atomic<RouteProxy*> ready_proxy_{nullptr};
};

Status RouteDaemon::start() {
  const CommonOptions& common = options_.common;
  const bool is_registry =
      common.join.empty() && options_.prefills.empty() && options_.decodes.empty();
  KVD_RETURN_IF_ERROR(check_exposure(common, is_registry));
  if (common.join.empty() && !options_.prefills.empty() && options_.decodes.empty()) {
    return invalid_argument("--prefill without --decode: name the decode workers too");
  }
  const bool standalone = options_.flow == Flow::kStandalone;
  if (standalone && common.join.empty() && options_.prefills.empty() && !is_registry) {
    return invalid_argument("--flow standalone needs --prefill: the router makes the pair");
  }
  if (options_.retries == 0) options_.retries = 1;
  Result<std::unique_ptr<RouteMembers>> members =
      RouteMembers::create(options_.policy, standalone, common.dead_after, secure_random_u64());
  if (!members.ok()) return members.status();
  members_ = std::move(*members);

  RouteControlOptions control;
  control.program = common.program;
  control.version = common.version;
  control.listen = is_registry ? common.listen : "";
  control.join = common.join;
  control.prefills = options_.prefills;
  control.decodes = options_.decodes;
  control.dead_after = common.dead_after;
  if (!common.keys.empty()) {
    Result<control::KeyRing> keys = control::load_keys(common.keys);
    if (!keys.ok()) return keys.status();
    control.keys = std::move(*keys);
  }
  RouteControlHooks hooks;
  hooks.on_lost = [this](const std::string& address) {
    if (RouteProxy* proxy = ready_proxy_) proxy->worker_lost(address);
  };
  hooks.tick = [this](TimePoint now) {
    RouteProxy* proxy = ready_proxy_;
    return proxy == nullptr ? kNever : proxy->tick(now);
  };
  hooks.on_drain = [this] { draining_ = true; };
  Result<std::unique_ptr<RouteControl>> started =
      RouteControl::start(std::move(control), members_.get(), &metrics_, &clock_, std::move(hooks));
  if (!started.ok()) return started.status();
  control_ = std::move(*started);

  RouteProxyOptions proxy{options_.flow, options_.retries, common.request_timeout, common.api_key,
                          common.timeout};
  proxy_ = std::make_unique<RouteProxy>(std::move(proxy), members_.get(), &metrics_, &clock_,
                                        [this] { control_->wake(); });
  ready_proxy_ = proxy_.get();
  update_gauges();

  http::ServerOptions http;
  http.listen = common.http;
  http.threads = 2;
  http.api_key = common.api_key;
  Result<std::unique_ptr<http::Server>> server = http::Server::start(
      http, [this](http::Request request, std::shared_ptr<http::Responder> responder) {
        serve(std::move(request), std::move(responder));
      });
  if (!server.ok()) return server.status();
  server_ = std::move(*server);
  control_->set_http("http://" + server_->address());
  return {};
}

std::string RouteDaemon::ready_line() const {
  std::string line =
      "{\"event\":\"ready\",\"program\":" + http::json_string(options_.common.program) +
      ",\"http\":" + http::json_string("http://" + server_->address());
  if (!control_->address().empty()) {
    line += ",\"control\":" + http::json_string(control_->address());
  }
  line += ",\"incarnation\":\"" + to_string(control_->incarnation()) + "\"";
  return line + ",\"pid\":" + std::to_string(getpid()) + "}";
}

void RouteDaemon::serve(http::Request request, std::shared_ptr<http::Responder> responder) {
  const std::string& target = request.target;
  const bool completion = target == "/v1/completions" || target == "/v1/chat/completions";
  const bool known = completion || target == "/health" || target == "/metrics" ||
                     target == "/v1/models" || target == "/workers";
  if (!known) {
    responder->send(404, kJson,
                    http::error_body(Status(
                        StatusCode::kNotFound,
                        "there is no " + target +
                            " here: /v1/completions, /v1/chat/completions, /v1/models, /health, "
                            "/metrics, /workers")));
    return;
  }
  const bool fits =
      completion ? request.method == "POST" : request.method == "GET" || request.method == "HEAD";
  if (!fits) {
    const std::string allowed = completion ? "POST" : "GET";
    responder->send(405, kJson, http::error_body(invalid_argument(target + " takes " + allowed)),
                    {{"allow", allowed}});
  } else if (!completion) {
    get(target, *responder);
  } else if (draining_) {
    responder->send(503, kJson, http::error_body(unavailable("this router is draining")));
  } else {
    proxy_->handle(std::move(request), std::move(responder));
  }
}

void RouteDaemon::get(const std::string& target, http::Responder& responder) {
  const TimePoint now = clock_.now();
  if (target == "/health") {
    const bool up = !draining_ && members_->usable(now);
    responder.send(up ? 200 : 503, kJson,
                   std::string("{\"status\":\"") +
                       (up          ? "ok"
                        : draining_ ? "draining"
                                    : "no usable pair of workers") +
                       "\"}");
  } else if (target == "/metrics") {
    update_gauges();
    responder.send(200, kPlainMetrics, metrics_.render());
  } else if (target == "/workers") {
    responder.send(200, kJson, members_->json(now));
  } else {
    responder.send(200, kJson, models_json());
  }
}

std::string RouteDaemon::models_json() const {
  std::string out = "{\"object\":\"list\",\"data\":[";
  bool first = true;
  for (const std::string& model : members_->models(clock_.now())) {
    out += std::string(first ? "" : ",") + "{\"id\":" + http::json_string(model) +
           ",\"object\":\"model\",\"created\":" + std::to_string(started_at_) +
           ",\"owned_by\":\"kvd\"}";
    first = false;
  }
  return out + "]}";
}

void RouteDaemon::update_gauges() {
  for (const auto& [labels, count] : members_->counts(clock_.now())) {
    metrics_
        .gauge("kvd_router_workers", "Workers that the router knows, by role and state.",
               {{"role", labels.first}, {"state", labels.second}})
        .set(count);
  }
}

Status RouteDaemon::run(const std::atomic<int>& signals) {
  const auto asked = [&] { return draining_.load() || signals.load() > 0; };
  while (!asked()) control_->wait_for(asked, kSignalPoll);
  draining_ = true;
  log_info("draining", {{"requests", proxy_->inflight()}});
  server_->drain();
  const auto over = [&] { return proxy_->inflight() == 0 || signals.load() > 1; };
  while (!over()) control_->wait_for(over, kSignalPoll);
  const std::size_t left = proxy_->inflight();
  if (left == 0) control_->wait_for([&] { return signals.load() > 1; }, kLastBytes);
  shut_down();
  if (left == 0) return {};
  return {StatusCode::kFailed,
          "ended by a second signal, " + std::to_string(left) + " requests were cut"};
}

// The order matters: no new requests, no ticks, then the calls; the control object last, since the
// proxy wakes it.
void RouteDaemon::shut_down() {
  if (server_) server_->stop();
  if (control_) control_->stop();
  ready_proxy_ = nullptr;
  proxy_.reset();
  server_.reset();
}

}  // namespace

Result<std::unique_ptr<Daemon>> start_route(const RouteOptions& options) {
  auto daemon = std::make_unique<RouteDaemon>(options);
  KVD_RETURN_IF_ERROR(daemon->start());
  return std::unique_ptr<Daemon>(std::move(daemon));
}

}  // namespace kvd::node
