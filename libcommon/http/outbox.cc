#include "http/outbox.h"

#include <charconv>
#include <ctime>

#include "http/openai.h"

namespace kvd::http {
namespace {

std::string_view reason_of(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Payload Too Large";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return status < 400 ? "OK" : "Error";
  }
}

// A value from elsewhere (an echoed request id) must not end the head early.
void append_header(std::string& out, std::string_view name, std::string_view value) {
  const auto copy = [&out](std::string_view text) {
    for (const char c : text) {
      if (c != '\r' && c != '\n' && c != '\0') out += c;
    }
  };
  copy(name);
  out += ": ";
  copy(value);
  out += "\r\n";
}

void append_date(std::string& out) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  out.append(text, std::strftime(text, sizeof(text), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &utc));
}

void append_chunk(std::string& out, std::string_view data) {
  char size[20];
  out.append(size, std::to_chars(size, size + sizeof(size), data.size(), 16).ptr);
  out += "\r\n";
  out += data;
  out += "\r\n";
}

class OutboxResponder final : public Responder {
 public:
  explicit OutboxResponder(std::shared_ptr<Outbox> outbox) : outbox_(std::move(outbox)) {}
  ~OutboxResponder() override { outbox_->dropped(); }
  OutboxResponder(const OutboxResponder&) = delete;
  OutboxResponder& operator=(const OutboxResponder&) = delete;

  void send(int status, const std::string& content_type, std::string body,
            const std::map<std::string, std::string>& headers) override {
    outbox_->send(status, content_type, std::move(body), headers);
  }
  void begin(int status, const std::string& content_type,
             const std::map<std::string, std::string>& headers) override {
    outbox_->begin(status, content_type, headers);
  }
  bool write(std::string chunk) override { return outbox_->write(chunk); }
  void finish() override { outbox_->finish({}); }
  void finish_with(std::string last_chunk) override { outbox_->finish(last_chunk); }
  void abort() override { outbox_->abort(); }
  bool gone() const override { return outbox_->gone(); }
  void on_gone(std::function<void()> callback) override { outbox_->on_gone(std::move(callback)); }

 private:
  std::shared_ptr<Outbox> outbox_;
};

}  // namespace

std::shared_ptr<Responder> make_responder(std::shared_ptr<Outbox> outbox) {
  return std::make_shared<OutboxResponder>(std::move(outbox));
}

// What the head says beyond `headers` depends on the caller: the length or the chunks follow.
bool Outbox::append_head(int status, const std::string& content_type,
                         const std::map<std::string, std::string>& headers, std::string* head) {
  if (state_ != State::kOpen || gone_) return false;
  *head += form_.http10 ? "HTTP/1.0 " : "HTTP/1.1 ";
  *head += std::to_string(status) + " ";
  *head += reason_of(status);
  *head += "\r\n";
  append_date(*head);
  if (!content_type.empty()) append_header(*head, "Content-Type", content_type);
  for (const auto& [name, value] : headers) append_header(*head, name, value);
  return true;
}

void Outbox::push(std::string bytes) {
  backlog_ += bytes.size();
  queue_.push_back(std::move(bytes));
}

void Outbox::poke() {
  if (poked_ || !poke_) return;
  poked_ = true;
  poke_();
}

void Outbox::send(int status, const std::string& content_type, std::string body,
                  const std::map<std::string, std::string>& headers) {
  std::function<void()> unused;
  const std::lock_guard lock(mutex_);
  std::string head;
  if (!append_head(status, content_type, headers, &head)) return;
  keep_alive_ = form_.keep_alive && !closing_->load();
  head += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  if (!keep_alive_) head += "Connection: close\r\n";
  if (keep_alive_ && form_.http10) head += "Connection: keep-alive\r\n";
  head += "\r\n";
  push(std::move(head));
  if (!form_.head_only && !body.empty()) push(std::move(body));
  state_ = State::kDone;
  on_gone_.swap(unused);
  poke();
}

void Outbox::begin(int status, const std::string& content_type,
                   const std::map<std::string, std::string>& headers) {
  const std::lock_guard lock(mutex_);
  std::string head;
  if (!append_head(status, content_type, headers, &head)) return;
  keep_alive_ = form_.keep_alive && !form_.http10 && !closing_->load();
  if (!form_.http10) head += "Transfer-Encoding: chunked\r\n";
  if (!keep_alive_) head += "Connection: close\r\n";
  head += "\r\n";
  push(std::move(head));
  state_ = State::kStreaming;
  poke();
}

bool Outbox::write(std::string_view chunk) {
  const std::lock_guard lock(mutex_);
  if (state_ != State::kStreaming || gone_) return false;
  if (backlog_ > kMaxBacklog) {
    state_ = State::kCut;
    gone_ = true;
    queue_.clear();
    poke();
    return false;
  }
  if (chunk.empty() || form_.head_only) return true;  // an empty chunk would be the last one
  std::string framed;
  framed.reserve(chunk.size() + 24);
  if (form_.http10) {
    framed = chunk;
  } else {
    append_chunk(framed, chunk);
  }
  push(std::move(framed));
  poke();
  return true;
}

void Outbox::finish(std::string_view last_chunk) {
  std::function<void()> unused;
  const std::lock_guard lock(mutex_);
  if (state_ != State::kStreaming || gone_) return;
  std::string framed;
  if (form_.http10) {
    framed = last_chunk;
  } else {
    if (!last_chunk.empty()) append_chunk(framed, last_chunk);
    framed += "0\r\n\r\n";
  }
  if (!form_.head_only) push(std::move(framed));
  state_ = State::kDone;
  on_gone_.swap(unused);
  poke();
}

void Outbox::abort() {
  std::function<void()> unused;
  const std::lock_guard lock(mutex_);
  if ((state_ != State::kOpen && state_ != State::kStreaming) || gone_) return;
  state_ = State::kAborted;
  on_gone_.swap(unused);
  poke();
}

bool Outbox::gone() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

void Outbox::on_gone(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!gone_) {
      const bool finished = state_ != State::kOpen && state_ != State::kStreaming;
      if (!finished) on_gone_.swap(callback);
      return;
    }
  }
  callback();
}

void Outbox::dropped() {
  const State now = state();
  if (now == State::kOpen) {
    send(500, "application/json",
         error_body(internal_error("the request was given up without an answer")), {});
  } else if (now == State::kStreaming) {
    abort();
  }
}

Outbox::State Outbox::take(std::deque<std::string>* out) {
  const std::lock_guard lock(mutex_);
  poked_ = false;
  for (std::string& bytes : queue_) out->push_back(std::move(bytes));
  queue_.clear();
  return state_;
}

Outbox::State Outbox::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

void Outbox::written(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  backlog_ -= std::min(bytes, backlog_);
}

bool Outbox::keeps_alive() const {
  const std::lock_guard lock(mutex_);
  return keep_alive_;
}

void Outbox::detach() {
  std::function<void()> poke;
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    poke.swap(poke_);
    callback.swap(on_gone_);
    if (state_ == State::kOpen || state_ == State::kStreaming) gone_ = true;
    if (!gone_) callback = nullptr;
  }
  if (callback) callback();
}

}  // namespace kvd::http
