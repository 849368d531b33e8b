// JSON documents as trees: for what is looked through without knowing its fields beforehand, as
// results of measurements are. Lines of requests are read by input.h.
//
// Bounds: 16 MiB of text, 32 levels, a million values. One thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::cli {

struct JsonMember;

struct JsonValue {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;             // kBool
  double number = 0;                // kNumber
  std::string text;                 // kString
  std::vector<JsonValue> elements;  // kArray
  std::vector<JsonMember> members;  // kObject, in the document's order

  bool is(Kind wanted) const { return kind == wanted; }
  // Null where this is no object or has no such member. Of a name given twice the last one counts.
  const JsonValue* find(std::string_view name) const;
  // The member's text or number; the default where there is none of that kind.
  std::string text_of(std::string_view name) const;
  double number_of(std::string_view name, double otherwise) const;
};

struct JsonMember {
  std::string name;
  JsonValue value;
};

// Documents that follow each other, with or without newlines between them. kInvalidArgument: what
// is wrong, and in which document.
Result<std::vector<JsonValue>> parse_json_documents(std::string_view text);

}  // namespace kvd::cli
