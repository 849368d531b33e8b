#include "kvd-bench/pages_command.h"

#include <algorithm>
#include <iostream>
#include <memory>

#include "base/units.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "common/environment.h"
#include "kvd-bench/pages_report.h"
#include "kvd-bench/pages_run.h"
#include "peer/page_sets.h"
#include "peer/sender_spec.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kPoolBytes = 512u << 20;
// Of the first round: its speed says how long the others are.
constexpr std::uint64_t kRoundBytes = 128u << 20;
constexpr std::uint32_t kMostSets = 64;
constexpr std::uint32_t kMostPages = 1u << 16;  // small pages need no large pool
constexpr const char* kDefaultTokens = "2048";

void add_what_rows(cli::OptionTable* table, PagesOptions* o) {
  table->group(
      "What is sent",
      {cli::text_option("shape", "NAME", &o->shape,
                        "a built-in model: SmolLM2-135M, Llama-3.1-8B, Llama-3.1-70B, Qwen3-32B, "
                        "DeepSeek-V3"),
       cli::text_option("model-config", "FILE", &o->model_config,
                        "config.json of a model, in place of --shape"),
       cli::count_option("tp", &o->tp, "ranks that share the KV heads; one of them is measured", 1,
                         1024),
       cli::count_option("page-size", &o->page_size, "tokens in a page, a multiple of 32", 32,
                         4096),
       cli::text_option("tokens", "LENGTHS", &o->tokens,
                        "length of a prompt: N, LOW-HIGH or lognormal:MEDIAN:SIGMA")
           .with_default(kDefaultTokens),
       cli::bytes_option("page-bytes", &o->page_bytes, "pages of this size, in place of a model's",
                         1)
           .with_default("of the model"),
       cli::count_option("pages", &o->pages, "pages of a request, in place of --tokens", 1,
                         1u << 19),
       cli::flag_option("groups", &o->groups,
                        "send groups of layers, as while a prompt is computed"),
       cli::real_option("fragmentation", "SHARE", &o->fragmentation,
                        "share of a request's pages that no neighbour follows", 0, 1),
       cli::choice_option<transfer::Digest>("digest", &o->digest,
                                            {{"sample", transfer::Digest::kSample},
                                             {"full", transfer::Digest::kFull},
                                             {"off", transfer::Digest::kOff}},
                                            "what of the pages is hashed on both sides")});
}

void add_how_rows(cli::OptionTable* table, PagesOptions* o) {
  table->group(
      "Transport",
      {cli::text_option("peer", "ADDR", &o->peer,
                        "control address of a kvd-probe serve, which sends")
           .with_default("a process started here"),
       cli::text_option("provider", "NAME", &o->provider, "what carries the pages")
           .with_default("the best here, or that both have"),
       cli::text_option("device", "NAME", &o->device, "fabric device").with_default("any"),
       cli::text_option("fabric-addr", "HOST", &o->fabric_addr, "address of the interface")
           .with_default("127.0.0.1, or of the route to --peer"),
       cli::text_option("keys", "FILE", &o->keys, "CURVE keys of the control channel to --peer")
           .hidden_in_brief()});
  table->group(
      "Measuring",
      {cli::count_option("concurrency", &o->concurrency, "requests at once", 1, 1024),
       cli::real_option("rate", "R", &o->rate,
                        "start R requests a second, whatever becomes of them; latencies count from "
                        "the intended start",
                        0.001, 1e6)
           .with_default("none: the next starts when one ends"),
       cli::bytes_option("kv-memory", &o->pool_bytes, "size of each side's pool")
           .with_default("512 MiB, more for large requests"),
       cli::flag_option("spin", &o->spin, "never sleep"),
       cli::cpus_option("pin", &o->pin, "CPU of the sender and CPU of the receiver, as 0,1")
           .with_default("none"),
       cli::duration_option("max-time", {&o->max_time}, "end after this, with what there is"),
       cli::duration_option("timeout", {&o->timeout}, "wait for --peer, the link and a round"),
       cli::duration_option("dead-after", {&o->dead_after},
                            "silence after which --peer is taken for dead")
           .hidden_in_brief(),
       cli::count_option("pairs", &o->least_pairs,
                         "least pairs of rounds: one of pages, one of plain writes", 1, 100000)
           .hidden_in_brief(),
       cli::count_option("most-pairs", &o->most_pairs, "end after so many pairs", 1, 100000)
           .hidden_in_brief(),
       cli::real_option("precision", "SHARE", &o->tight,
                        "end when the ratio's 95 % interval is as narrow as this on each side",
                        0.0001, 1)
           .hidden_in_brief(),
       cli::count64_option("seed", &o->seed, "of the places of pages").hidden_in_brief()});
  table->group("Output",
               {cli::flag_option("ndjson", &o->ndjson, "print each pair of rounds as an event"),
                cli::flag_option("csv", &o->csv, "print comma-separated values")});
}

