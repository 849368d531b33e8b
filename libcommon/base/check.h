// KVD_CHECK: an assertion that stays in every build. A failed one is a bug in kvd: the process
// prints where and aborts. Input from outside is never checked this way.
#pragma once

namespace kvd {
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
}  // namespace kvd

#define KVD_CHECK(expression) \
  (static_cast<bool>(expression) ? void(0) : ::kvd::check_failed(#expression, __FILE__, __LINE__))
