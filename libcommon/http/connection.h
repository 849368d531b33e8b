// One client of the server: its socket, parser, timer and the answer under way.
//
// It reads all the time, also while a handler is at work, so that a client's leaving is seen at
// once. Threads: everything runs on the connection's strand, but for idle_since() and those that
// post. Ownership: lives while the server's table or an operation of its own holds it; close() ends
// both. Included by server.cc alone: Boost is slow to compile, and the server needs it once.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <optional>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "http/openai.h"
#include "http/outbox.h"

namespace kvd::http::internal {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using boost::system::error_code;
using Strand = asio::strand<asio::io_context::executor_type>;
using Socket = tcp::socket::rebind_executor<Strand>::other;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                         asio::wait_traits<std::chrono::steady_clock>, Strand>;
using SteadyTime = std::chrono::steady_clock::time_point;
using Parser = beast::http::request_parser<beast::http::string_body>;

constexpr std::uint32_t kMaxHeadBytes = 32U << 10U;
constexpr std::size_t kReadBytes = 16U << 10U;
// Requests sent ahead of their turn: beyond this the client is no longer read.
constexpr std::size_t kMaxAhead = 64U << 10U;
// A body must come at this pace at least: so many bytes in each idle timeout.
constexpr std::size_t kBodyPace = 64U << 10U;
constexpr std::chrono::seconds kLinger{2};
constexpr std::chrono::seconds kLastFlush{1};
constexpr std::size_t kGather = 32;
constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n";
constexpr SteadyTime kNoDeadline = SteadyTime::max();

// Time depends on the lengths alone.
inline bool equal_secret(std::string_view given, std::string_view secret) {
  unsigned difference = given.size() == secret.size() ? 0U : 1U;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const char expected = secret[i % secret.size()];
    difference |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(expected);
  }
  return difference == 0;
}

inline bool starts_with_nocase(std::string_view text, std::string_view prefix) {
  return beast::iequals(
      {text.substr(0, prefix.size()).data(), std::min(text.size(), prefix.size())},
      {prefix.data(), prefix.size()});
}

inline std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

// The target without the "http://host" that a proxy's client puts in front.
inline std::string_view origin_form(std::string_view target) {
  if (!starts_with_nocase(target, "http://")) return target;
  const std::size_t slash = target.find('/', 7);
  return slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
}

inline std::string_view path_of(std::string_view target) {
  target = origin_form(target);
  return target.substr(0, target.find('?'));
}

class Connection;

// What a connection needs of its server; outlives it.
class ConnectionHost {
 public:
  ConnectionHost(ServerOptions opts, Handler handle)
      : options(std::move(opts)), handler(std::move(handle)) {}
  ConnectionHost(const ConnectionHost&) = delete;
  ConnectionHost& operator=(const ConnectionHost&) = delete;
  virtual ~ConnectionHost() = default;
  virtual void remove(Connection* connection) = 0;