std::uint64_t host_memory() {
  const Environment environment = capture_environment();
  return environment.memory_bytes;
}

Status check_outputs(const PagesOptions& options, bool json) {
  if (int{json} + int{options.ndjson} + int{options.csv} > 1) {
    return invalid_argument("--json, --ndjson and --csv: give one of them");
  }
  return {};
}

// The ceiling at 1 MiB needs pools that have as much.
std::uint32_t sets_of_a_mib(std::uint64_t page_bytes, std::uint32_t pages_each) {
  const std::uint64_t set = page_bytes * PageSets::pages_needed(1, pages_each, 0);
  return static_cast<std::uint32_t>(((1u << 20) + set - 1) / set);
}

Result<PagesPlan> plan_layout(const PagesOptions& o) {
  PagesPlan plan;
  plan.options = o;
  if (o.page_size % 32 != 0) {
    return invalid_argument("--page-size " + std::to_string(o.page_size) +
                            " is not a multiple of 32");
  }
  if (o.pages && !o.tokens.empty())
    return invalid_argument("--pages and --tokens: give one of them");
  if (o.page_bytes != 0) {
    if (!o.model_config.empty() || !o.tokens.empty()) {
      return invalid_argument("--page-bytes takes --pages, and neither a model nor --tokens");
    }
    auto layout = plain_layout(o.page_bytes);
    if (!layout.ok()) return layout.status();
    plan.layout = *layout;
    plan.shape.name = "pages";
  } else {
    auto shape = o.model_config.empty() ? find_shape(o.shape) : read_model_config(o.model_config);
    if (!shape.ok()) return shape.status();
    auto layout = rank_layout(*shape, o.tp, o.page_size);
    if (!layout.ok()) return layout.status();
    plan.shape = *shape;
    plan.layout = *layout;
  }
  const std::uint32_t pages = o.pages.value_or(o.page_bytes != 0 ? 64 : 0);
  const std::string text = pages != 0 ? std::to_string(std::uint64_t{pages} * plan.layout.page_size)
                           : o.tokens.empty() ? kDefaultTokens
                                              : o.tokens;
  auto tokens = TokenLengths::parse(text);
  if (!tokens.ok()) return tokens.status();
  plan.tokens = *tokens;
  return plan;
}

}  // namespace

