#include "kvd-bench/report_command.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "kvd-bench/report_page.h"

namespace kvd::tools {
namespace {

constexpr std::size_t kMaxCases = 1000;

struct ReportOptions {
  std::vector<std::string> files;
  std::string output;
  std::string title = "kvd-bench results";
};

// A result must not be overwritten by the page that is made of it.
Status check_output(const ReportOptions& options) {
  std::error_code none;
  for (const std::string& file : options.files) {
    if (!options.output.empty() && std::filesystem::equivalent(file, options.output, none)) {
      return invalid_argument("--output " + options.output + " is one of the results");
    }
  }
  return {};
}

Result<std::vector<ResultCase>> read_all(const std::vector<std::string>& files) {
  std::vector<ResultCase> cases;
  for (const std::string& file : files) {
    auto more = read_results(file);
    if (!more.ok()) return more;
    for (ResultCase& one : *more) cases.push_back(std::move(one));
    if (cases.size() > kMaxCases) {
      return invalid_argument("more than " + std::to_string(kMaxCases) +
                              " measurements; make several reports");
    }
  }
  return cases;
}

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  if (!file) {
    return invalid_argument("--output " + path + ": cannot be written: " + std::strerror(errno));
  }
  file << text;
  file.close();
  if (!file) return {StatusCode::kFailed, "--output " + path + ": " + std::strerror(errno)};
  return {};
}

int run_verb(const ReportOptions& options, const cli::Invocation& invocation) {
  const auto failed = [&](const Status& status) {
    return cli::report_error(kBenchProgram, status, invocation.json);
  };
  if (invocation.json && options.output.empty()) {
    return failed(invalid_argument("--json needs --output: the page itself goes to stdout"));
  }
  if (const Status status = check_output(options); !status.ok()) return failed(status);
  const auto cases = read_all(options.files);
  if (!cases.ok()) return failed(cases.status());
  const std::string page = report_page(options.title, *cases);
  Status status = options.output.empty() ? cli::write_out(page) : write_file(options.output, page);
  if (status.ok() && invocation.json) {
    cli::JsonWriter json;
    json.begin_object().field("kind", "report").field("schema", 1);
    json.field("output", options.output);
    json.field("files", std::uint64_t{options.files.size()});
    json.field("results", std::uint64_t{cases->size()});
    json.field("bytes", std::uint64_t{page.size()});
    status = cli::write_out(json.end_object().take() + "\n");
  }
  return status.ok() ? cli::kExitOk : failed(status);
}

}  // namespace

Verb report_verb() {
  const auto options = std::make_shared<ReportOptions>();
  Verb verb;
  verb.command.name = "report";
  verb.command.log_level = LogLevel::kWarn;
  verb.command.summary = "make one HTML page with plots of results";
  verb.command.positionals = {
      {"RESULT...", "results of --json or --ndjson; - is stdin", nullptr, false, &options->files}};
  verb.command.options.group(
      "Page", {cli::text_option("output", "FILE", &options->output, "where the page goes")
                   .with_default("stdout"),
               cli::text_option("title", "TEXT", &options->title, "heading of the page")});
  verb.command.examples =
      "kvd-bench report before.json after.json --output report.html\n"
      "kvd-bench pages --json | kvd-bench report - > report.html";
  verb.run = [options](const cli::Invocation& invocation) {
    return run_verb(*options, invocation);
  };
  return verb;
}

}  // namespace kvd::tools
