#include "kvd-bench/thresholds.h"

#include <charconv>
#include <cmath>

#include "base/units.h"
#include "cli/suggest.h"

namespace kvd::tools {
namespace {

using cli::JsonValue;
using Kind = cli::JsonValue::Kind;

constexpr std::size_t kMaxSteps = 32;  // as deep as documents are

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::optional<double> plain_number(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && std::isfinite(number) ? std::optional(number) : std::nullopt;
}

std::optional<double> limit_of(const std::string& path, std::string_view text) {
  if (text == "true" || text == "false") return text == "true" ? 1 : 0;
  if (const auto number = plain_number(text)) return number;
  if (text.ends_with('%')) {
    const auto number = plain_number(text.substr(0, text.size() - 1));
    return number ? std::optional(*number / 100) : std::nullopt;
  }
  const auto duration = parse_duration(text);
  const auto ns = [&] { return static_cast<double>(duration->count()); };
  if (path.find("_ns") != std::string::npos && duration.ok()) return ns();
  if (path.find("_us") != std::string::npos && duration.ok()) return ns() / 1e3;
  if (path.find("_ms") != std::string::npos && duration.ok()) return ns() / 1e6;
  const auto bytes = parse_bytes(text);
  if (path.find("bytes") != std::string::npos && bytes.ok()) return static_cast<double>(*bytes);
  return std::nullopt;
}

// Whether a member has the value that a choice names: as text, or as a number or a size.
bool matches(const JsonValue& value, const std::string& wanted) {
  if (scalar_text(value) == wanted) return true;
  if (!value.is(Kind::kNumber)) return false;
  if (const auto number = plain_number(wanted)) return value.number == *number;
  const auto bytes = parse_bytes(wanted);
  return bytes.ok() && value.number == static_cast<double>(*bytes);
}

// Every path to a number, for the nearest name; without choices.
void collect_paths(const JsonValue& value, const std::string& path, std::vector<std::string>* out) {
  if (value.is(Kind::kNumber) || value.is(Kind::kBool)) out->push_back(path);
  for (const auto& [name, member] : value.members) {
    collect_paths(member, path.empty() ? name : path + "." + name, out);
  }
  // Elements of a list are alike.
  if (!value.elements.empty()) collect_paths(value.elements.front(), path, out);
}

}  // namespace

Status Threshold::parse_choice(std::string_view text, Step* step) {
  if (text.empty()) return invalid_argument("nothing between the brackets");
  std::size_t index = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (error == std::errc() && stop == text.data() + text.size()) {
    step->index = index;
    return {};
  }
  while (!text.empty()) {
    const std::string_view pair = text.substr(0, text.find(','));
    text.remove_prefix(std::min(pair.size() + 1, text.size()));
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0) {
      return invalid_argument("brackets take a number, or NAME=VALUE,...");
    }
    step->where.emplace_back(trimmed(pair.substr(0, equals)), trimmed(pair.substr(equals + 1)));
  }
  return {};
}

Result<std::vector<Threshold::Step>> Threshold::parse_path(std::string_view path) {
  std::vector<Step> steps;
  // The cases themselves are the list at the root.
  if (!path.starts_with('[')) steps.push_back({});
  while (!path.empty()) {
    if (steps.size() > kMaxSteps) return invalid_argument("too many names in the path");
    const std::size_t end = std::min(path.find_first_of(".["), path.size());
    Step step;
    step.name = std::string(path.substr(0, end));
    path.remove_prefix(end);
    if (step.name.empty() && !(steps.empty() && path.starts_with('['))) {
      return invalid_argument("a name is missing in the path");
    }
    if (path.starts_with('[')) {
      const std::size_t close = path.find(']');
      if (close == std::string_view::npos) return invalid_argument("'[' is not closed");
      KVD_RETURN_IF_ERROR(parse_choice(path.substr(1, close - 1), &step));
      path.remove_prefix(close + 1);
    }
    if (!path.empty() && path.front() != '.') {
      return invalid_argument("after ']' comes a '.' or an operator");
    }
    if (path == ".") return invalid_argument("a name is missing in the path");
    if (!path.empty()) path.remove_prefix(1);
    steps.push_back(std::move(step));
  }
  return steps;
}

