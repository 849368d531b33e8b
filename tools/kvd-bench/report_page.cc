#include "kvd-bench/report_page.h"

#include <algorithm>
#include <map>

#include "cli/version.h"
#include "common/html.h"
#include "kvd-bench/charts.h"
#include "kvd-bench/compare.h"
#include "kvd-bench/report_runs.h"

namespace kvd::tools {
namespace {

using cli::JsonValue;

constexpr std::size_t kNameCharacters = 60;

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string swatch(std::size_t run) {
  return "<span class=\"swatch r" + std::to_string(run % 6) + "\"></span>";
}

std::string runs_section(const ReportData& data) {
  std::vector<std::vector<std::string>> rows;
  for (std::size_t i = 0; i < data.runs.size(); ++i) {
    const Run& run = data.runs[i];
    std::map<std::string, std::size_t> kinds;
    std::string commit;
    bool partial = false;
    for (const ResultCase* one : run.cases) {
      ++kinds[one->kind];
      const JsonValue* environment = one->document.find("environment");
      if (environment != nullptr && commit.empty()) commit = environment->text_of("commit");
      const JsonValue* early = one->document.find("partial");
      partial = partial || (early != nullptr && early->boolean);
    }
    std::string what;
    for (const auto& [kind, count] : kinds) {
      what += (what.empty() ? "" : ", ") + std::to_string(count) + " of " + kind;
    }
    rows.push_back({swatch(i) + html_escape(shortened(run.name, kNameCharacters)),
                    html_escape(run.file), html_escape(what + (partial ? ", ended early" : "")),
                    html_escape(commit)});
  }
  return html_table({"Run", "File", "Results", "Commit"}, rows);
}

std::string verdict_cell(const FigurePair& pair) {
  std::string text = html_escape(figure_text(pair.b.unit, pair.b.value));
  const bool worse = pair.verdict == Verdict::kWorse || pair.verdict == Verdict::kRegressed;
  const bool better = pair.verdict == Verdict::kBetter;
  const std::string classes = worse ? "worse" : better ? "better" : "soft";
  const std::string verdict =
      pair.verdict == Verdict::kRegressed ? "worse" : to_string(pair.verdict);
  return text + " <span class=\"change " + classes + "\">" + change_text(pair) +
         (verdict.empty() ? "" : ", " + verdict) + "</span>";
}

std::string comparison_of(const ReportData& data, const CaseGroup& group) {
  const Member& base = group.members.front();
  std::vector<std::string> header = {
      "", swatch(base.run) + html_escape(shortened(data.runs[base.run].name, kNameCharacters))};
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> names;
  for (std::size_t i = 1; i < group.members.size(); ++i) {
    const Member& member = group.members[i];
    header.push_back(swatch(member.run) +
                     html_escape(shortened(data.runs[member.run].name, kNameCharacters)));
    for (const FigurePair& pair : compare_cases(*base.one, *member.one, 0.1).figures) {
      if (pair.a.weight != Weight::kJudged) continue;
      auto place = std::find(names.begin(), names.end(), pair.a.name);
      if (place == names.end()) {
        names.push_back(pair.a.name);
        rows.push_back(
            {html_escape(pair.a.name), html_escape(figure_text(pair.a.unit, pair.a.value))});
        place = names.end() - 1;
      }
      auto& row = rows[static_cast<std::size_t>(place - names.begin())];
      row.resize(i + 1);
      row.push_back(verdict_cell(pair));
    }
  }
  if (rows.empty()) return {};
  for (auto& row : rows) row.resize(header.size());
  return "<figure><figcaption>" + html_escape(group.label) + "</figcaption>\n" +
         html_table(header, rows) + "</figure>\n";
}

const JsonValue* environment_of(const Run& run) {
  for (const ResultCase* one : run.cases) {
    const JsonValue* environment = one->document.find("environment");
    if (environment != nullptr && environment->is(JsonValue::Kind::kObject)) return environment;
  }
  return nullptr;
}

std::string environment_text(const JsonValue& value) {
  std::string out = scalar_text(value);
  for (const JsonValue& element : value.elements) {
    out += (out.empty() ? "" : ", ") + scalar_text(element);
  }
  return out;
}

}  // namespace

std::vector<const CaseGroup*> ReportData::of_kind(const std::string& kind) const {
  std::vector<const CaseGroup*> out;
  for (const CaseGroup& group : groups) {
    if (group.kind == kind) out.push_back(&group);
  }
  return out;
}

std::string ReportData::row_name(const Member& member) const {
  return runs.size() > 1 ? runs[member.run].name : "";
}

ReportData arrange(const std::vector<ResultCase>& cases) {
  ReportData out;
  std::map<std::string, std::size_t> run_of;
  std::map<std::vector<std::pair<std::string, std::string>>, std::size_t> group_of;
  for (const ResultCase& one : cases) {
    const auto [run, is_new] = run_of.emplace(one.file, out.runs.size());
    if (is_new) out.runs.push_back({one.file, base_name(one.file), {}});
    out.runs[run->second].cases.push_back(&one);
    const auto [group, fresh] = group_of.emplace(one.identity(), out.groups.size());
    if (fresh) out.groups.push_back({one.kind, one.label(), {}});
    out.groups[group->second].members.push_back({run->second, &one});
  }
  std::map<std::string, int> names;
  for (const Run& run : out.runs) ++names[run.name];
  for (Run& run : out.runs) {
    if (names[run.name] > 1) run.name = run.file;
  }
  std::stable_sort(out.groups.begin(), out.groups.end(), [](const auto& a, const auto& b) {
    const auto key = [](const CaseGroup& group) {
      const JsonValue& document = group.members.front().one->document;
      return std::tuple(group.kind != "pages", document.text_of("provider"),
                        document.number_of("page_bytes", 0));
    };
    return key(a) < key(b);
  });
  return out;
}

std::string comparison_section(const ReportData& data) {
  std::string tables;
  for (const CaseGroup& group : data.groups) {
    if (group.members.size() > 1) tables += comparison_of(data, group);
  }
  if (tables.empty()) return {};
  return "<h2>Comparison of runs</h2>\n<p>Each against the first. A change within noise is one "
         "that "
         "chance can make, judged by the spread of the repetitions and the number of requests; "
         "kvd-bench(1) says how.</p>\n" +
         tables;
}

std::string environment_section(const ReportData& data) {
  std::vector<std::string> header = {""}, names;
  std::vector<const JsonValue*> environments;
  for (std::size_t i = 0; i < data.runs.size(); ++i) {
    const JsonValue* environment = environment_of(data.runs[i]);
    if (environment == nullptr) continue;
    environments.push_back(environment);
    header.push_back(swatch(i) + html_escape(shortened(data.runs[i].name, kNameCharacters)));
    for (const auto& [name, value] : environment->members) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  if (environments.empty()) return {};
  std::vector<std::vector<std::string>> rows;
  for (const std::string& name : names) {
    std::vector<std::string> texts;
    for (const JsonValue* environment : environments) {
      const JsonValue* value = environment->find(name);
      texts.push_back(value == nullptr ? "" : environment_text(*value));
    }
    const bool differ =
        name != "load_average" &&
        std::any_of(texts.begin(), texts.end(), [&](const auto& text) { return text != texts[0]; });
    std::vector<std::string> row = {html_escape(name)};
    for (const std::string& text : texts) {
      row.push_back(differ ? "<span class=\"differs\">" + html_escape(text) + "</span>"
                           : html_escape(text));
    }
    rows.push_back(std::move(row));
  }
  return "<h2>Environment</h2>\n<p>Of the first result of each run. What differs between runs is "
         "bold.</p>\n" +
         html_table(header, rows);
}

std::string report_page(const std::string& title, const std::vector<ResultCase>& cases) {
  const ReportData data = arrange(cases);
  return page_begin(title) + "<h1>" + html_escape(title) + "</h1>\n" + runs_section(data) +
         pages_sections(data) + engine_sections(data) + other_sections(data) +
         comparison_section(data) + environment_section(data) + "<footer>kvd-bench report " +
         html_escape(cli::version()) + ", " + html_escape(cli::commit()) + "</footer>\n" +
         page_end();
}

}  // namespace kvd::tools
