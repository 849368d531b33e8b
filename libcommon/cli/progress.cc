#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace kvd::cli {
namespace {

constexpr std::uint64_t kBarWidth = 30;
constexpr Duration kRedraw{100'000'000};

bool usable_terminal(int fd) {
  const char* term = std::getenv("TERM");
  return ::isatty(fd) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace

bool colour_allowed(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  return usable_terminal(fd) && (no_color == nullptr || no_color[0] == '\0');
}

std::string progress_line(const std::string& label, std::uint64_t done, std::uint64_t total) {
  if (total == 0) return label + " " + std::to_string(done);
  const std::uint64_t shown = std::min(done, total);
  const auto filled =
      static_cast<std::size_t>(static_cast<double>(shown) / static_cast<double>(total) * kBarWidth);
  return label + " [" + std::string(filled, '#') + std::string(kBarWidth - filled, '.') + "] " +
         std::to_string(done) + "/" + std::to_string(total);
}

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)),
      total_(total),
      active_(usable_terminal(STDERR_FILENO)),
      colour_(colour_allowed(STDERR_FILENO)) {}

Progress::~Progress() {
  if (active_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::uint64_t done) {
  if (!active_) return;
  const TimePoint now = clock_.now();
  if (now < next_ && done != total_) return;
  next_ = now + kRedraw;
  const std::string line = progress_line(label_, done, total_);
  std::fprintf(stderr, "\r\x1b[K%s%s%s", colour_ ? "\x1b[36m" : "", line.c_str(),
               colour_ ? "\x1b[0m" : "");
  std::fflush(stderr);
}

}  // namespace kvd::cli
