#include "common/worker_options.h"

#include "cli/output.h"
#include "cli/version.h"
#include "common/daemon.h"

namespace kvd::tools {
namespace {

using engine::EngineKind;
using transfer::Digest;

constexpr std::uint32_t kPageUnit = 32;

void add_model_options(cli::OptionTable* table, node::WorkerOptions* o) {
  engine::EngineOptions* e = &o->engine;
  table->group(
      "Model",
      {cli::text_option("model", "FILE", &e->model_path, "GGUF file; needed by --engine cpu"),
       cli::text_option("served-model-name", "NAME", &o->served_model_name,
                        "name of the model to clients")
           .with_default("the file's own")
           .hidden_in_brief(),
       cli::text_option("chat-template", "NAME", &e->chat_template,
                        "built-in chat template to use, such as chatml")
           .with_default("the file's own")
           .hidden_in_brief(),
       cli::count_option("context", &e->context, "longest prompt and output, in tokens")
           .with_default("the model's own")});
  table->group("Memory",
               {cli::bytes_option("kv-memory", &o->kv_memory, "size of the KV pool", 1 << 20),
                cli::count_option("page-size", &e->page_size, "tokens in a page, a multiple of 32",
                                  kPageUnit, 4096)});
}

void add_engine_options(cli::OptionTable* table, node::WorkerOptions* o) {
  engine::EngineOptions* e = &o->engine;
  table->group(
      "Engine",
      {cli::choice_option<EngineKind>("engine", &e->kind,
                                      {{"cpu", EngineKind::kCpu}, {"mock", EngineKind::kMock}},
                                      "what computes; mock has no model")
           .hidden_in_brief(),
       cli::count_option("threads", &e->threads, "threads that compute", 0, 1024)
           .with_default("all cores"),
       cli::cpus_option("pin", &e->pin_cpus, "CPUs that the threads are pinned to, as 0-3,8")
           .with_default("none")
           .hidden_in_brief(),
       cli::count_option("max-running", &e->max_running, "most sequences computed at once", 1,
                         4096),
       cli::count_option("chunk", &e->chunk, "most prompt tokens computed in one step", 1, 1 << 20)
           .hidden_in_brief(),
       cli::choice_option<std::string>(
           "cpu", &e->cpu,
           {{"scalar", "scalar"}, {"avx2", "avx2"}, {"avx512", "avx512"}, {"amx", "amx"}},
           "kernels to use")
           .with_default("the fastest here")
           .hidden_in_brief(),
       cli::flag_option("deterministic", &e->deterministic,
                        "one kernel whatever the batch and the thread count")
           .hidden_in_brief(),
       cli::text_option("trace-logits", "FILE", &e->trace_logits,
                        "write each step's logits to FILE")
           .hidden_in_brief(),
       cli::text_option("shape", "NAME", &e->shape, "with --engine mock: dimensions of this model")
           .hidden_in_brief(),
       cli::real_option("mock-compute", "US", &e->mock_us_per_token,
                        "with --engine mock: microseconds of compute per token", 0.0, 1e9)
           .hidden_in_brief()});
}

void add_transfer_options(cli::OptionTable* table, node::WorkerOptions* o) {
  transfer::TransferOptions* t = &o->transfer;
  table->group(
      "Transfer",
      {cli::text_option("provider", "NAME", &o->provider,
                        "what carries KV: local, tcp, tcp;ofi_rxm, verbs;ofi_rxm, efa, cxi")
           .with_default("the best that both ends have"),
       cli::flag_option("require-rdma", &t->require_rdma, "refuse TCP and local").hidden_in_brief(),
       cli::text_option("device", "NAME", &o->device, "network device, as libfabric names it")
           .with_default("any")
           .hidden_in_brief(),
       cli::text_option("fabric-addr", "HOST", &o->fabric_addr, "address that KV is sent to")
           .with_default("the host of --listen")
           .hidden_in_brief(),
       cli::choice_option<Digest>(
           "digest", &t->digest,
           {{"sample", Digest::kSample}, {"full", Digest::kFull}, {"off", Digest::kOff}},
           "how much of the KV is hashed and checked")
           .hidden_in_brief(),
       cli::negated_flag_option("no-stream", &t->stream, "send KV only when all of it is computed")
           .hidden_in_brief(),
       cli::duration_option("fence-after", {&t->fence_after},
                            "wait for quarantined pages before their peer is fenced")
           .hidden_in_brief()});
}

Status check_worker(const node::WorkerOptions& o, bool decode) {
  if (o.engine.kind == EngineKind::kCpu && o.engine.model_path.empty()) {
    return invalid_argument("--model FILE is missing; scripts/fetch-model prints the path of one");
  }
  if (o.engine.page_size % kPageUnit != 0) {
    return invalid_argument("--page-size " + std::to_string(o.engine.page_size) +
                            " is not a multiple of 32");
  }
  if (decode && o.prefills.empty() && o.common.join.empty() && o.common.keys.empty()) {
    return invalid_argument(
        "no prefill is named: give --prefill ADDR, --join ADDR, --keys FILE, or --prefill local");
  }
  for (const auto& address : o.prefills) {
    if (address == "local" && o.prefills.size() > 1) {
      return invalid_argument("--prefill local stands alone: both phases run in this process");
    }
  }
  return {};
}

}  // namespace

int worker_main(const WorkerProgram& worker, int argc, const char* const* argv) {
  node::WorkerOptions options;
  options.common.program = worker.name;
  options.common.version = cli::version();
  options.common.http = worker.http;
  options.common.listen = worker.listen;

  cli::Program program;
  program.name = worker.name;
  program.summary = worker.summary;
  cli::Command& command = program.commands.emplace_back();
  command.examples = worker.examples;
  add_model_options(&command.options, &options);
  if (worker.decode) {
    command.options.group(
        "Prefill",
        {cli::addresses_option(
            "prefill", &options.prefills,
            "prefill workers to use; \"local\": this process computes prompts too", {"local"})});
  }
  add_daemon_options(&command.options, &options.common, &options.transfer.dead_after);
  add_engine_options(&command.options, &options);
  add_transfer_options(&command.options, &options);
  add_security_options(&command.options, &options.common);

  const cli::Invocation invocation = cli::parse(program, argc, argv);
  if (invocation.exit) return *invocation.exit;
  if (const Status status = check_worker(options, worker.decode); !status.ok()) {
    return cli::report_error(worker.name, status, invocation.json);
  }
  return run_daemon(worker.name, invocation, options.common, [&] { return worker.start(options); });
}

}  // namespace kvd::tools
