// One HTTP answer taken apart as it comes: head, then pieces of the body with chunk borders kept
// (SSE events travel one a chunk; a proxy passes them on as they are).
//
// Single-threaded. The sink is called from feed() and must outlive the parser. Errors: kFailed
// "malformed HTTP". Included by client.cc alone: Boost is slow to compile, and the client needs it
// once.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "http/client.h"

namespace kvd::http {

class ResponseSink {
 public:
  virtual void on_head(ResponseHead head) = 0;
  virtual void on_data(std::string_view data) = 0;

 protected:
  ~ResponseSink() = default;
};

// The hooks of Beast's parser for one message.
class ResponseHooks final : public boost::beast::http::basic_parser<false> {
 public:
  static constexpr std::uint32_t kMaxHeadBytes = 64U << 10U;
  // A larger chunk is handed on in pieces of about this size.
  static constexpr std::size_t kMaxChunkBytes = 1U << 20U;

  ResponseHooks(ResponseSink& sink, bool no_body) : sink_(sink) {
    header_limit(kMaxHeadBytes);
    // Not boost::none: Boost 1.74 takes that for a limit of nothing when the length is told.
    body_limit(std::numeric_limits<std::uint64_t>::max());
    eager(true);
    if (no_body) skip(true);
  }
  bool interim() const { return head_.status / 100 == 1; }

 private:
  using error_code = boost::beast::error_code;
  using view = boost::beast::string_view;

  void on_request_impl(boost::beast::http::verb, view, view, int, error_code&) override {}
  void on_response_impl(int code, view, int, error_code&) override { head_.status = code; }
  void on_field_impl(boost::beast::http::field, view name, view value, error_code&) override {
    if (head_done_) return;  // a trailer
    std::string lower(name.data(), name.size());
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    std::string& all = head_.headers[lower];
    if (!all.empty()) all += ", ";
    all.append(value.data(), value.size());
  }
  void on_header_impl(error_code&) override {
    head_done_ = true;
    if (!interim()) sink_.on_head(head_);
  }
  void on_body_init_impl(boost::optional<std::uint64_t> const&, error_code&) override {}
  std::size_t on_body_impl(view body, error_code&) override {
    sink_.on_data({body.data(), body.size()});
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, view, error_code&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t remain, view body, error_code&) override {
    const bool whole = body.size() >= remain;
    if (whole && chunk_.empty()) {
      if (!body.empty()) sink_.on_data({body.data(), body.size()});
      return body.size();
    }
    chunk_.append(body.data(), body.size());
    if (whole || chunk_.size() >= kMaxChunkBytes) {
      sink_.on_data(chunk_);
      chunk_.clear();
    }
    return body.size();
  }
  void on_finish_impl(error_code&) override {}

  ResponseSink& sink_;
  ResponseHead head_;
  std::string chunk_;
  bool head_done_ = false;
};

class ResponseParser {
 public:
  // `no_body`: the answer to HEAD.
  ResponseParser(ResponseSink& sink, bool no_body) : sink_(sink), no_body_(no_body) { renew(); }

  // Takes bytes off the front of `in` and says how many; the rest must come again with more behind
  // it.
  Result<std::size_t> feed(std::string_view in) {
    std::size_t used = 0;
    while (used < in.size() && !hooks_->is_done()) {
      boost::beast::error_code ec;
      const std::size_t n =
          hooks_->put(boost::asio::buffer(in.data() + used, in.size() - used), ec);
      used += n;
      const bool starved = ec == boost::beast::http::error::need_more;
      if (ec && !starved) return malformed(ec.message());
      if (hooks_->is_done() && hooks_->interim()) renew();
      if (starved || n == 0) break;
    }
    // The parser bounds heads; the line of a chunk it would await for ever.
    if (!hooks_->is_done() && in.size() - used > 2 * ResponseHooks::kMaxHeadBytes) {
      return malformed("a line without end");
    }
    return used;
  }

  bool complete() const { return hooks_->is_done(); }
  // The server closed: true when that is how this answer ends.
  bool complete_at_eof() {
    if (!hooks_->got_some()) return false;  // after an interim answer; Beast would abort
    boost::beast::error_code ec;
    if (!hooks_->is_done()) hooks_->put_eof(ec);
    return !ec && hooks_->is_done();
  }
  bool keep_alive() const { return hooks_->keep_alive() && !hooks_->need_eof(); }

 private:
  static Status malformed(const std::string& what) {
    return {StatusCode::kFailed, "malformed HTTP in the answer: " + what};
  }
  void renew() { hooks_.emplace(sink_, no_body_); }

  ResponseSink& sink_;
  const bool no_body_;
  std::optional<ResponseHooks> hooks_;
};

}  // namespace kvd::http
