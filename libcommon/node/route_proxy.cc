#include "node/route_proxy.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <optional>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "base/units.h"
#include "http/body_edit.h"
#include "http/openai.h"

namespace kvd::node {
namespace {

constexpr Duration kFirstDelay{50'000'000};
// A worker's own answer to a passed deadline is better than ours: it gets this much longer.
constexpr Duration kDeadlineGrace{500'000'000};
constexpr std::uint32_t kMaxWaits = 3;  // for a usable pair: 50, 100 and 200 ms
constexpr std::size_t kMaxErrorBytes = 64u << 10;
constexpr const char* kJson = "application/json";

// What clients may say to workers through the router.
constexpr std::array<const char*, 5> kPassedHeaders = {
    "authorization", "x-request-id", "x-correlation-id", "traceparent", "tracestate"};
// Headers of one connection, or made anew by our own server.
constexpr std::array<const char*, 9> kOwnHeaders = {
    "connection", "content-length", "content-type", "transfer-encoding", "keep-alive", "upgrade",
    "te",         "trailer",        "server"};

std::map<std::string, std::string> passed_on(const http::ResponseHead& head) {
  std::map<std::string, std::string> out;
  for (const auto& [name, value] : head.headers) {
    if (name == "date") continue;
    if (std::find(kOwnHeaders.begin(), kOwnHeaders.end(), name) == kOwnHeaders.end()) {
      out[name] = value;
    }
  }
  return out;
}

std::string content_type(const http::ResponseHead& head) {
  const auto it = head.headers.find("content-type");
  return it == head.headers.end() ? kJson : it->second;
}

bool is_success(int status) { return status >= 200 && status < 300; }

bool tells_of_corruption(const std::string& body) {
  const Result<http::Answer> answer = http::parse_answer(body);
  return answer.ok() && answer->error && answer->error->code() == StatusCode::kCorrupted;
}

// A value for each item: a list when there are several.
std::string scalar_or_list(const std::vector<std::string>& values) {
  if (values.size() == 1) return values.front();
  std::string out = "[";
  for (std::size_t i = 0; i < values.size(); ++i) out += (i == 0 ? "" : ",") + values[i];
  return out + "]";
}

std::vector<http::BodyField> bootstrap_fields(const std::string& prefill, std::size_t items) {
  const Result<HostPort> address = parse_host_port(prefill);
  KVD_CHECK(address.ok());  // checked when it was listed or joined
  std::vector<std::string> hosts(items, http::json_string(address->host));
  std::vector<std::string> ports(items, std::to_string(address->port));
  std::vector<std::string> rooms;
  for (std::size_t i = 0; i < items; ++i) rooms.push_back(std::to_string(secure_random_u63()));
  return {{"bootstrap_host", scalar_or_list(hosts)},
          {"bootstrap_port", scalar_or_list(ports)},
          {"bootstrap_room", scalar_or_list(rooms)}};
}

}  // namespace

// One connection of an attempt.
struct RouteProxy::Leg {
  std::shared_ptr<http::Call> call;
  bool used = false, ended = false;
  Status end;
  Status lost;  // why we cancelled it, when the worker is to blame
  http::ResponseHead head;
  std::string body;

  bool running() const { return used && !ended; }
};

struct RouteProxy::Attempt {
  Assignment pair;
  Leg prefill, decode;
  // Set by the leg that decided how this attempt ends; the other is only cancelled.
  std::optional<Side> decided_by;
  bool released = false;
  Outcome prefill_outcome = Outcome::kNeutral, decode_outcome = Outcome::kNeutral;

  bool over() const { return !prefill.running() && !decode.running(); }
};

struct RouteProxy::Exchange {
  // Fixed once made.
  std::string target, body, model;
  bool chat = false, stream = false;
  std::size_t items = 1;
  std::map<std::string, std::string> headers;
  std::shared_ptr<http::Responder> responder;
  TimePoint deadline;

