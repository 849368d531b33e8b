// What a router and a client read from a server: an HTTP answer cut into pieces anywhere, its
// events, its JSON, bodies with fields set in them, and URLs. The first byte chooses the length of
// the pieces.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/units.h"
#include "http/body_edit.h"
#include "http/response_parser.h"
#include "http/url.h"

namespace {

class Sink final : public kvd::http::ResponseSink {
 public:
  void on_head(kvd::http::ResponseHead head) override {
    ++heads;
    KVD_CHECK(head.status >= 0 && head.status < 1000);
  }
  void on_data(std::string_view data) override {
    KVD_CHECK(heads == 1);
    body.append(data);
  }
  int heads = 0;
  std::string body;
};

struct Read {
  bool complete = false;
  std::string body;
};

Read read_answer(std::string_view stream, std::size_t piece) {
  Sink sink;
  kvd::http::ResponseParser parser(sink, false);
  Read out;
  std::string pending;
  bool failed = false;
  while (!stream.empty() && !failed && !parser.complete()) {
    const std::size_t n = std::min(piece, stream.size());
    pending.append(stream.substr(0, n));
    stream.remove_prefix(n);
    const auto used = parser.feed(pending);
    failed = !used.ok();
    if (used.ok()) {
      KVD_CHECK(*used <= pending.size());
      pending.erase(0, *used);
    }
  }
  out.complete = !failed && (parser.complete() || parser.complete_at_eof());
  out.body = std::move(sink.body);
  return out;
}

void check_events(std::string_view stream, std::size_t piece) {
  kvd::http::SseReader whole, cut;
  const auto all = whole.feed(stream);
  std::size_t seen = 0;
  for (std::size_t at = 0; at < stream.size(); at += piece) {
    const auto some = cut.feed(stream.substr(at, piece));
    if (!some.ok()) return;
    for (const std::string& event : *some) {
      KVD_CHECK(all.ok() && seen < all->size() && (*all)[seen] == event);
      ++seen;
    }
  }
  KVD_CHECK(!all.ok() || seen == all->size());
}

void check_bodies(std::string_view text) {
  static_cast<void>(kvd::http::parse_answer(text));
  const auto set = kvd::http::set_fields(text, {{"kvd_prefill", "null"}});
  if (set.ok()) {
    KVD_CHECK(kvd::is_valid_utf8(*set));
    KVD_CHECK(kvd::http::set_fields(*set, {{"kvd_prefill", "null"}}).ok());
    KVD_CHECK(kvd::http::merge_bodies(text, *set).ok());
  }
  static_cast<void>(kvd::http::set_fields("{}", {{"f", std::string(text)}}));
  const auto url = kvd::http::parse_url(text);
  if (url.ok()) KVD_CHECK(!url->target.empty() && url->target.front() == '/');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t piece = 1 + data[0] % 32;
  const Read whole = read_answer(text, std::max<std::size_t>(text.size(), 1));
  const Read cut = read_answer(text, piece);
  // What is whole does not depend on where the stream was cut. What is not may be refused sooner or
  // later: Beast looks at a head again only when it has some bytes more.
  KVD_CHECK(cut.complete == whole.complete);
  if (whole.complete) KVD_CHECK(cut.body == whole.body);
  check_events(text, piece);
  check_bodies(text);
  return 0;
}
