// kvd-protocol.7 prints the table of transitions; page and code are compared both ways.
#include <catch2/catch.hpp>
#include <fstream>
#include <iostream>
#include <set>
#include <string>

#include "room/room.h"

namespace kvd::room {
namespace {

std::string phase(RoomState state, Drain drain) {
  std::string text(to_string(state));
  if (drain != Drain::kNone) text += "/" + std::string(to_string(drain));
  return text;
}

// One line of the page: role, state, event -> next state, actions (or "violation").
std::string line_of(const Row& row) {
  std::string line(to_string(row.role));
  line += " " + phase(row.state, row.drain) + " " + std::string(to_string(row.event)) + " -> ";
  if (row.to.verdict == Verdict::kViolation) return line + "violation";
  line += phase(row.to.state, row.to.drain);
  for (Action action : row.to.actions) line += " " + std::string(to_string(action));
  return line;
}

// The rows of the section; its subsections name the role.
std::set<std::string> page_lines() {
  std::ifstream page(KVD_PROTOCOL_PAGE);
  std::set<std::string> lines;
  std::string line, role;
  bool inside = false;
  while (std::getline(page, line)) {
    if (line.starts_with(".Sh ")) inside = line == ".Sh ROOM STATES";
    if (line.starts_with(".Ss ")) role = line == ".Ss Sender" ? "sender " : "receiver ";
    const bool row = !line.starts_with(".") && line.find(" -> ") != std::string::npos;
    if (inside && row) lines.insert(role + line);
  }
  return lines;
}

TEST_CASE("protocol page: its table of transitions is the code's, both ways") {
  std::set<std::string> code;
  for (const Row& row : table()) code.insert(line_of(row));
  CHECK(code.size() == table().size());
  const std::set<std::string> page = page_lines();
  for (const std::string& line : code) {
    INFO("not in the page: " << line);
    CHECK(page.contains(line));
  }
  for (const std::string& line : page) {
    INFO("not in the code: " << line);
    CHECK(code.contains(line));
  }
}

// Prints what belongs into the page: kvd_test_room '[print]'.
TEST_CASE("protocol page: the rows of the table", "[.][print]") {
  for (const Row& row : table()) std::cout << line_of(row) << '\n';
  CHECK_FALSE(table().empty());
}

}  // namespace
}  // namespace kvd::room
