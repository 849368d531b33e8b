#include <algorithm>
#include <utility>

#include "engine/tokenizer.h"
#include "engine/utf8.h"

namespace kvd::engine {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

std::string whole_characters(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Step step = utf8_step(bytes);
    out += step.valid ? bytes.substr(0, step.bytes) : kReplacement;
    bytes.remove_prefix(step.bytes);
  }
  return out;
}

// Bytes at the end that begin a character without ending it.
std::size_t cut_tail(std::string_view bytes) {
  const std::size_t most = std::min<std::size_t>(3, bytes.size());
  for (std::size_t tail = 1; tail <= most; ++tail) {
    const Utf8Step step = utf8_step(bytes.substr(bytes.size() - tail));
    if (step.cut && step.bytes == tail) return tail;
  }
  return 0;
}

// The longest end of `text` that begins a stop string.
std::size_t stop_tail(std::string_view text, const std::vector<std::string>& stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) {
    std::size_t tail = std::min(stop.size() - 1, text.size());
    for (; tail > longest; --tail) {
      if (text.ends_with(std::string_view(stop).substr(0, tail))) longest = tail;
    }
  }
  return longest;
}

}  // namespace

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop)
    : tokenizer_(tokenizer), stop_(std::move(stop)) {
  std::erase_if(stop_, [](const std::string& s) { return s.empty(); });
}

std::string TextStream::push(TokenId token) {
  if (stopped_) return "";
  // Byte by byte, so that the result does not depend on where tokens end: the first stop string to
  // be complete wins, of two complete at once the longer.
  for (char c : tokenizer_->decode(token)) {
    pending_.push_back(c);
    std::size_t matched = 0;
    for (const std::string& stop : stop_) {
      if (pending_.ends_with(stop)) matched = std::max(matched, stop.size());
    }
    if (matched == 0) continue;
    stopped_ = true;
    const std::string out =
        whole_characters(std::string_view(pending_).substr(0, pending_.size() - matched));
    pending_.clear();
    return out;
  }
  std::size_t certain = pending_.size() - stop_tail(pending_, stop_);
  const auto continues = [&](std::size_t i) {
    return i == pending_.size() || (static_cast<unsigned char>(pending_[i]) & 0xc0U) == 0x80U;
  };
  if (continues(certain)) certain -= cut_tail(std::string_view(pending_).substr(0, certain));
  const std::string out = whole_characters(std::string_view(pending_).substr(0, certain));
  pending_.erase(0, certain);
  return out;
}

std::string TextStream::finish() {
  const std::string out = whole_characters(pending_);
  pending_.clear();
  return out;
}

}  // namespace kvd::engine
