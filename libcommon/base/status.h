// Status and Result: how faults travel. Bugs are caught by KVD_CHECK (check.h), never by a Status.
//
// The first function that decides something is an error logs it, if it is worth a line; callers
// pass the Status on. The message is one line, lower case, without a final stop, and says what to
// do where that is known.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace kvd {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // the caller's input: exit 2, HTTP 400
  kNotFound,           // HTTP 404
  kUnauthorized,       // HTTP 401
  kResourceExhausted,  // a pool, queue or table is full: HTTP 503
  kUnavailable,        // the peer is not there, or went away: exit 4, HTTP 503
  kDeadline,           // a deadline passed: exit 4, HTTP 504
  kIncompatible,       // the peer is of another version, model or layout: exit 5
  kCorrupted,          // data is not what was sent: exit 6, HTTP 502
  kNoProvider,         // no provider, device or permission: exit 3
  kFailed,             // the transfer or the request failed: exit 7, HTTP 502
  kCancelled,          // whoever asked went away
  kAgain,              // not now (EAGAIN): try again after progress; never shown to a user
  kInternal,
};

std::string_view to_string(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // The same fault with "context: " in front.
  Status with_context(std::string_view context) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status invalid_argument(std::string m) {
  return {StatusCode::kInvalidArgument, std::move(m)};
}
inline Status unavailable(std::string m) { return {StatusCode::kUnavailable, std::move(m)}; }
inline Status internal_error(std::string m) { return {StatusCode::kInternal, std::move(m)}; }

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit
  Result(Status status) : status_(std::move(status)) { KVD_CHECK(!status_.ok()); }  // NOLINT

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    KVD_CHECK(value_.has_value());
    return *value_;
  }
  const T& value() const& {
    KVD_CHECK(value_.has_value());
    return *value_;
  }
  T&& value() && {
    KVD_CHECK(value_.has_value());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

#define KVD_RETURN_IF_ERROR(expr)                                                  \
  do {                                                                             \
    if (::kvd::Status kvd_status_ = (expr); !kvd_status_.ok()) return kvd_status_; \
  } while (0)

}  // namespace kvd