  const ServerOptions options;
  const Handler handler;
  const std::shared_ptr<std::atomic<bool>> draining = std::make_shared<std::atomic<bool>>(false);
  std::atomic<bool> stopping{false};
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<ConnectionHost> host, Socket socket)
      : host_(std::move(host)), socket_(std::move(socket)), timer_(socket_.get_executor()) {}

  void start() {
    post([](Connection& self) { self.open(); });
  }
  void drain() {
    post([](Connection& self) {
      if (self.is_idle()) self.close();
    });
  }
  void evict() {
    post([](Connection& self) {
      if (self.state_ == State::kHead) self.close();
    });
  }
  void stop() {
    post([](Connection& self) { self.stop_now(); });
  }
  // When it began to wait for a request, in steady ticks; 0 while it has one.
  std::int64_t idle_since() const { return idle_since_.load(std::memory_order_relaxed); }

 private:
  // kHead: waiting for a request or within its head; kLingering: answered, waits for the client to
  // close.
  enum class State { kHead, kBody, kAnswering, kLingering, kClosed };

  template <typename F>
  void post(F f) {
    asio::post(socket_.get_executor(), [self = shared_from_this(), f] { f(*self); });
  }
  bool is_idle() const { return state_ == State::kHead && in_.empty() && !parser_; }

  void open();
  void await_request();
  void read();
  void on_read(const error_code& ec, std::size_t bytes);
  void on_read_end(const error_code& ec);
  void parse();
  bool parse_some();
  bool begins_http2();
  bool check_head();
  bool authorized() const;
  void reject_parse(const error_code& ec);
  void dispatch();
  void refuse(int status, const Status& why,
              const std::map<std::string, std::string>& headers = {});
  void make_outbox(AnswerForm form);
  void flush();
  void on_wrote(const error_code& ec, std::size_t bytes);
  void on_drained(Outbox::State state);
  void end_exchange();
  void linger();
  void stop_now();
  void reset();
  void close();
  void set_deadline(std::chrono::nanoseconds after);
  void arm();
  void on_deadline();

  const std::shared_ptr<ConnectionHost> host_;
  Socket socket_;
  Timer timer_;
  SteadyTime deadline_ = kNoDeadline;
  bool timer_armed_ = false;
  State state_ = State::kHead;
  std::atomic<std::int64_t> idle_since_{0};

  std::vector<char> chunk_;  // what the outstanding read fills
  bool reading_ = false;
  bool saw_eof_ = false;
  std::string in_;  // received and not yet parsed
  std::optional<Parser> parser_;
  bool head_checked_ = false;
  std::size_t body_credit_ = 0;

  std::shared_ptr<Outbox> outbox_;
  std::deque<std::string> out_;
  std::size_t out_offset_ = 0;  // of the first of out_, written already
  bool writing_ = false;
  bool last_ = false;  // no request after this one
};

// ---- Connection: reading ----

inline void Connection::open() {
  error_code ec;
  socket_.set_option(tcp::no_delay(true), ec);
  socket_.set_option(asio::socket_base::keep_alive(true), ec);
  chunk_.resize(kReadBytes);
  if (host_->stopping) return close();
  await_request();
  read();
}

inline void Connection::await_request() {
  state_ = State::kHead;
  parser_.reset();
  head_checked_ = false;
  idle_since_ = std::chrono::steady_clock::now().time_since_epoch().count();
  set_deadline(host_->options.idle_timeout);
}

inline void Connection::read() {
  if (reading_ || saw_eof_ || state_ == State::kClosed) return;
  if (state_ == State::kAnswering && in_.size() >= kMaxAhead) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(chunk_),
                          [self = shared_from_this()](const error_code& ec, std::size_t bytes) {
                            self->on_read(ec, bytes);
                          });
}

inline void Connection::on_read(const error_code& ec, std::size_t bytes) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (ec) return on_read_end(ec);
  if (state_ != State::kLingering) in_.append(chunk_.data(), bytes);
  parse();
  read();
}

// The client closed its side. Half-closed counts as gone: routers say "abort" that way.
inline void Connection::on_read_end(const error_code& ec) {
  saw_eof_ = true;
  const bool finished = state_ == State::kAnswering && outbox_->state() == Outbox::State::kDone;
  if (finished && ec == asio::error::eof) {
    last_ = true;  // what is on its way may still be read
    return;
  }
  close();
}

inline void Connection::parse() {
  while ((state_ == State::kHead || state_ == State::kBody) && !in_.empty()) {
    if (!parse_some()) return;
  }
}

// One step of the parser; false: it needs more bytes, or this connection takes no more.
inline bool Connection::parse_some() {
  if (!parser_) {
    if (begins_http2()) return false;
    parser_.emplace();
    parser_->header_limit(kMaxHeadBytes);
    parser_->body_limit(host_->options.max_body_bytes);
    set_deadline(host_->options.idle_timeout);
  }
  error_code ec;
  const std::size_t used = parser_->put(asio::buffer(in_), ec);
  in_.erase(0, used);
  const bool starved = ec == beast::http::error::need_more;
  if (ec && !starved) {
    reject_parse(ec);
    return false;
  }
  if (parser_->is_header_done() && !head_checked_) {
    head_checked_ = true;
    idle_since_ = 0;
    if (!check_head()) return false;
    if (!parser_->is_done()) {
      state_ = State::kBody;
      body_credit_ = 0;
    }
  }
  if (parser_->is_done()) {
    dispatch();
    return false;
  }
  body_credit_ += used;
  if (state_ == State::kBody && body_credit_ >= kBodyPace) {
    body_credit_ = 0;
    set_deadline(host_->options.idle_timeout);
  }
  // The parser bounds heads; the line of a chunk it would await for ever.
  if (starved && in_.size() > kMaxHeadBytes + kReadBytes) {
    refuse(400, invalid_argument("malformed HTTP: a line without end"));
    return false;
  }
  return !starved && used > 0;
}