  std::mutex
      mutex;  // guards the rest; never held while the responder is called or a call cancelled
  std::uint32_t attempts = 0;      // sent to a pair
  std::uint32_t waits = 0;         // times that there was no pair, since then
  std::vector<std::string> tried;  // keys of the pairs
  std::vector<std::string> avoid;  // workers that were to blame
  std::shared_ptr<Attempt> attempt;
  bool corrupted = false;  // an attempt's KV was not what prefill sent: once more, not twice
  bool relayed = false;    // part of a stream has been passed on
  bool gone = false;
  bool done = false;
};

RouteProxy::RouteProxy(RouteProxyOptions options, RouteMembers* members, Metrics* metrics,
                       const Clock* clock, std::function<void()> wake)
    : options_(std::move(options)), members_(members), clock_(clock), wake_(std::move(wake)) {
  for (const char* outcome : {"ok", "cancelled", "failed", "deadline", "refused"}) {
    outcomes_[outcome] = metrics->counter("kvd_requests_total", "API requests by how they ended.",
                                          {{"outcome", outcome}});
  }
  retries_ = metrics->counter("kvd_router_retries_total", "Attempts after the first one.");
  inflight_gauge_ =
      metrics->gauge("kvd_router_requests_inflight", "Requests that wait for their answer's end.");
  client_ = http::Client::create();
  started_ = clock_->now();
}

RouteProxy::~RouteProxy() {
  client_.reset();
  std::set<Shared> left;
  {
    const std::lock_guard lock(mutex_);
    delayed_.clear();
    left = running_;
  }
  for (const Shared& exchange : left) {
    exchange->responder->abort();
    finish(exchange, "failed");
  }
}

std::size_t RouteProxy::inflight() const {
  const std::lock_guard lock(mutex_);
  return running_.size();
}

void RouteProxy::handle(http::Request request, std::shared_ptr<http::Responder> responder) {
  const TimePoint now = clock_->now();
  auto exchange = std::make_shared<Exchange>();
  exchange->chat = request.target == "/v1/chat/completions";
  const Result<http::ApiRequest> parsed =
      exchange->chat ? http::parse_chat(request.body) : http::parse_completion(request.body);
  if (!parsed.ok()) {
    outcomes_["refused"].add();
    responder->send(http::http_status(parsed.status().code()), kJson,
                    http::error_body(parsed.status()));
    return;
  }
  exchange->target = std::move(request.target);
  exchange->body = std::move(request.body);
  exchange->model = parsed->model;
  exchange->stream = parsed->stream;
  exchange->items = std::max<std::size_t>(1, parsed->prompts.size()) * parsed->n;
  for (const char* name : kPassedHeaders) {
    const auto header = request.headers.find(name);
    if (header != request.headers.end()) exchange->headers[name] = header->second;
  }
  if (!options_.api_key.empty()) exchange->headers["authorization"] = "Bearer " + options_.api_key;
  exchange->headers["content-type"] = kJson;
  exchange->responder = std::move(responder);
  Duration timeout = options_.request_timeout;
  if (parsed->timeout_ms && *parsed->timeout_ms < static_cast<std::uint64_t>(to_ms(timeout))) {
    timeout = std::chrono::milliseconds(*parsed->timeout_ms);
  }
  exchange->deadline = now + timeout;
  {
    const std::lock_guard lock(mutex_);
    running_.insert(exchange);
    inflight_gauge_.set(static_cast<double>(running_.size()));
  }
  start_attempt(exchange);
  // The responder outlives the exchange's use of it, not the other way round.
  exchange->responder->on_gone([this, weak = std::weak_ptr<Exchange>(exchange)] {
    if (const Shared alive = weak.lock()) client_gone(alive);
  });
}

void RouteProxy::start_attempt(const Shared& exchange) {
  const TimePoint now = clock_->now();
  std::vector<std::string> tried, avoid;
  {
    const std::lock_guard lock(exchange->mutex);
    if (exchange->done) return;
    tried = exchange->tried;
    avoid = exchange->avoid;
  }
  if (now >= exchange->deadline) {
    answer_error(exchange, Status(StatusCode::kDeadline, "the request's deadline has passed"));
    return;
  }
  Result<Assignment> pair = members_->pick(exchange->model, tried, avoid, now);
  if (pair.ok()) {
    had_pair_ = true;
    const Status started = launch(exchange, std::move(*pair), now);
    if (!started.ok()) answer_error(exchange, started);
    return;
  }
  // Start order does not matter: workers may still be on their way.
  const bool none_yet = pair.status().code() == StatusCode::kUnavailable && !had_pair_;
  if (none_yet && now - started_ < options_.first_pair_timeout) {
    try_later(exchange, kFirstDelay);
    return;
  }
  std::uint32_t waits = 0;
  {
    const std::lock_guard lock(exchange->mutex);
    waits = ++exchange->waits;
  }
  // A suspect may be back in a moment; nobody waits for a worker that is silent.
  if (pair.status().code() == StatusCode::kUnavailable && waits <= kMaxWaits) {
    try_later(exchange, kFirstDelay * (1 << (waits - 1)));
  } else {
    answer_error(exchange, pair.status());
  }
}

Status RouteProxy::launch(const Shared& exchange, Assignment pair, TimePoint now) {
  const Duration left = exchange->deadline - now;
  std::vector<http::BodyField> fields;
  const bool standalone = options_.flow == Flow::kStandalone;
  if (standalone) fields = bootstrap_fields(pair.prefill, exchange->items);
  const bool named = !standalone && !pair.prefill.empty();
  fields.push_back({"kvd_prefill", named ? http::json_string(pair.prefill) : "null"});
  fields.push_back({"kvd_timeout_ms", std::to_string(left.count() / 1'000'000 + 1)});
  Result<std::string> body = http::set_fields(exchange->body, fields);
  if (!body.ok()) {
    members_->release(pair, Outcome::kNeutral, Outcome::kNeutral, now);
    return body.status();
  }
  log_debug("request goes to a pair",
            {{"prefill", pair.prefill}, {"decode", pair.decode}, {"target", exchange->target}});
  auto attempt = std::make_shared<Attempt>();
  attempt->pair = std::move(pair);
  attempt->decode.used = true;
  attempt->prefill.used = standalone;

  // Callbacks wait for this lock until both calls are stored.
  const std::lock_guard lock(exchange->mutex);
  if (exchange->done || exchange->gone) {
    members_->release(attempt->pair, Outcome::kNeutral, Outcome::kNeutral, now);
    return {};
  }
  if (++exchange->attempts > 1) retries_.add();
  exchange->waits = 0;
  exchange->attempt = attempt;
  exchange->tried.push_back(attempt->pair.key());
  if (standalone) {
    attempt->prefill.call =
        client_->start(leg_request(*exchange, attempt->pair.prefill_http, *body, left),
                       leg_callbacks(exchange, attempt, Side::kPrefill));
  }
  attempt->decode.call =
      client_->start(leg_request(*exchange, attempt->pair.decode_http, std::move(*body), left),
                     leg_callbacks(exchange, attempt, Side::kDecode));
  return {};
}

http::ClientRequest RouteProxy::leg_request(const Exchange& exchange, const std::string& url,
                                            std::string body, Duration left) const {
  http::ClientRequest out;
  out.url = url + exchange.target;
  out.method = "POST";
  out.headers = exchange.headers;
  out.body = std::move(body);
  out.connect_timeout = std::min(out.connect_timeout, left);
  out.timeout = left + kDeadlineGrace;
  return out;
}

http::ClientCallbacks RouteProxy::leg_callbacks(const Shared& exchange,
                                                const std::shared_ptr<Attempt>& attempt,
                                                Side side) {
  http::ClientCallbacks out;
  out.on_head = [exchange, attempt, side](const http::ResponseHead& head) {
    const std::lock_guard lock(exchange->mutex);
    (side == Side::kDecode ? attempt->decode : attempt->prefill).head = head;
  };
  out.on_data = [this, exchange, attempt, side](std::string_view bytes) {
    on_data(exchange, attempt, side, bytes);
  };
  out.on_end = [this, exchange, attempt, side](Status end) {
    on_end(exchange, attempt, side, end);
  };
  return out;
}

// The event itself, not the same letters inside an event's JSON, where a line break is escaped.
bool has_done(std::string_view bytes) {
  constexpr std::string_view kDone = "data: [DONE]";
  return bytes.starts_with(kDone) || bytes.find("\n\ndata: [DONE]") != std::string_view::npos;
}

void RouteProxy::on_data(const Shared& exchange, const std::shared_ptr<Attempt>& attempt, Side side,
                         std::string_view bytes) {
  bool first = false, held = false;
  std::shared_ptr<http::Call> too_long;
  {
    const std::lock_guard lock(exchange->mutex);
    const bool is_decode = side == Side::kDecode;
    Leg& leg = is_decode ? attempt->decode : attempt->prefill;
    if (exchange->done || attempt->decided_by || !leg.lost.ok()) return;
    const bool good = is_success(leg.head.status);
    if (is_decode && good && exchange->stream) {
      first = !exchange->relayed;
      exchange->relayed = true;
      // The last event waits for the end of the answer and goes out with it
      // (Responder::finish_with).
      held = !leg.body.empty() || has_done(bytes);
      if (held && leg.body.size() < kMaxErrorBytes) {
        leg.body.append(bytes.substr(0, kMaxErrorBytes));
      }
    } else {
      if (!is_decode && good) return;  // prefill's own token: decode has it too
      if (leg.body.size() + bytes.size() <= (good ? kMaxAnswerBytes : kMaxErrorBytes)) {
        leg.body.append(bytes);
        return;
      }
      leg.lost = Status(StatusCode::kFailed, "the worker's answer is too long");
      too_long = leg.call;
    }
  }
  if (too_long) {
    too_long->cancel();
    return;
  }
  http::Responder& responder = *exchange->responder;
  if (first) {
    responder.begin(attempt->decode.head.status, content_type(attempt->decode.head),
                    passed_on(attempt->decode.head));
  }
  // Not taken: the client is gone or does not read, and on_gone says so.
  if (!held) (void)responder.write(std::string(bytes));
}

// What the end of a leg says of the two workers. 502 and "unavailable" from decode tell of its
// prefill.
void RouteProxy::blame(Exchange& exchange, Attempt& attempt, Side side) {
  const bool is_decode = side == Side::kDecode;
  const Leg& leg = is_decode ? attempt.decode : attempt.prefill;
  Outcome& mine = is_decode ? attempt.decode_outcome : attempt.prefill_outcome;
  const std::string& me = is_decode ? attempt.pair.decode : attempt.pair.prefill;
  const int status = leg.head.status;
  if (!leg.end.ok()) {
    if (clock_->now() >= exchange.deadline) return;
    mine = Outcome::kBroken;
    exchange.avoid.push_back(me);
  } else if (status < 500) {
    mine = Outcome::kSuccess;
  } else if (status == 502 || status == 503) {
    const Result<http::Answer> answer = http::parse_answer(leg.body);
    const bool missed =
        answer.ok() && answer->error && answer->error->code() == StatusCode::kUnavailable;
    const bool other = is_decode && (status == 502 || missed) && !attempt.pair.prefill.empty();
    if (other) attempt.prefill_outcome = status == 502 ? Outcome::kBroken : Outcome::kDoubtful;
    exchange.avoid.push_back(other ? attempt.pair.prefill : me);
  } else if (status != 504) {
    mine = Outcome::kFailure;
    exchange.avoid.push_back(me);
  }
}

void RouteProxy::on_end(const Shared& exchange, const std::shared_ptr<Attempt>& attempt, Side side,
                        const Status& end) {
  std::vector<std::shared_ptr<http::Call>> cancelled;
  bool success = false;
  {
    const std::lock_guard lock(exchange->mutex);
    const bool is_decode = side == Side::kDecode;
    Leg& leg = is_decode ? attempt->decode : attempt->prefill;
    Leg& other = is_decode ? attempt->prefill : attempt->decode;
    leg.ended = true;
    leg.end = leg.lost.ok() ? end : leg.lost;
    if (is_decode && exchange->relayed && !leg.body.empty()) leg.end = Status();  // all was there
    const bool ours = end.code() == StatusCode::kCancelled && leg.lost.ok();
    const bool good = leg.end.ok() && is_success(leg.head.status);
    // Once another leg failed, or nobody waits, an end says nothing of this worker.
    const bool answered = leg.end.ok() && leg.head.status < 500;
    if (answered || !(attempt->decided_by || ours || exchange->gone || exchange->done)) {
      blame(*exchange, *attempt, side);
    }
    if (!exchange->done && !attempt->decided_by) {
      if (is_decode) {
        attempt->decided_by = side;
        success = good;
        if (good && !attempt->prefill.used) attempt->prefill_outcome = Outcome::kSuccess;
      } else if (!good && !exchange->relayed) {
        attempt->decided_by = side;
      }
      // After success prefill ends by itself.
      if (attempt->decided_by && !success && other.running()) cancelled.push_back(other.call);
    }
  }
  for (const auto& call : cancelled) call->cancel();
  conclude(exchange, attempt);
}

// Goes on when nothing of a failed attempt runs any more, or decode's whole answer is there.
void RouteProxy::conclude(const Shared& exchange, const std::shared_ptr<Attempt>& attempt) {
  bool release = false, act = false;
  Leg* leg = nullptr;
  {
    const std::lock_guard lock(exchange->mutex);
    release = attempt->over() && !attempt->released;
    if (release) attempt->released = true;
    if (!exchange->done && exchange->attempt == attempt && attempt->decided_by) {
      leg = *attempt->decided_by == Side::kDecode ? &attempt->decode : &attempt->prefill;
      const bool good = leg->end.ok() && is_success(leg->head.status);
      act = attempt->over() || good;
      if (act) exchange->attempt = nullptr;
    }
  }
  if (release) {
    members_->release(attempt->pair, attempt->prefill_outcome, attempt->decode_outcome,
                      clock_->now());
    wake_();  // a suspect is asked at once
  }
  if (act) act_on(exchange, *attempt, *leg);
}

void RouteProxy::act_on(const Shared& exchange, const Attempt& attempt, Leg& leg) {
  bool gone = false, relayed = false, again = false;
  std::uint32_t attempts = 0;
  const bool corrupted = leg.end.ok() && leg.head.status == 502 && tells_of_corruption(leg.body);
  {
    const std::lock_guard lock(exchange->mutex);
    gone = exchange->gone;
    relayed = exchange->relayed;
    attempts = exchange->attempts;
    again = attempts < options_.retries && !(corrupted && exchange->corrupted);
    exchange->corrupted = exchange->corrupted || corrupted;
  }
  if (gone) {
    finish(exchange, "cancelled");
    return;
  }
  const int status = leg.head.status;
  const bool whole = leg.end.ok();
  if (whole && (status < 500 || status == 504)) {
    answer(exchange, leg);
    return;
  }
  const std::string& worker = &leg == &attempt.decode ? attempt.pair.decode : attempt.pair.prefill;
  const Status why =
      (whole ? Status(StatusCode::kFailed, "answered " + std::to_string(status)) : leg.end)
          .with_context("worker " + worker);
  const bool late = !whole && clock_->now() >= exchange->deadline;
  log_warn(relayed ? "stream broke" : "attempt failed", {{"why", why.message()}});
  if (!relayed && !late && again) {
    // The first fresh pair at once, then a little later each time.
    try_later(exchange,
              attempts == 1 ? Duration(0) : kFirstDelay * (1 << std::min(attempts - 2, 6U)));
  } else if (whole && !relayed) {
    answer(exchange, leg);
  } else {
    answer_error(exchange, late ? Status(StatusCode::kDeadline, why.message()) : why);
  }
}

void RouteProxy::try_later(const Shared& exchange, Duration delay) {
  {
    const std::lock_guard lock(mutex_);
    delayed_.emplace(clock_->now() + delay, exchange);
  }
  wake_();
}

TimePoint RouteProxy::tick(TimePoint now) {
  std::vector<Shared> due;
  TimePoint next = kNever;
  {
    const std::lock_guard lock(mutex_);
    while (!delayed_.empty() && delayed_.begin()->first <= now) {
      due.push_back(std::move(delayed_.begin()->second));
      delayed_.erase(delayed_.begin());
    }
    if (!delayed_.empty()) next = delayed_.begin()->first;
  }
  for (const Shared& exchange : due) start_attempt(exchange);
  return next;
}

void RouteProxy::worker_lost(const std::string& address) {
  std::vector<std::shared_ptr<http::Call>> cancelled;
  std::set<Shared> running;
  {
    const std::lock_guard lock(mutex_);
    running = running_;
  }
  for (const Shared& exchange : running) {
    const std::lock_guard lock(exchange->mutex);
    const std::shared_ptr<Attempt>& attempt = exchange->attempt;
    if (!attempt || attempt->decided_by) continue;
    const Status lost(StatusCode::kFailed, "the worker no longer answers");
    if (attempt->pair.decode == address && attempt->decode.running()) {
      attempt->decode.lost = lost;
      cancelled.push_back(attempt->decode.call);
    }
    // Once decode streams, what happens to prefill is decode's to judge.
    if (attempt->pair.prefill == address && attempt->prefill.running() && !exchange->relayed) {
      attempt->prefill.lost = lost;
      cancelled.push_back(attempt->prefill.call);
    }
  }
  for (const auto& call : cancelled) call->cancel();
}

void RouteProxy::client_gone(const Shared& exchange) {
  std::vector<std::shared_ptr<http::Call>> cancelled;
  bool waiting = false;
  {
    const std::lock_guard lock(exchange->mutex);
    if (exchange->done) return;
    exchange->gone = true;
    if (exchange->attempt) {
      if (exchange->attempt->decode.running()) cancelled.push_back(exchange->attempt->decode.call);
      if (exchange->attempt->prefill.running())
        cancelled.push_back(exchange->attempt->prefill.call);
      // Whichever ends first decides; both say only that we cancelled them.
    }
    waiting = cancelled.empty();
  }
  for (const auto& call : cancelled) call->cancel();
  if (waiting) finish(exchange, "cancelled");
}

void RouteProxy::answer(const Shared& exchange, Leg& leg) {
  const int status = leg.head.status;
  if (is_relayed(exchange)) {
    exchange->responder->finish_with(std::move(leg.body));
  } else {
    exchange->responder->send(status, content_type(leg.head), std::move(leg.body),
                              passed_on(leg.head));
  }
  finish(exchange, is_success(status) ? "ok"
                   : status < 500     ? "refused"
                   : status == 504    ? "deadline"
                                      : "failed");
}

void RouteProxy::answer_error(const Shared& exchange, const Status& why) {
  http::Responder& responder = *exchange->responder;
  if (is_relayed(exchange)) {
    const http::Renderer renderer(exchange->chat, "", 0, exchange->model);
    (void)responder.write(renderer.error_chunk(why));
    responder.abort();
  } else {
    std::map<std::string, std::string> headers;
    if (why.code() == StatusCode::kUnavailable) headers["retry-after"] = "1";
    responder.send(http::http_status(why.code()), kJson, http::error_body(why), headers);
  }
  const bool refused =
      why.code() == StatusCode::kInvalidArgument || why.code() == StatusCode::kNotFound;
  finish(exchange, why.code() == StatusCode::kDeadline ? "deadline"
                   : refused                           ? "refused"
                                                       : "failed");
}

bool RouteProxy::is_relayed(const Shared& exchange) {
  const std::lock_guard lock(exchange->mutex);
  return exchange->relayed;
}

void RouteProxy::finish(const Shared& exchange, const char* outcome) {
  {
    const std::lock_guard lock(exchange->mutex);
    if (exchange->done) return;
    exchange->done = true;
  }
  outcomes_.at(outcome).add();
  const std::lock_guard lock(mutex_);
  running_.erase(exchange);
  inflight_gauge_.set(static_cast<double>(running_.size()));
}

}  // namespace kvd::node
