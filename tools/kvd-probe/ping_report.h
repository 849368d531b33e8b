// What a ping says: findings with evidence and remedy, gates, JSON and text. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kvd-probe/doctor/checks.h"
#include "kvd-probe/ping_run.h"

namespace kvd::tools {

struct PingGates {
  std::optional<double> min_gbps;    // Gbit/s at the best size
  std::optional<double> max_p99_us;  // of a write of the first size
};
struct GateOutcome {
  const char* name;  // "min_gbps"
  double limit = 0, value = 0;
  bool passed = false;
};

// kvd-doctor(7) explains each: prov-tcp, rw-asym, cold-first, path, line-rate, mtu, skew.
std::vector<doctor::Finding> ping_findings(const PingResult& result, const std::string& version);
std::vector<GateOutcome> check_gates(const PingGates& gates, const PingResult& result);

struct PingReport {
  const PingOptions& options;
  const PingResult& result;
  std::vector<doctor::Finding> findings;
  std::vector<GateOutcome> gates;
};
// Of `ping`: one document, also of a run that ended early. `event` empty: without that field.
std::string ping_json(const PingReport& report, const std::string& event);
std::string size_event(const SizeResult& size);
std::string ping_text(const PingReport& report);

}  // namespace kvd::tools
