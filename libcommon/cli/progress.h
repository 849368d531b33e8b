// A progress bar on stderr, where that is a terminal and TERM is not "dumb"; elsewhere nothing.
// Colour only without NO_COLOR. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"

namespace kvd::cli {

class Progress {
 public:
  // `total` 0: unknown, only the count is shown.
  Progress(std::string label, std::uint64_t total);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Draws at most ten times a second.
  void update(std::uint64_t done);

 private:
  std::string label_;
  std::uint64_t total_;
  bool active_ = false;
  bool colour_ = false;
  SteadyClock clock_;
  TimePoint next_{0};
};

// The line that `update` draws, without colour: for tests.
std::string progress_line(const std::string& label, std::uint64_t done, std::uint64_t total);
// True when colour may be written to file descriptor `fd`.
bool colour_allowed(int fd);

}  // namespace kvd::cli
