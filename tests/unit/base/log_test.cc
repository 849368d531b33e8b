#include "base/log.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <functional>
#include <string>

using namespace kvd;

namespace {

// What `body` writes to stderr.
std::string captured(const std::function<void()>& body) {
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  const int saved = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  close(ends[1]);
  body();
  dup2(saved, STDERR_FILENO);
  close(saved);
  std::string out(65536, '\0');
  const ssize_t got = read(ends[0], out.data(), out.size());
  close(ends[0]);
  out.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return out;
}

}  // namespace

TEST_CASE("log: text has the message and its fields, a newline in a field stays in its line") {
  configure_log(LogLevel::kInfo, LogFormat::kText, "test");
  const std::string line = captured([] {
    log_info("link ready", {{"peer", "a\nforged line"}, {"epoch", 3}});
  });
  CHECK(line.find("link ready peer=\"a\\u000aforged line\" epoch=3\n") != std::string::npos);
  CHECK(std::count(line.begin(), line.end(), '\n') == 1);
}

TEST_CASE("log: JSON quotes text and leaves numbers bare; a level below the set one is silent") {
  configure_log(LogLevel::kWarn, LogFormat::kJson, "test");
  const std::string line = captured([] {
    log_info("not shown");
    log_warn("room \"failed\"", {{"room", RoomId{255}}, {"pages", 3}, {"drained", true}});
  });
  CHECK(line.find("not shown") == std::string::npos);
  CHECK(line.find("\"message\":\"room \\\"failed\\\"\",\"room\":\"00000000000000ff\",\"pages\":3,"
                  "\"drained\":true}") != std::string::npos);
  configure_log(LogLevel::kInfo, LogFormat::kText, "test");
}

TEST_CASE("log: the rate limit lets one through an interval and counts the rest") {
  RateLimit limit(Duration(1000));
  std::uint64_t suppressed = 0;
  CHECK(limit.allow(TimePoint{1}, &suppressed));
  CHECK_FALSE(limit.allow(TimePoint{500}, &suppressed));
  CHECK_FALSE(limit.allow(TimePoint{900}, &suppressed));
  CHECK(limit.allow(TimePoint{1001}, &suppressed));
  CHECK(suppressed == 2);
}
