#include "node/admin.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "base/rng.h"
#include "base/units.h"
#include "control/zmq_channel.h"
#include "http/body_edit.h"
#include "node/event_loop.h"
#include "node/registry_client.h"

namespace kvd::node {
namespace {

constexpr Duration kAskInterval{100'000'000};
// A worker that the registry lists, and that does not answer for so long, is not there.
constexpr Duration kListedWait{2'000'000'000};
constexpr Duration kLongestWait{50'000'000};  // so that an interrupt is seen

// Asks a few workers who they are, again and again, until `done` says enough.
class Inquiry final : LoopTask {
 public:
  struct Worker {
    std::string role;  // as listed, empty: not known
    control::PeerRef peer = 0;
    TimePoint first_asked{0}, next_ask{0}, last_answer{0};
    bool send_drain = false;  // once it has answered
    bool send_leases = false;
    std::optional<proto::Leases> leases;
    std::string refusal, refusal_code;  // the error that it answered with
    bool drain_sent = false;
    bool answered = false;
    bool lost = false;  // not connected any more, after drain_sent
    Incarnation incarnation;
    proto::Described info;
  };

  explicit Inquiry(const AdminOptions& options) : options_(options) {}

  Status open();
  Status add(const std::string& role, const std::string& address, bool drain = false);
  // kDeadline when `timeout` has passed, kFailed when interrupted.
  Status run(std::function<bool(Inquiry&)> done);

  std::map<std::string, Worker>& workers() { return workers_; }
  bool registry_answered() const { return client_ && client_->version() + answers_ > 0; }
  TimePoint now() const { return clock_.now(); }

 private:
  bool step() override;
  void wait_fds(std::vector<int>* out) const override { out->push_back(channel_->wait_fd()); }
  bool may_wait() override { return true; }
  TimePoint next_deadline() const override { return next_; }
  bool finished() const override { return over_; }
  void take(const control::Received& received);
  static void take_leases(const control::Received& received, Worker* worker);

  const AdminOptions& options_;
  SteadyClock clock_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<RegistryClient> client_;
  std::map<std::string, Worker> workers_;
  std::function<bool(Inquiry&)> done_;
  std::uint64_t answers_ = 0;
  TimePoint end_{0}, next_{0};
  bool over_ = false;
  Status status_;
};

Status Inquiry::open() {
  control::ZmqOptions zmq;
  if (!options_.keys.empty()) {
    Result<control::KeyRing> keys = control::load_keys(options_.keys);
    if (!keys.ok()) return keys.status();
    zmq.keys = std::move(*keys);
  }
  Result<std::unique_ptr<control::Channel>> channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ = std::make_unique<control::Messenger>(
      channel_.get(), Incarnation{secure_random_u63()}, &clock_, nullptr);
  if (options_.join.empty()) return {};
  client_ = std::make_unique<RegistryClient>(messenger_.get(), options_.join, &clock_);
  return client_->open().with_context("--join");
}

Status Inquiry::add(const std::string& role, const std::string& address, bool drain) {
  const Result<HostPort> parsed = parse_host_port(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->port == 0) return invalid_argument(address + ": port 0 names no worker");
  Result<control::PeerRef> peer = channel_->dial(address);
  if (!peer.ok()) return peer.status();
  Worker& worker = workers_[address];
  worker.role = role;
  worker.peer = *peer;
  worker.first_asked = clock_.now();
  worker.send_drain = drain;
  return {};
}

Status Inquiry::run(std::function<bool(Inquiry&)> done) {
  done_ = std::move(done);
  end_ = clock_.now() + options_.timeout;
  EventLoop loop(&clock_, LoopOptions{Duration(0), false, kLongestWait});
  loop.run(*this);
  return status_;
}

bool Inquiry::step() {
  bool any = false;
  while (std::optional<control::Received> received = messenger_->receive()) {
    take(*received);
    any = true;
  }
  const TimePoint now = clock_.now();
  next_ = std::min(end_, now + kAskInterval);
  if (client_) {
    client_->poll(now);
    for (const proto::Member& member : client_->members()) {
      // A member that cannot be dialled stays unknown here; the registry lists it all the same.
      if (!workers_.contains(member.control)) (void)add(member.role, member.control);
    }
  }
  for (auto& [address, worker] : workers_) {
    if (now < worker.next_ask) continue;
    worker.next_ask = now + kAskInterval;
    const bool drain = worker.send_drain && worker.answered;
    const Status sent = drain ? messenger_->send(worker.peer, Incarnation{}, proto::Drain{})
                        : worker.send_leases
                            ? messenger_->send(worker.peer, Incarnation{}, proto::Leases{})
                            : messenger_->send(worker.peer, Incarnation{}, proto::Describe{});
    worker.lost = worker.drain_sent && sent.code() == StatusCode::kUnavailable;
    worker.drain_sent = worker.drain_sent || (drain && sent.ok());
  }
  if (done_(*this)) {
    over_ = true;
  } else if (options_.interrupt != nullptr && options_.interrupt->load() != 0) {
    status_ = Status(StatusCode::kFailed, "interrupted");
    over_ = true;
  } else if (now >= end_) {
    status_ =
        Status(StatusCode::kDeadline, "no answer within " + format_duration(options_.timeout) +
                                          ": see that it runs, and that this is its control "
                                          "address (--listen)");
    over_ = true;
  }
  return any;
}

void Inquiry::take(const control::Received& received) {
  if (client_ && client_->on_message(received)) {
    if (received.envelope.type == proto::MessageType::kMembers) ++answers_;
    return;
  }
  const auto worker = std::find_if(workers_.begin(), workers_.end(), [&](const auto& entry) {
    return entry.second.peer == received.from;
  });
  if (worker == workers_.end()) return;
  Worker& entry = worker->second;
  if (received.envelope.type == proto::MessageType::kError) {
    if (const auto error = proto::decode_body<proto::Error>(received.envelope); error.ok()) {
      entry.refusal = error->text;
      entry.refusal_code = error->code;
    }
    return;
  }
  if (entry.send_leases) {
    take_leases(received, &entry);
    return;
  }
  if (received.envelope.type != proto::MessageType::kDescribed) return;
  Result<proto::Described> described = proto::decode_body<proto::Described>(received.envelope);
  if (!described.ok()) return;
  entry.answered = true;
  entry.last_answer = clock_.now();
  entry.incarnation = received.envelope.from;
  entry.info = std::move(*described);
  if (entry.info.load.draining) entry.send_drain = false;
}

void Inquiry::take_leases(const control::Received& received, Worker* worker) {
  if (received.envelope.type != proto::MessageType::kLeases) return;
  Result<proto::Leases> leases = proto::decode_body<proto::Leases>(received.envelope);
  if (!leases.ok() || !leases->reply) return;
  worker->incarnation = received.envelope.from;
  worker->leases = std::move(*leases);
}

Status refused(const std::string& address, const Inquiry::Worker& worker) {
  if (worker.refusal_code == "unauthorized") {
    return Status(StatusCode::kNoProvider, address + " refuses: " + worker.refusal);
  }
  if (worker.refusal_code == "unexpected") {
    return Status(StatusCode::kIncompatible,
                  address + " is no prefill or decode worker: " + worker.refusal);
  }
  return Status(StatusCode::kFailed, address + " answered with an error: " + worker.refusal);
}

WorkerRow row_of(const std::string& address, const Inquiry::Worker& worker) {
  WorkerRow row;
  row.address = address;
  row.role = worker.answered ? worker.info.role : worker.role;
  row.state = !worker.answered ? "unreachable" : worker.info.load.draining ? "draining" : "ready";
  row.program = worker.info.program;
  row.version = worker.info.version;
  row.http = worker.info.http;
  row.model = worker.info.model;
  row.fingerprint = worker.info.fingerprint;
  row.incarnation = worker.incarnation.value;
  row.providers = worker.info.providers;
  row.page_size = worker.info.layout.page_size;
  row.context = worker.info.context;
  row.load = worker.info.load;
  return row;
}

}  // namespace

Result<std::vector<WorkerRow>> list_workers(const AdminOptions& options) {
  if (options.join.empty() && options.prefills.empty() && options.decodes.empty()) {
    return invalid_argument(
        "name the workers: --join ADDR of a registry, or --prefill ADDR and --decode ADDR");
  }
  Inquiry inquiry(options);
  KVD_RETURN_IF_ERROR(inquiry.open());
  for (const std::string& address : options.prefills) {
    KVD_RETURN_IF_ERROR(inquiry.add("prefill", address).with_context("--prefill"));
  }
  for (const std::string& address : options.decodes) {
    KVD_RETURN_IF_ERROR(inquiry.add("decode", address).with_context("--decode"));
  }
  std::set<std::string> named(options.prefills.begin(), options.prefills.end());
  named.insert(options.decodes.begin(), options.decodes.end());
  const bool ask_registry = !options.join.empty();
  const Status status = inquiry.run([&](Inquiry& asked) {
    if (ask_registry && !asked.registry_answered()) return false;
    const auto& workers = asked.workers();
    return std::all_of(workers.begin(), workers.end(), [&](const auto& entry) {
      const Inquiry::Worker& worker = entry.second;
      return worker.answered ||
             (!named.contains(entry.first) && asked.now() - worker.first_asked > kListedWait);
    });
  });
  if (status.code() == StatusCode::kFailed) return status;
  if (ask_registry && !inquiry.registry_answered()) {
    return unavailable("registry " + options.join + ": " + status.message());
  }
  std::vector<WorkerRow> rows;
  for (const auto& [address, worker] : inquiry.workers()) rows.push_back(row_of(address, worker));
  return rows;
}

Result<WorkerRow> drain_worker(const std::string& address, bool wait, const AdminOptions& options) {
  AdminOptions direct = options;
  direct.join.clear();
  Inquiry inquiry(direct);
  KVD_RETURN_IF_ERROR(inquiry.open());
  KVD_RETURN_IF_ERROR(inquiry.add("", address, true));
  bool gone = false;
  const Status status = inquiry.run([&](Inquiry& asked) {
    const Inquiry::Worker& worker = asked.workers().begin()->second;
    if (!worker.refusal.empty()) return true;
    // An idle worker ends so soon after Drain that its answer may be lost with it.
    gone = worker.lost || (worker.drain_sent && asked.now() - worker.last_answer > kListedWait);
    if (gone) return true;
    if (!worker.answered || !worker.info.load.draining) return false;
    return !wait || (worker.info.load.running == 0 && worker.info.load.queue == 0);
  });
  const Inquiry::Worker& worker = inquiry.workers().begin()->second;
  if (status.code() == StatusCode::kFailed) return status;
  if (!status.ok() && !worker.answered) return unavailable(address + ": " + status.message());
  if (!worker.refusal.empty()) return refused(address, worker);
  if (!status.ok()) {
    return Status(StatusCode::kDeadline,
                  address + " still has " + std::to_string(worker.info.load.running) +
                      " running and " + std::to_string(worker.info.load.queue) +
                      " queued requests after " + format_duration(options.timeout) +
                      "; it goes on draining");
  }
  WorkerRow row = row_of(address, worker);
  if (gone) row.state = "gone";
  return row;
}

Result<WorkerLeases> list_leases(const std::string& address, const AdminOptions& options) {
  AdminOptions direct = options;
  direct.join.clear();
  Inquiry inquiry(direct);
  KVD_RETURN_IF_ERROR(inquiry.open());
  KVD_RETURN_IF_ERROR(inquiry.add("", address));
  Inquiry::Worker& worker = inquiry.workers().begin()->second;
  worker.send_leases = true;
  const Status status =
      inquiry.run([&](Inquiry&) { return worker.leases || !worker.refusal.empty(); });
  if (status.code() == StatusCode::kFailed) return status;
  if (!status.ok()) return unavailable(address + ": " + status.message());
  if (!worker.leases) return refused(address, worker);
  WorkerLeases out{address, worker.incarnation.value, std::move(*worker.leases)};
  std::stable_sort(out.leases.leases.begin(), out.leases.leases.end(),
                   [](const proto::LeaseReport& a, const proto::LeaseReport& b) {
                     if (a.quarantined != b.quarantined) return a.quarantined;
                     return a.age_ms > b.age_ms;
                   });
  return out;
}

std::string worker_leases_json(const WorkerLeases& worker) {
  const auto number = [](const char* key, std::uint64_t value) {
    return std::string("\"") + key + "\":" + std::to_string(value);
  };
  const proto::Leases& all = worker.leases;
  std::string out = "{\"address\":" + http::json_string(worker.address) + ",\"incarnation\":\"" +
                    hex(worker.incarnation) + "\",\"pages\":{" + number("free", all.free) + "," +
                    number("leased", all.leased) + "," + number("sealed", all.sealed) + "," +
                    number("quarantined", all.quarantined) + "},\"leases\":[";
  bool first = true;
  for (const proto::LeaseReport& lease : all.leases) {
    out += std::string(first ? "" : ",") + "{\"state\":\"" +
           (lease.quarantined ? "quarantined" : "leased") + "\"," + number("pages", lease.pages) +
           ",\"ranges\":" + http::json_string(lease.ranges) + ",\"room\":\"" + hex(lease.room) +
           "\",\"peer\":\"" + hex(lease.peer) + "\"," + number("age_ms", lease.age_ms) +
           ",\"missing\":" + (lease.missing.empty() ? "null" : http::json_string(lease.missing)) +
           "}";
    first = false;
  }
  return out + "]}";
}

Result<control::KeyPair> make_keys() { return control::generate_keys(); }

std::string worker_row_json(const WorkerRow& row) {
  const auto text = [](const char* key, const std::string& value) {
    return std::string("\"") + key + "\":" + http::json_string(value) + ",";
  };
  const auto number = [](const char* key, std::uint64_t value) {
    return std::string("\"") + key + "\":" + std::to_string(value);
  };
  std::string out =
      "{" + text("address", row.address) + text("role", row.role) + text("state", row.state);
  if (row.incarnation != 0) {
    out += text("program", row.program) + text("version", row.version) + text("http", row.http) +
           text("model", row.model) + text("fingerprint", row.fingerprint) +
           text("incarnation", hex(row.incarnation)) + "\"providers\":[";
    for (std::size_t i = 0; i < row.providers.size(); ++i) {
      out += (i == 0 ? "" : ",") + http::json_string(row.providers[i]);
    }
    out += "]," + number("page_size", row.page_size) + "," + number("context", row.context) + ",";
  }
  return out + "\"load\":{" + number("queue", row.load.queue) + "," +
         number("running", row.load.running) + "," + number("free_pages", row.load.free_pages) +
         "," + number("total_pages", row.load.total_pages) +
         ",\"draining\":" + (row.load.draining ? "true" : "false") + "}}";
}

std::string worker_rows_json(const std::vector<WorkerRow>& rows) {
  std::string out = "{\"workers\":[";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out += (i == 0 ? "" : ",") + worker_row_json(rows[i]);
  }
  return out + "]}";
}

}  // namespace kvd::node
