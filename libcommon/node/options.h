// What kvd-prefill, kvd-decode and kvd-route are told on the command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "engine/engine.h"
#include "transfer/options.h"

namespace kvd::node {

// Flags that every daemon has.
struct CommonOptions {
  std::string program;  // "kvd-decode"
  std::string version;
  std::string http;                           // --http HOST:PORT
  std::string listen;                         // --listen HOST:PORT
  std::string join;                           // --join ADDR, empty: none
  std::string api_key;                        // --api-key
  bool insecure = false;                      // --insecure
  std::string keys;                           // --keys FILE
  Duration timeout{30'000'000'000};           // --timeout: waiting for workers
  Duration request_timeout{600'000'000'000};  // --request-timeout
  Duration dead_after{2'000'000'000};         // --dead-after
  int ready_fd = -1;                          // --ready-fd N
};

// kvd-prefill and kvd-decode.
struct WorkerOptions {
  CommonOptions common;
  engine::EngineOptions engine;
  transfer::TransferOptions transfer;
  std::string served_model_name;         // --served-model-name, empty: the file's own name
  std::string provider;                  // --provider, empty: by preference
  std::string device;                    // --device
  std::string fabric_addr;               // --fabric-addr, empty: the address of --listen
  std::uint64_t kv_memory = 1ull << 30;  // --kv-memory
  std::vector<std::string> prefills;     // decode: --prefill ADDR...; {"local"}: both phases here
};

enum class Flow { kDecodeFirst, kStandalone };

struct RouteOptions {
  CommonOptions common;
  Flow flow = Flow::kDecodeFirst;
  std::string policy = "round-robin";
  std::vector<std::string> prefills, decodes;
  std::uint32_t retries = 3;  // attempts on fresh pairs in all
};

}  // namespace kvd::node
