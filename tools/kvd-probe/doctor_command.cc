#include <poll.h>

#include <algorithm>
#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "cli/suggest.h"
#include "kvd-probe/doctor/checks.h"
#include "kvd-probe/doctor/facts.h"
#include "kvd-probe/findings.h"
#include "kvd-probe/verbs.h"

namespace kvd::tools {
namespace {

using doctor::Finding;
using doctor::Outcome;

struct DoctorFields {
  std::string root = "/";
  std::vector<std::string> only, skip;
  Outcome fail_on = Outcome::kFail;
  doctor::Settings settings;
  Duration interval{1'000'000'000};
  bool all = false;
};

std::vector<std::string> check_names() {
  std::vector<std::string> out;
  for (const doctor::Check& check : doctor::all_checks()) out.emplace_back(check.id);
  return out;
}

cli::Command doctor_command(DoctorFields* f) {
  cli::Command command;
  command.name = "doctor";
  command.log_level = LogLevel::kWarn;
  command.summary = "check whether this host can carry KV by RDMA, and how well";
  command.options
      .group(
          "Checks",
          {cli::list_option("only", "ID", &f->only, "run only this check; may be repeated"),
           cli::list_option("skip", "ID", &f->skip, "leave out this check; may be repeated"),
           cli::choice_option<Outcome>("fail-on", &f->fail_on,
                                       {{"warn", Outcome::kWarn}, {"fail", Outcome::kFail}},
                                       "least severe finding that gives status 1"),
           cli::flag_option("require-rdma", &f->settings.require_rdma, "a host without RDMA fails"),
           cli::bytes_option("pool", &f->settings.pool_bytes,
                             "size of the KV pool that would be registered", 1),
           cli::flag_option("all", &f->all, "show what passed and what was skipped too")})
      .group("Source", {cli::text_option("root", "DIR", &f->root,
                                         "check a recorded tree of /sys, /proc and /dev instead"),
                        cli::duration_option("interval", {&f->interval},
                                             "time between two readings of counters")});
  command.examples =
      "kvd-probe doctor\n"
      "kvd-probe doctor --only memlock --only gid --fail-on warn\n"
      "kvd-probe doctor --json | jq '.checks[] | select(.status == \"fail\")'";
  return command;
}

constexpr std::string_view kOfPing[] = {"path",     "line-rate", "rw-asym", "cold-first",
                                        "udp-4791", "efa-sg",    "skew"};

Status check_ids(const std::vector<std::string>& ids, const std::string& option) {
  const std::vector<std::string> known = check_names();
  for (const std::string& id : ids) {
    if (std::find(known.begin(), known.end(), id) != known.end()) continue;
    if (std::find(std::begin(kOfPing), std::end(kOfPing), id) != std::end(kOfPing)) {
      return invalid_argument("--" + option + ": " + id +
                              " takes two hosts: kvd-probe ping PEER finds it");
    }
    const std::string near = cli::nearest(id, known);
    return invalid_argument(
        "--" + option + ": there is no check \"" + id + "\"" +
        (near.empty() ? "; see kvd-doctor(7)" : "; did you mean " + near + "?"));
  }
  return {};
}

bool wanted(const DoctorFields& f, std::string_view id) {
  const auto has = [&](const std::vector<std::string>& ids) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  return (f.only.empty() || has(f.only)) && !has(f.skip);
}

Status check_choice(const DoctorFields& f) {
  KVD_RETURN_IF_ERROR(check_ids(f.only, "only"));
  KVD_RETURN_IF_ERROR(check_ids(f.skip, "skip"));
  const auto& checks = doctor::all_checks();
  const auto left = [&](const doctor::Check& check) { return wanted(f, check.id); };
  if (std::any_of(checks.begin(), checks.end(), left)) return {};
  return invalid_argument("--only and --skip leave no check: a host would pass unseen");
}

std::vector<Finding> run_checks(const DoctorFields& f, const doctor::Inputs& in) {
  std::vector<Finding> out;
  for (const doctor::Check& check : doctor::all_checks()) {
    if (wanted(f, check.id)) out.push_back(doctor::run_check(check, in));
  }
  return out;
}

// This host: the facts are collected, and the counters read twice.
std::vector<Finding> examine_host(const DoctorFields& f, const doctor::Tree& disk) {
  const doctor::Host host = doctor::read_host(disk);
  const auto facts = doctor::collect_facts(
      host, cli::environment_with({"FI_", "RDMAV_", "IBV_", "MLX5_", "UCX_"}));
  const auto tree = doctor::with_facts(disk, facts);
  doctor::Inputs in = doctor::make_inputs(*tree, nullptr, f.settings);
  if (!in.before.empty()) {
    // What is measured is growth over this time.
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(f.interval).count();
    (void)::poll(nullptr, 0, static_cast<int>(std::min<std::int64_t>(ms, 3'600'000)));
    const auto later = doctor::with_facts(disk, doctor::collect_statistics(host));
    in.after = doctor::read_counters(*later, host);
  }
  return run_checks(f, in);
}

// A recorded tree: a second reading of its counters lies under later/.
std::vector<Finding> examine_tree(const DoctorFields& f, const doctor::Tree& tree) {
  const auto later = doctor::open_tree(f.root + "/later");
  return run_checks(f, doctor::make_inputs(tree, later.ok() ? later->get() : nullptr, f.settings));
}

std::size_t count(const std::vector<Finding>& findings, Outcome outcome) {
  return static_cast<std::size_t>(
      std::count_if(findings.begin(), findings.end(),
                    [&](const Finding& finding) { return finding.outcome == outcome; }));
}

constexpr Outcome kWorstFirst[] = {Outcome::kFail, Outcome::kWarn, Outcome::kUnknown,
                                   Outcome::kPass, Outcome::kSkip};

std::string to_json(const DoctorFields& f, const std::vector<Finding>& findings) {
  cli::JsonWriter json;
  json.begin_object().field("root", f.root).key("summary").begin_object();
  for (const Outcome outcome : kWorstFirst) {
    json.field(doctor::to_string(outcome), static_cast<std::uint64_t>(count(findings, outcome)));
  }
  json.end_object().key("checks").begin_array();
  for (const Finding& finding : findings) write_finding(&json, finding);
  return json.end_array().end_object().take() + "\n";
}

std::string to_text(const DoctorFields& f, const std::vector<Finding>& findings) {
  std::string text;
  for (const Outcome outcome : kWorstFirst) {
    const bool good = outcome == Outcome::kPass || outcome == Outcome::kSkip;
    if (good && !f.all) continue;
    for (const Finding& finding : findings) {
      if (finding.outcome == outcome) text += finding_text(finding);
    }
  }
  text += std::to_string(findings.size()) + " checks:";
  for (const Outcome outcome : kWorstFirst) {
    text += " " + std::to_string(count(findings, outcome)) + " " +
            std::string(doctor::to_string(outcome)) + (outcome == Outcome::kSkip ? "" : ",");
  }
  return text + "; kvd-doctor(7) explains each\n";
}

int run_doctor(const DoctorFields& f, const cli::Invocation& invocation) {
  Status status = check_choice(f);
  if (!status.ok()) return cli::report_error(kProbeProgram, status, invocation.json);
  const auto tree = doctor::open_tree(f.root);
  if (!tree.ok()) {
    return cli::report_error(kProbeProgram, tree.status().with_context("--root"), invocation.json);
  }
  const std::vector<Finding> findings =
      f.root == "/" ? examine_host(f, **tree) : examine_tree(f, **tree);
  status = cli::write_out(invocation.json ? to_json(f, findings) : to_text(f, findings));
  if (!status.ok()) return cli::report_error(kProbeProgram, status, invocation.json);
  const bool bad = std::any_of(findings.begin(), findings.end(), [&](const Finding& finding) {
    return finding.outcome >= f.fail_on;
  });
  return bad ? cli::kExitCheckFailed : cli::kExitOk;
}

}  // namespace

Verb doctor_verb() {
  auto fields = std::make_shared<DoctorFields>();
  return {doctor_command(fields.get()),
          [fields](const cli::Invocation& invocation) { return run_doctor(*fields, invocation); }};
}

}  // namespace kvd::tools