Result<Threshold> Threshold::parse(const std::string& text) {
  const auto wrong = [&text](const std::string& what) {
    return invalid_argument("--threshold " + text + ": " + what +
                            "; a threshold is for example 'ratio_to_ceiling>=0.95' or "
                            "'latency_ns.p99<2ms'");
  };
  // '=' between brackets belongs to a choice.
  std::size_t place = 0;
  for (bool inside = false; place < text.size(); ++place) {
    if (text[place] == '[') inside = true;
    if (text[place] == ']') inside = false;
    if (!inside && std::string_view("<>=!").find(text[place]) != std::string_view::npos) break;
  }
  if (place == text.size()) return wrong("no operator: > >= < <= == !=");
  Threshold out;
  out.text_ = text;
  out.path_ = std::string(trimmed(std::string_view(text).substr(0, place)));
  const bool two = place + 1 < text.size() && text[place + 1] == '=';
  out.operator_ = text.substr(place, two ? 2 : 1);
  if (out.operator_ == "=" || out.operator_ == "!") return wrong("operators are > >= < <= == !=");
  if (out.path_.empty()) return wrong("no figure before " + out.operator_);
  auto steps = parse_path(out.path_);
  if (!steps.ok()) return wrong(steps.status().message());
  out.steps_ = std::move(*steps);
  const std::string_view value =
      trimmed(std::string_view(text).substr(place + out.operator_.size()));
  const auto limit = limit_of(out.path_, value);
  if (!limit) {
    return wrong("\"" + std::string(value) + "\" is not a number, or a unit that its name has not");
  }
  out.limit_ = *limit;
  return out;
}

bool Threshold::chosen(const Step& step, std::size_t number, const JsonValue& element) {
  if (step.index && *step.index != number) return false;
  for (const auto& [name, wanted] : step.where) {
    const JsonValue* member = element.find(name);
    if (member == nullptr || !matches(*member, wanted)) return false;
  }
  return true;
}

void Threshold::follow(const JsonValue& value, const std::string& path,
                       const std::vector<Step>& steps, std::size_t next, Found* out) {
  if (value.is(Kind::kArray)) {
    for (std::size_t i = 0; i < value.elements.size(); ++i) {
      if (!chosen(steps[next - 1], i, value.elements[i])) continue;
      follow(value.elements[i], path + "[" + std::to_string(i) + "]", steps, next, out);
    }
    return;
  }
  if (next == steps.size()) {
    out->emplace_back(path, &value);
    return;
  }
  const JsonValue* member = value.find(steps[next].name);
  if (member == nullptr) return;
  const bool choice = steps[next].index || !steps[next].where.empty();
  if (choice && !member->is(Kind::kArray)) return;
  follow(*member, path.empty() ? steps[next].name : path + "." + steps[next].name, steps, next + 1,
         out);
}

bool Threshold::holds(double value) const {
  if (operator_ == ">") return value > limit_;
  if (operator_ == ">=") return value >= limit_;
  if (operator_ == "<") return value < limit_;
  if (operator_ == "<=") return value <= limit_;
  return (value == limit_) == (operator_ == "==");
}

Status Threshold::unknown(const std::vector<ResultCase>& cases) const {
  std::vector<std::string> paths;
  for (const ResultCase& one : cases) collect_paths(one.document, "", &paths);
  std::string plain;
  for (const Step& step : steps_) plain += (plain.empty() ? "" : ".") + step.name;
  std::string inside;
  for (const std::string& path : paths) {
    if (inside.empty() && path.starts_with(plain + ".")) inside = path;
  }
  const std::string near = cli::nearest(plain, paths);
  std::string hint;
  if (!inside.empty()) {
    hint = "; a number in it is " + inside;
  } else if (!near.empty() && near != plain) {
    hint = "; did you mean " + near + "?";
  } else if (near == plain) {
    hint = "; the brackets choose none of them";
  }
  return invalid_argument("--threshold " + text_ + ": no such figure in " +
                          (cases.empty() ? "the results" : cases.front().file) + hint);
}

Result<std::vector<Threshold::Finding>> Threshold::check(
    const std::vector<ResultCase>& cases) const {
  std::vector<Finding> findings;
  for (std::size_t number = 0; number < cases.size(); ++number) {
    if (!chosen(steps_.front(), number, cases[number].document)) continue;
    Found found;
    follow(cases[number].document, "", steps_, 1, &found);
    for (const auto& [path, value] : found) {
      if (value->is(Kind::kObject) || value->is(Kind::kString)) continue;
      Finding finding;
      finding.number = number;
      finding.path = path;
      if (value->is(Kind::kNumber)) finding.value = value->number;
      if (value->is(Kind::kBool)) finding.value = value->boolean ? 1 : 0;
      finding.passed = finding.value && holds(*finding.value);
      findings.push_back(std::move(finding));
    }
  }
  if (findings.empty()) return unknown(cases);
  return findings;
}

}  // namespace kvd::tools
