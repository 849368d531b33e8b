// What kvd-probe doctor reads of a host: lines "PATH = TEXT" with \n for a line break become the
// files of a tree, those below later/ a second reading.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/check.h"
#include "kvd-probe/doctor/checks.h"

namespace {

using kvd::doctor::Outcome;

std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() && (text[i + 1] == 'n' || text[i + 1] == 't')) {
      out += text[++i] == 'n' ? '\n' : '\t';
    } else {
      out += text[i];
    }
  }
  return out;
}

void check_finding(const kvd::doctor::Finding& finding) {
  const bool bad = finding.outcome == Outcome::kWarn || finding.outcome == Outcome::kFail;
  KVD_CHECK(!finding.evidence.empty());
  for (const std::string& line : finding.evidence) {
    KVD_CHECK(line.size() < 1000);
    for (const char c : line) KVD_CHECK(static_cast<unsigned char>(c) >= 0x20);
  }
  KVD_CHECK(finding.remedy.empty() != bad);
  KVD_CHECK(finding.consequence.empty() != bad);
  KVD_CHECK(finding.command.empty() == (finding.outcome != Outcome::kUnknown));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::map<std::string, std::string> now, later;
  for (const std::string& line : kvd::doctor::lines_of(text)) {
    const std::size_t equals = line.find(" = ");
    if (equals == std::string::npos) continue;
    const std::string path = line.substr(0, equals);
    const bool second = path.starts_with("later/");
    (second ? later : now)[second ? path.substr(6) : path] = unescaped(line.substr(equals + 3));
  }
  const auto tree = kvd::doctor::memory_tree(now);
  const auto second = kvd::doctor::memory_tree(later);
  const auto in = kvd::doctor::make_inputs(*tree, later.empty() ? nullptr : second.get(), {});
  for (const kvd::doctor::Check& check : kvd::doctor::all_checks()) {
    check_finding(kvd::doctor::run_check(check, in));
  }
  return 0;
}
