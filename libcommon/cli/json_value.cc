#include "cli/json_value.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/input.h"

namespace kvd::cli {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxValues = 1u << 20;

// Builds the tree while the parser reads, so that no text can make it deep or large first.
class Builder {
 public:
  explicit Builder(std::size_t* values) : values_(values) {}

  bool null() { return add({}); }
  bool boolean(bool b) {
    JsonValue value;
    value.kind = JsonValue::Kind::kBool;
    value.boolean = b;
    return add(std::move(value));
  }
  bool number_integer(json::number_integer_t n) { return add_number(static_cast<double>(n)); }
  bool number_unsigned(json::number_unsigned_t n) { return add_number(static_cast<double>(n)); }
  bool number_float(json::number_float_t n, const std::string&) { return add_number(n); }
  bool string(std::string& text) {
    JsonValue value;
    value.kind = JsonValue::Kind::kString;
    value.text = std::move(text);
    return add(std::move(value));
  }
  bool binary(json::binary_t&) { return false; }  // not in text
  bool start_object(std::size_t) { return open(JsonValue::Kind::kObject); }
  bool start_array(std::size_t) { return open(JsonValue::Kind::kArray); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    name_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const json::exception& error) {
    const std::string what = error.what();
    const std::size_t place = what.find("] ");  // behind "[json.exception.parse_error.101"
    error_ = "not JSON: " + what.substr(place == std::string::npos ? 0 : place + 2);
    return false;
  }

  JsonValue take() { return std::move(root_); }
  const std::string& error() const { return error_; }

 private:
  bool add_number(double number) {
    JsonValue value;
    value.kind = JsonValue::Kind::kNumber;
    value.number = number;
    return add(std::move(value));
  }

  bool add(JsonValue value) { return place(std::move(value)) != nullptr; }

  bool open(JsonValue::Kind kind) {
    if (open_.size() >= kMaxDepth) {
      error_ = "JSON is nested deeper than 32 levels";
      return false;
    }
    JsonValue value;
    value.kind = kind;
    JsonValue* const placed = place(std::move(value));
    if (placed != nullptr) open_.push_back(placed);
    return placed != nullptr;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  // A container does not grow while one inside it is open, so that the pointers stay good.
  JsonValue* place(JsonValue value) {
    if (++*values_ > kMaxValues) {
      error_ = "JSON has more than a million values";
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    JsonValue& parent = *open_.back();
    if (parent.is(JsonValue::Kind::kArray)) return &parent.elements.emplace_back(std::move(value));
    parent.members.push_back({std::move(name_), std::move(value)});
    return &parent.members.back().value;
  }

  std::size_t* values_;  // of all documents
  JsonValue root_;
  std::vector<JsonValue*> open_;
  std::string name_;
  std::string error_;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view name) const {
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->name == name) return &member->value;
  }
  return nullptr;
}

std::string JsonValue::text_of(std::string_view name) const {
  const JsonValue* const value = find(name);
  return value != nullptr && value->is(Kind::kString) ? value->text : std::string();
}

double JsonValue::number_of(std::string_view name, double otherwise) const {
  const JsonValue* const value = find(name);
  return value != nullptr && value->is(Kind::kNumber) ? value->number : otherwise;
}

Result<std::vector<JsonValue>> parse_json_documents(std::string_view text) {
  if (text.size() > kMaxInputBytes) return invalid_argument("longer than 16 MiB");
  std::istringstream in{std::string(text)};
  std::vector<JsonValue> documents;
  std::size_t values = 0;
  while (!(in >> std::ws).eof()) {
    Builder builder(&values);
    if (!json::sax_parse(in, &builder, json::input_format_t::json, false)) {
      const std::string where =
          documents.empty() ? "" : "document " + std::to_string(documents.size() + 1) + ": ";
      return invalid_argument(where + builder.error());
    }
    documents.push_back(builder.take());
  }
  return documents;
}

}  // namespace kvd::cli