Result<PagesPlan> check_pages(const PagesOptions& options) {
  auto made = plan_layout(options);
  if (!made.ok()) return made;
  PagesPlan plan = std::move(*made);
  if (options.pin.size() > 2) return invalid_argument("--pin takes two CPUs: sender, receiver");
  if (!options.peer.empty() && options.pin.size() > 1) {
    return invalid_argument("--pin takes one CPU with --peer, the receiver's");
  }
  if (options.peer.empty() && !options.keys.empty()) {
    return invalid_argument("--keys is of use with --peer only");
  }
  plan.pages_each = plan.layout.pages_for(plan.tokens.longest());
  const std::uint64_t request = plan.pages_each * plan.layout.page_bytes();
  const std::uint64_t pool = options.pool_bytes != 0 ? options.pool_bytes : kPoolBytes;
  const std::uint32_t least = options.concurrency + 2;
  // Pages that nobody gets keep the others apart, and take as much of the pool.
  const std::uint64_t each = options.fragmentation > 0 ? 2 * request : request;
  const std::uint64_t fitting =
      std::min<std::uint64_t>({pool / each, kMostSets, kMostPages / plan.pages_each});
  plan.sets = std::max({least, static_cast<std::uint32_t>(fitting),
                        sets_of_a_mib(plan.layout.page_bytes(), plan.pages_each)});
  const std::uint64_t pages =
      PageSets::pages_needed(plan.sets, plan.pages_each, options.fragmentation);
  const std::uint64_t bytes = pages * plan.layout.page_bytes();
  if (pages > (1u << 24) || 3 * bytes > host_memory() ||
      (options.pool_bytes != 0 && bytes > 2 * options.pool_bytes + 2 * request)) {
    return invalid_argument("each side needs a pool of " + format_bytes(bytes) + ", for " +
                            std::to_string(plan.sets) + " requests of " + format_bytes(request) +
                            ": lower --concurrency or the request's length, or raise --kv-memory");
  }
  if (!options.peer.empty() && bytes > kMostPeerPoolBytes) {
    return invalid_argument("each side needs a pool of " + format_bytes(bytes) +
                            ", and a peer takes " + format_bytes(kMostPeerPoolBytes) +
                            " at most: lower --kv-memory, --concurrency or the request's length");
  }
  plan.pool_pages = static_cast<std::uint32_t>(pages);
  const std::uint64_t requests = (kRoundBytes + request - 1) / request;
  plan.requests_a_round =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(requests, options.concurrency, 4096));
  return plan;
}

namespace {

int run_verb(PagesOptions& options, const cli::Invocation& invocation) {
  const auto failed = [&](const Status& status) {
    return cli::report_error(kBenchProgram, status, invocation.json || options.ndjson);
  };
  if (const Status status = check_outputs(options, invocation.json); !status.ok())
    return failed(status);
  const std::atomic<int>& signals = cli::count_signals();
  options.stop = [&signals] { return signals.load() != 0; };
  options.notice = [](const std::string& text) {
    std::cerr << kBenchProgram << ": " << text << std::endl;
  };
  const auto plan = check_pages(options);
  if (!plan.ok()) return failed(plan.status());
  const Environment environment = capture_environment();
  if (options.ndjson) {
    const Status status = cli::write_out(pages_start_event(*plan, environment));
    if (!status.ok()) return failed(status);
  }
  cli::Progress progress("pairs of rounds", options.least_pairs);
  PagesWatch watch;
  watch.stop = options.stop;
  watch.paired = [&](const PagesResult& result) {
    progress.update(result.pairs.size());
    if (options.ndjson) (void)cli::write_out(pages_interval_event(result));
  };
  const auto result = run_pages(*plan, watch);
  if (!result.ok()) return failed(result.status());
  std::string text;
  if (invocation.json) {
    text = pages_json(*result, environment) + "\n";
  } else if (options.ndjson) {
    text = pages_end_event(*result, environment);
  } else {
    text = options.csv ? pages_csv(*result, environment) : pages_text(*result, environment);
  }
  if (const Status status = cli::write_out(text); !status.ok()) return failed(status);
  return result->partial ? cli::kExitPartial : cli::kExitOk;
}

}  // namespace

Verb pages_verb() {
  const auto options = std::make_shared<PagesOptions>();
  Verb verb;
  verb.command.name = "pages";
  verb.command.log_level = LogLevel::kWarn;
  verb.command.summary = "transfer KV pages, shaped by a model, and compare with plain writes";
  add_what_rows(&verb.command.options, options.get());
  add_how_rows(&verb.command.options, options.get());
  verb.command.examples =
      "kvd-bench pages --shape Llama-3.1-8B --fragmentation 1\n"
      "kvd-bench pages --page-bytes 64KiB --pages 512 --provider tcp --spin --json > before.json\n"
      "kvd-bench pages --groups --rate 50 --ndjson\n"
      "kvd-bench pages --peer 10.0.0.2:7300";
  verb.run = [options](const cli::Invocation& invocation) {
    return run_verb(*options, invocation);
  };
  return verb;
}

}  // namespace kvd::tools
