// What the sections of the report's page share: which runs there are, and which cases belong
// beside each other.
#pragma once

#include <string>
#include <vector>

#include "kvd-bench/results.h"

namespace kvd::tools {

struct Run {
  std::string file, name;  // name: without folders where that is enough
  std::vector<const ResultCase*> cases;
};

struct Member {
  std::size_t run = 0;
  const ResultCase* one = nullptr;
};

// Cases that measured the same.
struct CaseGroup {
  std::string kind, label;
  std::vector<Member> members;  // in the order of runs
};

struct ReportData {
  std::vector<Run> runs;
  std::vector<CaseGroup> groups;  // of pages by provider and size, else as they came

  std::vector<const CaseGroup*> of_kind(const std::string& kind) const;
  // The name of a row: nothing where there is one run, and so nothing to tell apart.
  std::string row_name(const Member& member) const;
};

// The cases must outlive the result.
ReportData arrange(const std::vector<ResultCase>& cases);

// Sections of the page; empty where nothing belongs in them.
std::string pages_sections(const ReportData& data);
std::string engine_sections(const ReportData& data);
std::string other_sections(const ReportData& data);
std::string comparison_section(const ReportData& data);
std::string environment_section(const ReportData& data);

}  // namespace kvd::tools
