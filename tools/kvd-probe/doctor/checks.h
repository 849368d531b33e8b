// The checks of `kvd-probe doctor`: pure functions over a tree. kvd-doctor.7 has an entry for each.
//
// A check never passes on evidence that it could not read: that is kUnknown, with the command that
// tells. Calling thread: any.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvd-probe/doctor/host.h"
#include "kvd-probe/doctor/tree.h"

namespace kvd::doctor {

// From good to bad, as they combine over several devices.
enum class Outcome { kSkip, kPass, kUnknown, kWarn, kFail };
std::string_view to_string(Outcome outcome);  // "skip", "pass", ...

struct Finding {
  std::string id;     // "memlock"
  std::string title;  // what is right when it passes
  Outcome outcome = Outcome::kSkip;
  std::vector<std::string> evidence;  // never empty: what was read, or why nothing was
  std::string consequence;            // for KV; of a warning or failure
  std::string remedy;                 // likewise
  std::string command;                // of kUnknown: what tells, usually with more rights
};

struct Settings {
  std::uint64_t pool_bytes = 1ull << 30;  // what a worker would register
  bool require_rdma = false;              // a host without RDMA fails
};

// Counters by their place ("sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error").
using Counters = std::map<std::string, std::uint64_t>;
Counters read_counters(const Tree& tree, const Host& host);

// One line of kvd/providers: "NAME DOMAIN [hmem] [emulated] [regions=N]".
struct ProviderFact {
  std::string name, domain;
  bool hmem = false, emulated = false;
  std::uint64_t regions = 0;  // 0: no limit is named

  bool rdma() const { return !name.starts_with("tcp") && name != "local"; }
};

struct Inputs {
  const Tree& tree;
  Host host;
  Settings settings;
  // Nothing where libfabric was not asked (a recorded tree without the file).
  std::optional<std::vector<ProviderFact>> providers;
  std::optional<std::map<std::string, std::string>> environment;
  Counters before;
  std::optional<Counters> after;  // a second reading; nothing: counters tell nothing
};

// What one check has found so far. The worst of what was added is its outcome.
class Verdict {
 public:
  void pass(std::string evidence) { add(Outcome::kPass, std::move(evidence)); }
  void warn(std::string evidence) { add(Outcome::kWarn, std::move(evidence)); }
  void fail(std::string evidence) { add(Outcome::kFail, std::move(evidence)); }
  void unknown(std::string evidence, std::string command) {
    add(Outcome::kUnknown, std::move(evidence));
    command_ = std::move(command);
  }
  // Where the check has nothing to look at.
  void skip(std::string reason) { add(Outcome::kSkip, std::move(reason)); }
  // In place of the table's text.
  void set_remedy(std::string remedy) { remedy_ = std::move(remedy); }
  void set_consequence(std::string consequence) { consequence_ = std::move(consequence); }

  Outcome outcome() const { return outcome_; }
  void finish(Finding* finding) const;

 private:
  void add(Outcome outcome, std::string evidence);

  Outcome outcome_ = Outcome::kSkip;
  std::vector<std::pair<Outcome, std::string>> evidence_;
  std::size_t left_out_ = 0;
  std::string command_, remedy_, consequence_;
};

struct Check {
  const char* id;
  const char* title;
  const char* consequence;
  const char* remedy;
  void (*run)(const Inputs& in, Verdict* out);
};

// In the order in which they are told: devices, providers, ports, memory, GPU, host, TCP.
std::span<const Check> all_checks();

// `later`: the tree a while after, null when there is none.
Inputs make_inputs(const Tree& tree, const Tree* later, const Settings& settings);
Finding run_check(const Check& check, const Inputs& in);

}  // namespace kvd::doctor
