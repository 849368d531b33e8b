#include "cli/exit_code.h"

namespace kvd::cli {

int exit_code(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return kExitOk;
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kUnauthorized:
      return kExitUsage;
    case StatusCode::kNoProvider:
      return kExitNoProvider;
    case StatusCode::kUnavailable:
    case StatusCode::kDeadline:
      return kExitUnreachable;
    case StatusCode::kIncompatible:
      return kExitIncompatible;
    case StatusCode::kCorrupted:
      return kExitCorrupted;
    case StatusCode::kResourceExhausted:
    case StatusCode::kFailed:
    case StatusCode::kCancelled:
    case StatusCode::kAgain:
    case StatusCode::kInternal:
      return kExitPartial;
  }
  return kExitPartial;
}

}  // namespace kvd::cli
