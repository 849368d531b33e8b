// Holds man/kvd-protocol.7 against the code, both ways.
#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "proto/commit_record.h"
#include "samples.h"

namespace kvd::proto::test {
namespace {

std::vector<std::string> page_lines() {
  std::ifstream in(KVD_SOURCE_DIR "/man/kvd-protocol.7");
  REQUIRE(in.good());
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The lines of one .Sh.
std::vector<std::string> section(const std::string& name) {
  std::vector<std::string> out;
  bool inside = false;
  for (const std::string& line : page_lines()) {
    if (line.rfind(".Sh ", 0) == 0) {
      inside = line == ".Sh " + name;
    } else if (inside) {
      out.push_back(line);
    }
  }
  INFO(name);
  REQUIRE_FALSE(out.empty());
  return out;
}

// The columns of the rows whose first cell is a number: ".It 3 Ta Register Ta ...".
std::vector<std::vector<std::string>> numbered_rows(const std::vector<std::string>& lines) {
  std::vector<std::vector<std::string>> rows;
  for (const std::string& line : lines) {
    if (line.rfind(".It ", 0) != 0 || line.size() < 5 || line[4] < '0' || line[4] > '9') continue;
    std::vector<std::string> cells{""};
    std::istringstream words(line.substr(4));
    for (std::string word; words >> word;) {
      if (word == "Ta") {
        cells.emplace_back();
      } else {
        cells.back() += (cells.back().empty() ? "" : " ") + word;
      }
    }
    rows.push_back(cells);
  }
  return rows;
}

}  // namespace

TEST_CASE("kvd-protocol.7: the table of messages is the code's") {
  std::map<int, std::string> documented;
  for (const auto& row : numbered_rows(section("MESSAGES"))) {
    REQUIRE(row.size() >= 2);
    CHECK(documented.emplace(std::stoi(row[0]), row[1]).second);
  }
  std::map<int, std::string> coded;
  for (const MessageTypeInfo& info : message_types()) {
    coded.emplace(static_cast<int>(info.type), info.name);
  }
  CHECK(documented == coded);
}

TEST_CASE("kvd-protocol.7: the fields of every message are the code's, in order") {
  // .Ss Register / .It Va layout.page_size Ta uint32 Ta yes Ta ...
  std::map<std::string, std::vector<std::string>> documented;
  std::string message;
  for (const std::string& line : section("MESSAGE FIELDS")) {
    if (line.rfind(".Ss ", 0) == 0) {
      message = line.substr(4);
      documented[message];
    } else if (line.rfind(".It Va ", 0) == 0) {
      std::istringstream words(line.substr(7));
      std::string name, ta, type, ta2, required;
      words >> name >> ta >> type >> ta2 >> required;
      documented[message].push_back(name + " " + type + " " + required);
    }
  }
  std::map<std::string, std::vector<std::string>> coded;
  for (const MessageTypeInfo& info : message_types()) {
    std::vector<std::string>& fields = coded[std::string(info.name)];
    for (const FieldInfo& field : message_fields(info.type)) {
      fields.push_back(field.name + " " + std::string(field.type) +
                       (field.required ? " yes" : " no"));
    }
  }
  for (const auto& [name, fields] : coded) {
    INFO(name);
    CHECK(documented[name] == fields);
  }
  CHECK(documented.size() == coded.size());
}

TEST_CASE("kvd-protocol.7: the commit record's table covers the record without a gap") {
  std::size_t end = 0;
  for (const auto& row : numbered_rows(section("COMMIT RECORD"))) {
    REQUIRE(row.size() >= 2);
    CHECK(std::stoul(row[0]) == end);
    end += std::stoul(row[1]);
  }
  CHECK(end == kSlotBytes);
}

}  // namespace kvd::proto::test
