// What `kvd-bench engine` says: a table, one JSON document, NDJSON events, or CSV.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/environment.h"
#include "kvd-bench/engine_ceilings.h"
#include "kvd-bench/engine_runs.h"

namespace kvd::tools {

struct EngineReport {
  std::string file;  // of the model
  std::uint32_t threads = 0;
  std::string kernels;
  ModelCost cost;
  Ceilings ceilings;
  Environment environment;
  std::vector<SpeedFigure> figures;
  bool partial = false;  // --max-time or a signal ended it
  std::string reference_file;
  std::map<std::string, double> reference;  // tokens a second by short name
};

// The name by which two results are matched: "pp512", "matrices512", "tg8_0"
// (batch 8, context 0).
std::string short_name(const SpeedFigure& figure);

// Which part of a ceiling a figure reaches; 0 where none is known.
struct Share {
  const char* of = "";  // "memory", "int8", "bf16"
  double part = 0;
};
// Decode: bytes of weights and KV that a step reads. Prefill: products of the layers' matrices,
// with the time of all else in it; kMatrices: without.
Share share_of(const EngineReport& report, const SpeedFigure& figure);

// An earlier result: a document of `kvd-bench engine --json`, or an object that has numbers by
// their short names. kInvalidArgument: it cannot be read, or has no such figure.
Result<std::map<std::string, double>> read_reference(const std::string& path);

std::string report_text(const EngineReport& report);
std::string report_json(const EngineReport& report);  // without newline
std::string report_csv(const EngineReport& report);
// Lines of --ndjson.
std::string start_event(const EngineReport& report);
std::string result_event(const EngineReport& report, const SpeedFigure& figure);
std::string end_event(const EngineReport& report);

}  // namespace kvd::tools
