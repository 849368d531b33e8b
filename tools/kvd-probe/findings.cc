#include "kvd-probe/findings.h"

namespace kvd::tools {
namespace {

std::string capitals(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c - 'a' + 'A');
  return out;
}

}  // namespace

void write_finding(cli::JsonWriter* json, const doctor::Finding& finding) {
  json->begin_object().field("id", finding.id).field("status", doctor::to_string(finding.outcome));
  json->field("title", finding.title).key("evidence").begin_array();
  for (const std::string& line : finding.evidence) json->value(line);
  json->end_array();
  const auto optional = [&](const char* name, const std::string& text) {
    json->key(name);
    text.empty() ? json->null() : json->value(text);
  };
  optional("consequence", finding.consequence);
  optional("remedy", finding.remedy);
  optional("command", finding.command);
  json->end_object();
}

std::string finding_text(const doctor::Finding& finding) {
  std::string head = capitals(doctor::to_string(finding.outcome));
  head.resize(8, ' ');
  std::string text = head + finding.id + ": " + finding.evidence.front() + "\n";
  const std::string indent(8, ' ');
  for (std::size_t i = 1; i < finding.evidence.size(); ++i) {
    text += indent + finding.evidence[i] + "\n";
  }
  if (!finding.consequence.empty()) text += indent + "means: " + finding.consequence + "\n";
  if (!finding.remedy.empty()) text += indent + "remedy: " + finding.remedy + "\n";
  if (!finding.command.empty()) text += indent + "to know: " + finding.command + "\n";
  return text;
}

}  // namespace kvd::tools
