#include "base/status.h"

namespace kvd {

std::string_view to_string(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kInvalidArgument:
      return "invalid_argument";
    case StatusCode::kNotFound:
      return "not_found";
    case StatusCode::kUnauthorized:
      return "unauthorized";
    case StatusCode::kResourceExhausted:
      return "resource_exhausted";
    case StatusCode::kUnavailable:
      return "unavailable";
    case StatusCode::kDeadline:
      return "deadline";
    case StatusCode::kIncompatible:
      return "incompatible";
    case StatusCode::kCorrupted:
      return "corrupted";
    case StatusCode::kNoProvider:
      return "no_provider";
    case StatusCode::kFailed:
      return "failed";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kAgain:
      return "again";
    case StatusCode::kInternal:
      return "internal";
  }
  return "unknown";
}

Status Status::with_context(std::string_view context) const {
  if (ok()) return *this;
  return {code_, std::string(context) + ": " + message_};
}

}  // namespace kvd
