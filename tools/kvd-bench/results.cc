#include "kvd-bench/results.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/units.h"
#include "cli/input.h"

namespace kvd::tools {
namespace {

using cli::JsonValue;
using Kind = cli::JsonValue::Kind;

// Cases and figures are matched each with each.
constexpr std::size_t kMaxCases = 1000, kMaxNumbers = 10'000;

// Parameters of a measurement, in the order in which they are told. What follows from them or from
// the measurement itself (runs, writes) is not here.
constexpr std::array kIdentity = {
    "kind",    "model",         "provider",      "shape",   "mode",          "tokens",
    "tp",      "page_size",     "page_bytes",    "layers",  "fragmentation", "concurrency",
    "rate",    "digest",        "wait_mode",     "threads", "batch",         "context",
    "dataset", "prompt_tokens", "output_tokens",
};

// Members of `environment` that a figure hangs on. Version and commit are what is compared.
constexpr std::array kEnvironment = {
    "cpu",
    "cores",
    "memory_bytes",
    "kernel",
    "machine",
    "tcp_congestion_control",
    "tcp_rmem",
    "tcp_wmem",
    "rmem_max",
    "wmem_max",
    "governor",
    "transparent_huge_pages",
    "huge_pages_total",
    "build_type",
    "libfabric",
    "libfabric_provider",
};

// Of the document itself, and no part of its identity.
constexpr std::array kConditions = {"kernels", "huge_pages"};

std::string kind_of(const JsonValue& document) {
  const std::string kind = document.text_of("kind");
  if (!kind.empty()) return kind;
  const bool engine = document.find("prefill") != nullptr && document.find("decode") != nullptr;
  return engine ? "engine" : "result";
}

std::size_t count_numbers(const JsonValue& value) {
  std::size_t out = value.is(Kind::kNumber) ? 1 : 0;
  for (const JsonValue& element : value.elements) out += count_numbers(element);
  for (const auto& [name, member] : value.members) out += count_numbers(member);
  return out;
}

// Adds what one document has: itself, or each of an array.
Status add_cases(const std::string& file, JsonValue document, std::vector<ResultCase>* out) {
  if (document.is(Kind::kArray)) {
    for (JsonValue& element : document.elements) {
      KVD_RETURN_IF_ERROR(add_cases(file, std::move(element), out));
    }
    return {};
  }
  if (!document.is(Kind::kObject)) return invalid_argument("not a result: no JSON object");
  if (const JsonValue* error = document.find("error"); error != nullptr) {
    return invalid_argument("a failure, not a result: " + error->text_of("message"));
  }
  const std::string event = document.text_of("event");
  if (!event.empty() && event != "end") return {};
  ResultCase one;
  one.file = file;
  one.kind = kind_of(document);
  one.document = std::move(document);
  out->push_back(std::move(one));
  return {};
}

Result<std::string> read_text(const std::string& file) {
  if (file == "-") return cli::InputReader(STDIN_FILENO).read_all();
  std::ifstream in(file, std::ios::binary);
  if (!in) return invalid_argument(std::string("cannot be opened: ") + std::strerror(errno));
  std::string text(cli::kMaxInputBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return invalid_argument("cannot be read");
  text.resize(static_cast<std::size_t>(in.gcount()));
  return text;
}

std::string load_warning(const char* which, const JsonValue& environment) {
  const JsonValue* load = environment.find("load_average");
  const double cores = environment.number_of("cores", 0);
  if (load == nullptr || load->elements.empty() || cores <= 0) return {};
  const JsonValue& one = load->elements.front();
  if (!one.is(Kind::kNumber) || one.number <= cores) return {};
  return std::string(which) + " was measured under a load of " + number_text(one.number) + " on " +
         number_text(cores) + " cores";
}

void add_own_warnings(const char* which, const ResultCase& one, std::vector<std::string>* out) {
  const JsonValue* partial = one.document.find("partial");
  if (partial != nullptr && partial->boolean) {
    out->push_back(std::string(which) + " ended early: its figures are partial");
  }
  const JsonValue* environment = one.document.find("environment");
  if (environment == nullptr) return;
  const std::string load = load_warning(which, *environment);
  if (!load.empty()) out->push_back(load);
}

template <typename Names>
void add_differences(const JsonValue& a, const JsonValue& b, const Names& names,
                     std::vector<std::string>* out) {
  for (const char* name : names) {
    const JsonValue *left = a.find(name), *right = b.find(name);
    if (left == nullptr || right == nullptr) continue;
    const std::string x = scalar_text(*left), y = scalar_text(*right);
    // Kernels keep a little of the memory for themselves, not always the same.
    const bool near = std::strcmp(name, "memory_bytes") == 0 &&
                      std::abs(left->number - right->number) < 0.01 * left->number;
    if (x != y && !near) out->push_back(std::string(name) + " differs: " + x + ", then " + y);
  }
}

}  // namespace

std::string number_text(double value) {
  std::array<char, 40> text{};
  const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
  std::snprintf(text.data(), text.size(), whole ? "%.0f" : "%.6g", value);
  return text.data();
}

std::string scalar_text(const JsonValue& value) {
  switch (value.kind) {
    case Kind::kBool:
      return value.boolean ? "true" : "false";
    case Kind::kNumber:
      return number_text(value.number);
    case Kind::kString:
      return value.text;
    case Kind::kNull:
    case Kind::kArray:
    case Kind::kObject:
      break;
  }
  return {};
}

std::vector<std::pair<std::string, std::string>> ResultCase::identity() const {
  std::vector<std::pair<std::string, std::string>> out = {{"kind", kind}};
  for (const char* name : kIdentity) {
    const JsonValue* value = document.find(name);
    const std::string text = value == nullptr ? "" : scalar_text(*value);
    if (!text.empty() && std::strcmp(name, "kind") != 0) out.emplace_back(name, text);
  }
  return out;
}

std::string ResultCase::label() const {
  std::string out;
  const auto add = [&out](const std::string& text) {
    if (!text.empty()) out += (out.empty() ? "" : ", ") + text;
  };
  const auto number = [this](const char* name, double otherwise) {
    return document.number_of(name, otherwise);
  };
  if (kind == "engine") {
    add(document.text_of("model"));
    add(number_text(number("threads", 0)) + " threads");
    return out;
  }
  if (kind != "pages") {
    for (const auto& [name, text] : identity()) add(name == "kind" ? text : name + " " + text);
    return out;
  }
  add(document.text_of("provider"));
  const std::string shape = document.text_of("shape");
  if (shape != "pages") add(shape);
  const std::string size =
      format_bytes(static_cast<std::uint64_t>(std::clamp(number("page_bytes", 0), 0.0, 1e18)));
  const bool plain = shape == "pages";
  const std::string count = plain ? number_text(number("pages", 0)) + " " : "";
  add((document.text_of("mode") == "groups" ? "groups of pages of " : count + "pages of ") + size);
  if (!plain && document.text_of("tokens") != "2048") add(document.text_of("tokens") + " tokens");
  if (number("tp", 1) != 1) add("TP " + number_text(number("tp", 1)));
  if (number("fragmentation", 0) != 0) {
    add("fragmentation " + number_text(number("fragmentation", 0)));
  }
  if (number("concurrency", 4) != 4) add(number_text(number("concurrency", 4)) + " at once");
  if (number("rate", 0) != 0) add(number_text(number("rate", 0)) + " a second");
  if (document.text_of("digest") != "sample") add("digest " + document.text_of("digest"));
  if (document.text_of("wait_mode") == "spin") add("spin");
  return out;
}

Result<std::vector<ResultCase>> parse_results(const std::string& file, const std::string& text) {
  auto documents = cli::parse_json_documents(text);
  if (!documents.ok()) return documents.status().with_context(file);
  std::vector<ResultCase> cases;
  for (JsonValue& document : *documents) {
    const Status status = add_cases(file, std::move(document), &cases);
    if (!status.ok()) return status.with_context(file);
  }
  if (cases.size() > kMaxCases) {
    return invalid_argument(file + ": more than " + std::to_string(kMaxCases) + " measurements");
  }
  std::size_t most = 0;
  for (const ResultCase& one : cases) most = std::max(most, count_numbers(one.document));
  if (most > kMaxNumbers) {
    return invalid_argument(file + ": more than " + std::to_string(kMaxNumbers) +
                            " numbers in one measurement");
  }
  if (most == 0) {
    return invalid_argument(file + ": no figures in it; give what kvd-bench prints with --json");
  }
  return cases;
}

Result<std::vector<ResultCase>> read_results(const std::string& file) {
  const auto text = read_text(file);
  if (!text.ok()) return text.status().with_context(file);
  return parse_results(file, *text);
}

std::vector<std::string> environment_warnings(const ResultCase& a, const ResultCase& b) {
  std::vector<std::string> out;
  add_own_warnings("A", a, &out);
  add_own_warnings("B", b, &out);
  add_differences(a.document, b.document, kConditions, &out);
  const JsonValue *left = a.document.find("environment"), *right = b.document.find("environment");
  if (left != nullptr && right != nullptr) add_differences(*left, *right, kEnvironment, &out);
  return out;
}

}  // namespace kvd::tools
