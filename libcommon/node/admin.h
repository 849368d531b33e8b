// What an operator asks of workers over the control channel: `workers`, `drain` and `keygen` of
// kvd-route, `leaks` of kvd-probe.
//
// Calling thread: any; each call opens its own channel and blocks until it is done or `timeout`
// passed.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/keys.h"
#include "proto/link_messages.h"
#include "proto/ops_messages.h"

namespace kvd::node {

struct AdminOptions {
  std::string join;                            // a registry to ask, empty: none
  std::vector<std::string> prefills, decodes;  // control addresses
  std::string keys;                            // --keys FILE, empty: none
  Duration timeout{30'000'000'000};
  const std::atomic<int>* interrupt = nullptr;  // not 0: stop; may be null
};

struct WorkerRow {
  std::string address;  // control
  std::string role, program, version, http, model, fingerprint;
  std::string state;  // "ready", "draining", "unreachable"
  std::uint64_t incarnation = 0;
  std::vector<std::string> providers;
  std::uint32_t page_size = 0, context = 0;
  proto::Load load;
};

// Asks each worker who it is. A worker that does not answer within `timeout` has a row
// "unreachable". Errors: kInvalidArgument (no workers named, an address, the key file);
// kUnavailable when the registry does not answer; kFailed when interrupted.
Result<std::vector<WorkerRow>> list_workers(const AdminOptions& options);
std::string worker_row_json(const WorkerRow& row);                 // one object on one line
std::string worker_rows_json(const std::vector<WorkerRow>& rows);  // {"workers":[...]}

// Asks the worker at `address` to drain and returns its row. With `wait`, returns when it has
// neither running nor queued requests, or is gone (state "gone"). kUnavailable: not there;
// kDeadline: still busy after `timeout` (it goes on draining); kFailed when interrupted.
Result<WorkerRow> drain_worker(const std::string& address, bool wait, const AdminOptions& options);

struct WorkerLeases {
  std::string address;  // control
  std::uint64_t incarnation = 0;
  // Quarantined ones first, each kind by age, the oldest first; and the pages by state.
  proto::Leases leases;
};

// Asks the worker at `address` who may write its KV pages. kUnavailable: it does not answer within
// `timeout`; kIncompatible: what answers there has no pages; kFailed when interrupted.
Result<WorkerLeases> list_leases(const std::string& address, const AdminOptions& options);
std::string worker_leases_json(const WorkerLeases& worker);  // one object on one line

// A fresh CURVE pair. kFailed when libzmq was built without CURVE.
Result<control::KeyPair> make_keys();

}  // namespace kvd::node
