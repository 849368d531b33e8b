// Documents as `kvd-bench --json` prints them, small, for the tests of what reads them.
#pragma once

#include <catch2/catch.hpp>
#include <string>

#include "kvd-bench/results.h"

namespace kvd::tools {

struct SamplePages {
  std::string provider = "tcp", congestion_control = "cubic", mode = "pages";
  double page_bytes = 65536;
  double bytes_per_s = 2e9;
  double p10 = 1.9e9, p90 = 2.1e9, rounds = 30;
  double ratio = 0.97;
  double ceiling = 2.06e9;
  double p50_ns = 1e6;
  double wire_p50_ns = 8e5, visible_p50_ns = 400;
  double cpu_ns_per_gib = 4e8;
  double copies = 0;
  double load = 0.2;
  bool partial = false;

  std::string percentiles(double p50) const {
    const auto at = [p50](double factor) { return std::to_string(p50 * factor); };
    return "{\"p50\":" + at(1) + ",\"p90\":" + at(1.2) + ",\"p99\":" + at(1.5) +
           ",\"p999\":" + at(2) + ",\"max\":" + at(3) + ",\"n\":2000}";
  }
  std::string json() const {
    const auto n = [](double value) { return std::to_string(value); };
    return "{\"kind\":\"pages\",\"schema\":1,\"provider\":\"" + provider +
           "\",\"shape\":\"pages\",\"mode\":\"" + mode +
           "\",\"tokens\":\"2048\",\"tp\":1,\"page_size\":32,\"page_bytes\":" + n(page_bytes) +
           ",\"fragmentation\":0.0,\"concurrency\":4,\"rate\":null,\"digest\":\"sample\","
           "\"pages\":64,\"bytes_per_s\":" +
           n(bytes_per_s) + ",\"ceiling_bytes_per_s\":" + n(ceiling) +
           ",\"ceiling_1mib_bytes_per_s\":2.2e9,\"ratio_to_ceiling\":" + n(ratio) +
           ",\"ratio_interval\":{\"low\":" + n(ratio - 0.01) + ",\"high\":" + n(ratio + 0.01) +
           "},\"spread\":{\"p10\":" + n(p10) + ",\"p90\":" + n(p90) + ",\"n\":" + n(rounds) +
           "},\"latency_ns\":" + percentiles(p50_ns) + ",\"wire_ns\":" + percentiles(wire_p50_ns) +
           ",\"visible_ns\":" + percentiles(visible_p50_ns) +
           ",\"wait_mode\":\"wait\",\"cpu_ns_per_gib\":" + n(cpu_ns_per_gib) +
           ",\"ceiling_cpu_ns_per_gib\":3.9e8,\"cold\":{\"connect_ns\":5000000},\"verified\":128,"
           "\"copies\":" +
           n(copies) + ",\"partial\":" + (partial ? "true" : "false") +
           ",\"environment\":{\"commit\":\"abc\",\"cpu\":\"X\",\"cores\":2,"
           "\"tcp_congestion_control\":\"" +
           congestion_control + "\",\"load_average\":[" + n(load) + ",0.1,0.1]}}";
  }
  ResultCase read(const std::string& file = "a.json") const {
    auto cases = parse_results(file, json());
    REQUIRE(cases.ok());
    REQUIRE(cases->size() == 1);
    return std::move(cases->front());
  }
};

constexpr const char* kSampleEngine =
    R"({"model":"tiny","file":"/m/tiny.gguf","threads":2,"kernels":"avx2",
"ceilings":{"memory_bytes_per_s":15e9,"disturbed":false},"cost":{"linear_macs_per_token":1000},
"prefill":[{"tokens":128,"tok_per_s":200,"p10":198,"p90":202,"n":5},
           {"tokens":512,"tok_per_s":300,"p10":290,"p90":310,"n":5}],
"decode":[{"batch":1,"context":0,"steps":128,"tok_per_s":90,"p10":89,"p90":91,"n":5},
          {"batch":8,"context":512,"steps":64,"tok_per_s":400,"p10":396,"p90":404,"n":5}],
"partial":false})";

}  // namespace kvd::tools