// gRPC probes open with HTTP/2's preface: not an error worth an answer, and none that they could
// read.
inline bool Connection::begins_http2() {
  const std::size_t common = std::min(in_.size(), kHttp2Preface.size());
  if (in_.compare(0, common, kHttp2Preface.substr(0, common)) != 0) return false;
  if (common == kHttp2Preface.size()) linger();
  return true;
}

inline bool Connection::authorized() const {
  const std::string& key = host_->options.api_key;
  if (key.empty() || path_of(view(parser_->get().target())) == "/health") return true;
  const std::string_view given = view(parser_->get()[beast::http::field::authorization]);
  constexpr std::string_view kScheme = "Bearer ";
  return starts_with_nocase(given, kScheme) && equal_secret(given.substr(kScheme.size()), key);
}

// Before the body is read: false when the request has been refused.
inline bool Connection::check_head() {
  if (!authorized()) {
    refuse(401,
           {StatusCode::kUnauthorized, "wrong or missing API key: send Authorization: Bearer KEY"},
           {{"WWW-Authenticate", "Bearer"}});
    return false;
  }
  const beast::string_view expect = parser_->get()[beast::http::field::expect];
  if (expect.empty() || parser_->get().version() < 11) return true;
  if (!beast::iequals(expect, "100-continue")) {
    refuse(417, invalid_argument("the Expect header may only ask for 100-continue"));
    return false;
  }
  if (!parser_->is_done()) {
    out_.emplace_back("HTTP/1.1 100 Continue\r\n\r\n");
    flush();
  }
  return true;
}

inline void Connection::reject_parse(const error_code& ec) {
  using beast::http::error;
  if (ec == error::body_limit) {
    refuse(413, invalid_argument("the body is larger than " +
                                 format_bytes(host_->options.max_body_bytes)));
  } else if (ec == error::header_limit) {
    refuse(431, invalid_argument("the head is larger than " + format_bytes(kMaxHeadBytes)));
  } else {
    refuse(400, invalid_argument("malformed HTTP: " + ec.message()));
  }
}

inline void Connection::dispatch() {
  const auto& message = parser_->get();
  Request request;
  request.method = std::string(view(message.method_string()));
  const bool head_only = request.method == "HEAD";
  if (head_only) request.method = "GET";
  const std::string_view target = origin_form(view(message.target()));
  const std::size_t mark = target.find('?');
  request.target = target.substr(0, mark);
  if (mark != std::string_view::npos) request.query = target.substr(mark + 1);
  for (const auto& field : message) {
    std::string name(view(field.name_string()));
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    std::string& value = request.headers[name];
    if (!value.empty()) value += ", ";
    value += view(field.value());
  }
  make_outbox({message.version() < 11, parser_->keep_alive(), head_only});
  request.body = std::move(parser_->get().body());
  parser_.reset();
  std::shared_ptr<Responder> responder = make_responder(outbox_);
  try {
    host_->handler(std::move(request), std::move(responder));
  } catch (const std::exception& error) {
    log_error("an http handler failed", {{"error", error.what()}});  // its Responder answers 500
  }
}

inline void Connection::make_outbox(AnswerForm form) {
  state_ = State::kAnswering;
  deadline_ = kNoDeadline;
  idle_since_ = 0;
  outbox_ = std::make_shared<Outbox>(form, host_->draining, [self = shared_from_this()] {
    self->post([](Connection& connection) { connection.flush(); });
  });
}

// The server's own answer to what never becomes a Request; the rest of the input is not to be
// trusted.
inline void Connection::refuse(int status, const Status& why,
                               const std::map<std::string, std::string>& headers) {
  const bool known = parser_ && parser_->is_header_done();
  const bool head_only = known && parser_->get().method() == beast::http::verb::head;
  make_outbox({known && parser_->get().version() < 11, false, head_only});
  parser_.reset();
  in_.clear();
  last_ = true;
  outbox_->send(status, "application/json", error_body(why), headers);
}

