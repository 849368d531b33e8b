#include "cli/input.h"

#include <unistd.h>

#include <catch2/catch.hpp>

namespace kvd::cli {
namespace {

// A pipe whose writer has written `text` and closed.
class Piped {
 public:
  explicit Piped(const std::string& text) {
    int fds[2];
    REQUIRE(::pipe(fds) == 0);
    REQUIRE(::write(fds[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    ::close(fds[1]);
    fd_ = fds[0];
  }
  ~Piped() { ::close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

std::vector<std::string> lines_of(const std::string& text) {
  const Piped piped(text);
  InputReader reader(piped.fd());
  std::vector<std::string> out;
  std::string line;
  while (true) {
    const auto more = reader.next_line(&line);
    REQUIRE(more.ok());
    if (!*more) return out;
    out.push_back(line);
  }
}

}  // namespace

TEST_CASE("input: lines lose their ends, and a last line needs none") {
  CHECK(lines_of("a\nb\r\n\nc") == std::vector<std::string>{"a", "b", "", "c"});
  CHECK(lines_of("a\n") == std::vector<std::string>{"a"});
  CHECK(lines_of("").empty());
  const std::string longer(60'000, 'x');
  CHECK(lines_of(longer + "\ny") == std::vector<std::string>{longer, "y"});
}

TEST_CASE("input: a whole text keeps its newlines") {
  const Piped piped("a\nb\n");
  InputReader reader(piped.fd());
  const auto text = reader.read_all();
  REQUIRE(text.ok());
  CHECK(*text == "a\nb\n");
}

TEST_CASE("json line: fields keep their JSON, strings their text") {
  const auto fields =
      parse_json_object(R"({"id":"a\n","prompt":[1,2],"seed":18446744073709551615})");
  REQUIRE(fields.ok());
  REQUIRE(fields->size() == 3);
  CHECK((*fields)[0].name == "id");
  CHECK((*fields)[0].text == "a\n");
  CHECK((*fields)[1].json == "[1,2]");
  CHECK_FALSE((*fields)[1].is_string);
  CHECK((*fields)[2].json == "18446744073709551615");
}

TEST_CASE("json numbers: each by its path, and nothing else") {
  const auto numbers = parse_json_numbers(R"({"a":1,"b":[{"c":2.5},"x",[3]],"d":"4","e":true})");
  REQUIRE(numbers.ok());
  CHECK(*numbers == std::map<std::string, double>{{"a", 1}, {"b.0.c", 2.5}, {"b.2.0", 3}});
  CHECK_FALSE(parse_json_numbers("[1]").ok());
}

TEST_CASE("json line: what is no object is refused with one line") {
  for (const char* text : {"", "x", "[1]", "{\"a\":1} {", "{\"a\":\"\xff\"}"}) {
    const auto fields = parse_json_object(text);
    CAPTURE(text);
    REQUIRE_FALSE(fields.ok());
    CHECK(fields.status().code() == StatusCode::kInvalidArgument);
    CHECK(fields.status().message().find('\n') == std::string::npos);
  }
  const auto deep =
      parse_json_object("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}");
  REQUIRE_FALSE(deep.ok());
  CHECK(deep.status().message() == "JSON is nested deeper than 32 levels");
}

}  // namespace kvd::cli
