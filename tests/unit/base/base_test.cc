#include <poll.h>

#include <catch2/catch.hpp>
#include <set>
#include <thread>

#include "base/bounded_queue.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/units.h"

using namespace kvd;

TEST_CASE("units: sizes are binary with K and KiB, decimal with KB") {
  CHECK(*parse_bytes("64KiB") == 65536);
  CHECK(*parse_bytes("64K") == 65536);
  CHECK(*parse_bytes("64KB") == 64000);
  CHECK(*parse_bytes("1.5GiB") == 1610612736);
  CHECK(*parse_bytes("7") == 7);
  for (const char* bad : {"", "K", "64k", "-1", "64KiBx", "1e30", "nan", "inf", "64 K"}) {
    INFO(bad);
    CHECK_FALSE(parse_bytes(bad).ok());
  }
}

TEST_CASE("units: durations need a known suffix, a bare number is seconds") {
  CHECK(parse_duration("250ms")->count() == 250'000'000);
  CHECK(parse_duration("1.5s")->count() == 1'500'000'000);
  CHECK(parse_duration("10us")->count() == 10'000);
  CHECK(parse_duration("2")->count() == 2'000'000'000);
  CHECK_FALSE(parse_duration("2 s").ok());
  CHECK_FALSE(parse_duration("-2s").ok());
  CHECK(format_duration(Duration(1'250'000)) == "1.25 ms");
  CHECK(format_bytes(4u << 20) == "4 MiB");
}

TEST_CASE("units: addresses, with IPv6 in brackets only") {
  CHECK(parse_host_port("127.0.0.1:7100")->port == 7100);
  CHECK(parse_host_port("[::1]:0")->host == "::1");
  CHECK(to_string(*parse_host_port("[::1]:7100")) == "[::1]:7100");
  for (const char* bad : {"", ":1", "a", "a:", "a:70000", "::1:7100", "[::1]", "a b:1", "a:-1"}) {
    INFO(bad);
    CHECK_FALSE(parse_host_port(bad).ok());
  }
  CHECK(is_loopback("127.1.2.3"));
  CHECK_FALSE(is_loopback("127.example.org"));
  CHECK_FALSE(is_loopback("10.0.0.1"));
}

TEST_CASE("units: UTF-8 is refused where it is overlong, cut, a surrogate or too large") {
  CHECK(is_valid_utf8("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
  CHECK(is_valid_utf8(""));
  for (const char* bad : {"\xc0\x80", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\x80", "\xf8\x88\x80\x80\x80", "\xe0\x80\x80"}) {
    CHECK_FALSE(is_valid_utf8(bad));
  }
}

TEST_CASE("status: context goes in front, a result gives its value once") {
  const Status inner = unavailable("no answer");
  CHECK(inner.with_context("prefill").message() == "prefill: no answer");
  CHECK(inner.with_context("prefill").code() == StatusCode::kUnavailable);
  Result<std::unique_ptr<int>> result(std::make_unique<int>(3));
  CHECK(*std::move(result).value() == 3);
}

TEST_CASE("rng: the same seed gives the same numbers, below() stays below") {
  Rng a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const auto x = a.next();
    CHECK(x == b.next());
    differs = differs || x != c.next();
  }
  CHECK(differs);
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(a.below(5));
  CHECK(seen == std::set<std::uint64_t>{0, 1, 2, 3, 4});
}

TEST_CASE("rng: a counter draw depends on each of its three keys") {
  const auto x = counter_random(1, 2, 3);
  CHECK(x == counter_random(1, 2, 3));
  CHECK(x != counter_random(2, 2, 3));
  CHECK(x != counter_random(1, 3, 3));
  CHECK(x != counter_random(1, 2, 4));
  CHECK(counter_random(1, 2, 3) != counter_random(2, 1, 3));
}

TEST_CASE("bounded queue: full is a result, the item is kept") {
  BoundedQueue<std::string> queue(2);
  CHECK(queue.try_push("a"));
  CHECK(queue.try_push("b"));
  std::string c = "c";
  CHECK_FALSE(queue.try_push(std::move(c)));
  CHECK(c == "c");  // NOLINT: untouched when refused
  CHECK(queue.drain() == std::vector<std::string>{"a", "b"});
  CHECK(queue.drain().empty());
}

TEST_CASE("bounded queue: the waker is readable after a push into an empty queue") {
  Waker waker;
  BoundedQueue<int> queue(8, &waker);
  pollfd fd{waker.fd(), POLLIN, 0};
  CHECK(poll(&fd, 1, 0) == 0);
  CHECK(queue.try_push(1));
  CHECK(poll(&fd, 1, 0) == 1);
  waker.clear();
  CHECK(poll(&fd, 1, 0) == 0);
}

TEST_CASE(
    "bounded queue: producers and the consumer lose nothing, a waiting producer ends at close") {
  BoundedQueue<int> queue(4);
  std::vector<std::thread> producers;
  for (int p = 0; p < 4; ++p) {
    producers.emplace_back([&queue, p] {
      for (int i = 0; i < 1000; ++i) {
        int item = p * 1000 + i;
        queue.push_wait(std::move(item));
      }
    });
  }
  std::vector<int> got;
  while (got.size() < 4000 && queue.wait()) {
    for (const int x : queue.drain()) got.push_back(x);
  }
  for (std::thread& thread : producers) thread.join();
  CHECK(std::set<int>(got.begin(), got.end()).size() == 4000);
  for (int i = 0; i < 4; ++i) CHECK(queue.try_push(int{i}));
  std::thread blocked([&queue] { CHECK_FALSE(queue.push_wait(5)); });
  queue.close();
  blocked.join();
}

TEST_CASE("metrics: the same name and labels give the same metric, rendered as text") {
  Metrics metrics;
  metrics.counter("kvd_x_total", "X.", {{"a", "1"}}).add(2);
  metrics.counter("kvd_x_total", "X.", {{"a", "1"}}).add(3);
  metrics.gauge("kvd_g", "G.").set(7);
  metrics.histogram("kvd_h_seconds", "H.").observe(0.003);
  const std::string text = metrics.render();
  CHECK(text.find("kvd_x_total{a=\"1\"} 5") != std::string::npos);
  CHECK(text.find("kvd_g 7") != std::string::npos);
  CHECK(text.find("kvd_h_seconds_count 1") != std::string::npos);
  Counter{}.add();  // a handle that belongs to nothing counts nowhere
}