// ---- Connection: writing ----

inline void Connection::flush() {
  if (state_ == State::kClosed) return;
  Outbox::State state = Outbox::State::kOpen;
  if (outbox_) state = outbox_->take(&out_);
  if (state == Outbox::State::kCut) return reset();
  if (writing_) return;
  if (out_.empty()) return on_drained(state);
  std::array<asio::const_buffer, kGather> buffers;
  std::size_t count = 0;
  for (const std::string& bytes : out_) {
    if (count == kGather) break;
    buffers[count++] = asio::buffer(bytes);
  }
  buffers[0] += out_offset_;
  writing_ = true;
  if (state_ == State::kAnswering) {
    set_deadline(host_->stopping ? kLastFlush : host_->options.idle_timeout);
  }
  socket_.async_write_some(buffers,
                           [self = shared_from_this()](const error_code& ec, std::size_t bytes) {
                             self->on_wrote(ec, bytes);
                           });
}

inline void Connection::on_wrote(const error_code& ec, std::size_t bytes) {
  writing_ = false;
  if (state_ == State::kClosed) return;
  if (ec) return close();
  if (outbox_) outbox_->written(bytes);
  out_offset_ += bytes;
  while (!out_.empty() && out_offset_ >= out_.front().size()) {
    out_offset_ -= out_.front().size();
    out_.pop_front();
  }
  flush();
}

// All that was given is in the kernel.
inline void Connection::on_drained(Outbox::State state) {
  if (state_ != State::kAnswering) return;
  deadline_ = kNoDeadline;
  if (state == Outbox::State::kDone) end_exchange();
  if (state == Outbox::State::kAborted) reset();
}

inline void Connection::end_exchange() {
  last_ = last_ || !outbox_->keeps_alive() || *host_->draining;
  outbox_->detach();
  outbox_.reset();
  if (host_->stopping || saw_eof_) return close();
  if (last_) return linger();
  await_request();
  parse();
  read();
}

// Closing at once would reset the connection if the client still sends, and the answer could be
// lost.
inline void Connection::linger() {
  state_ = State::kLingering;
  in_.clear();
  error_code ec;
  socket_.shutdown(tcp::socket::shutdown_send, ec);
  set_deadline(kLinger);
  read();
}

// ---- Connection: ending ----

inline void Connection::stop_now() {
  if (state_ == State::kClosed) return;
  const bool finished = state_ == State::kAnswering && outbox_->state() == Outbox::State::kDone;
  if (!finished) return close();
  last_ = true;
  set_deadline(kLastFlush);
}

// Closes so that the client sees an error even where only the end of the connection ends the
// answer.
inline void Connection::reset() {
  error_code ec;
  if (outbox_ && !outbox_->is_chunked()) socket_.set_option(asio::socket_base::linger(true, 0), ec);
  close();
}

inline void Connection::close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  idle_since_ = 0;
  const std::shared_ptr<Outbox> outbox = std::move(outbox_);
  error_code ec;
  socket_.shutdown(tcp::socket::shutdown_send, ec);
  socket_.close(ec);
  timer_.cancel();
  host_->remove(this);
  if (outbox) outbox->detach();
}

inline void Connection::set_deadline(std::chrono::nanoseconds after) {
  deadline_ = std::chrono::steady_clock::now() + after;
  if (!timer_armed_ || deadline_ < timer_.expiry()) arm();
}

inline void Connection::arm() {
  timer_armed_ = true;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](const error_code& ec) {
    if (ec || self->state_ == State::kClosed) return;
    self->timer_armed_ = false;
    if (self->deadline_ == kNoDeadline) return;
    if (std::chrono::steady_clock::now() < self->deadline_) return self->arm();
    self->on_deadline();
  });
}

inline void Connection::on_deadline() {
  const bool in_request = state_ == State::kBody || (state_ == State::kHead && !is_idle());
  if (!in_request) return close();
  refuse(408, {StatusCode::kDeadline, "the request did not come whole within " +
                                          format_duration(host_->options.idle_timeout)});
}

}  // namespace kvd::http::internal
