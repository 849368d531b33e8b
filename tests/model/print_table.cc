// Prints the table of room transitions, one row a line, for comparison with the model's.
#include <iostream>
#include <string>

#include "room/room.h"

int main() {
  for (const kvd::room::Row& row : kvd::room::table()) {
    std::string line(to_string(row.role));
    for (const std::string_view word :
         {to_string(row.state), to_string(row.drain), to_string(row.event)}) {
      line += " ";
      line += word;
    }
    if (row.to.verdict == kvd::room::Verdict::kViolation) {
      line += " violation";
    } else {
      line += " ";
      line += to_string(row.to.state);
      line += " ";
      line += to_string(row.to.drain);
      for (const kvd::room::Action action : row.to.actions) {
        line += " ";
        line += to_string(action);
      }
    }
    std::cout << line << '\n';
  }
}
