#include "cli/json_value.h"

#include <catch2/catch.hpp>

#include "cli/input.h"

namespace kvd::cli {

using Catch::Matchers::Contains;

TEST_CASE("json value: a tree keeps the order, and the last of two equal names counts") {
  const auto documents = parse_json_documents(
      R"({"b":[1,-2.5,true,null,"x"],"a":{"c":18446744073709551615},"b2":1,"b2":2})");
  REQUIRE(documents.ok());
  REQUIRE(documents->size() == 1);
  const JsonValue& root = documents->front();
  REQUIRE(root.members.size() == 4);
  CHECK(root.members[0].name == "b");
  const auto& elements = root.find("b")->elements;
  REQUIRE(elements.size() == 5);
  CHECK(elements[1].number == -2.5);
  CHECK((elements[2].is(JsonValue::Kind::kBool) && elements[2].boolean));
  CHECK(elements[3].is(JsonValue::Kind::kNull));
  CHECK(elements[4].text == "x");
  CHECK(root.find("a")->number_of("c", 0) == 18446744073709551615.0);
  CHECK(root.number_of("b2", 0) == 2);
  CHECK(root.number_of("a", -1) == -1);
  CHECK(root.text_of("a").empty());
  CHECK(elements[0].find("b") == nullptr);
}

TEST_CASE("json value: documents may follow each other, on lines or not") {
  const auto documents = parse_json_documents("{\"a\":1}\n{\"a\":2} [3]\n\n\"x\"\n");
  REQUIRE(documents.ok());
  REQUIRE(documents->size() == 4);
  CHECK((*documents)[1].number_of("a", 0) == 2);
  CHECK((*documents)[3].text == "x");
  CHECK(parse_json_documents(" \n")->empty());
}

TEST_CASE("json value: what is not JSON, too deep or too much is refused with one line") {
  const auto refused = [](const std::string& text) {
    const auto documents = parse_json_documents(text);
    REQUIRE_FALSE(documents.ok());
    CHECK(documents.status().code() == StatusCode::kInvalidArgument);
    CHECK(documents.status().message().find('\n') == std::string::npos);
    return documents.status().message();
  };
  for (const char* text : {"x", "{", "[1,", "{\"a\" 1}", "\"\xff\"", "1e999", "{} }", "nul"}) {
    CAPTURE(text);
    CHECK_THAT(refused(text), Contains("not JSON"));
  }
  CHECK_THAT(refused("{} {} x"), Contains("document 3"));
  CHECK_THAT(refused(std::string(100'000, '[')), Contains("deeper than 32"));
  CHECK(parse_json_documents(std::string(32, '[') + std::string(32, ']')).ok());
  std::string many = "[0";
  for (int i = 0; i < 1'100'000; ++i) many += ",0";
  CHECK_THAT(refused(many + "]"), Contains("million values"));
  CHECK_THAT(refused(std::string(kMaxInputBytes + 1, ' ')), Contains("16 MiB"));
}

}  // namespace kvd::cli
