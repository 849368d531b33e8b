#include "kvd-bench/engine_command.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "engine/cpu/thread_pool.h"
#include "kvd-bench/engine_report.h"
#include "kvd-bench/engine_runs.h"

namespace kvd::tools {
namespace {

enum class Phase { kBoth, kPrefill, kDecode };

struct Fields {
  EngineBenchOptions options;
  Phase phase = Phase::kBoth;
};

constexpr std::uint32_t kPageUnit = 32;

void add_what_rows(cli::OptionTable* table, Fields* f) {
  EngineBenchOptions* o = &f->options;
  constexpr std::uint32_t kMost = 1 << 20;
  table->group("Model", {cli::text_option("model", "FILE", &o->model, "GGUF file")});
  table->group(
      "What is measured",
      {cli::choice_option<Phase>(
           "phase", &f->phase,
           {{"both", Phase::kBoth}, {"prefill", Phase::kPrefill}, {"decode", Phase::kDecode}},
           "prompts, generation, or both"),
       cli::counts_option("prompts", &o->prompts, "lengths of prompts, in tokens", 1, kMost),
       cli::counts_option("batches", &o->batches, "sequences that generate together", 1, 4096),
       cli::counts_option("contexts", &o->contexts, "tokens that each sequence has before", 0,
                          kMost),
       cli::text_option("compare", "FILE", &o->compare,
                        "an earlier result to print ratios to, ours or another program's")});
}

void add_how_rows(cli::OptionTable* table, EngineBenchOptions* o) {
  table->group(
      "Engine",
      {cli::count_option("threads", &o->threads, "threads that compute", 0, 1024)
           .with_default("all cores"),
       cli::cpus_option("pin", &o->pin, "CPUs that the threads are pinned to, as 0-3,8")
           .with_default("none"),
       cli::choice_option<std::string>(
           "cpu", &o->cpu,
           {{"scalar", "scalar"}, {"avx2", "avx2"}, {"avx512", "avx512"}, {"amx", "amx"}},
           "kernels to use")
           .with_default("the fastest here"),
       cli::count_option("page-size", &o->page_size, "tokens in a page, a multiple of 32",
                         kPageUnit, 4096)
           .hidden_in_brief(),
       cli::count_option("chunk", &o->chunk, "most prompt tokens computed in one step", 1, 1 << 20)
           .hidden_in_brief()});
  table->group(
      "Sampling",
      {cli::count_option("samples", &o->samples, "undisturbed samples of each figure", 1, 1000)
           .hidden_in_brief(),
       cli::duration_option("max-time", {&o->max_time}, "end after this, with what there is")});
  table->group("Output",
               {cli::flag_option("ndjson", &o->ndjson, "print each figure as an event, one a line"),
                cli::flag_option("csv", &o->csv, "print comma-separated values")});
}

Status check(const Fields& fields, bool json) {
  const EngineBenchOptions& o = fields.options;
  if (o.model.empty()) {
    return invalid_argument("--model FILE is missing; scripts/fetch-model prints the path of one");
  }
  if (o.page_size % kPageUnit != 0) {
    return invalid_argument("--page-size " + std::to_string(o.page_size) +
                            " is not a multiple of 32");
  }
  if (int{json} + int{o.ndjson} + int{o.csv} > 1) {
    return invalid_argument("--json, --ndjson and --csv: give one of them");
  }
  return {};
}

// Measures one figure after the other until all are there, a signal comes or the time is over.
class Bench {
 public:
  explicit Bench(const EngineBenchOptions& options)
      : options_(options), signals_(cli::count_signals()), end_(clock_.now() + options.max_time) {}

  Status run();
  const EngineReport& report() const { return report_; }

 private:
  bool over() const { return signals_.load() != 0 || clock_.now() >= end_; }
  Status measure(const SpeedFigure& what);

  const EngineBenchOptions& options_;
  const std::atomic<int>& signals_;
  const SteadyClock clock_;
  const TimePoint end_;
  std::unique_ptr<EngineRuns> runs_;
  std::unique_ptr<MemoryReader> memory_;  // for decode
  EngineReport report_;
};

Status Bench::run() {
  report_.file = options_.model;
  report_.threads = options_.threads != 0 ? options_.threads : engine::cpu::usable_cpus();
  if (!options_.compare.empty()) {
    auto reference = read_reference(options_.compare);
    if (!reference.ok()) return reference.status();
    report_.reference_file = options_.compare;
    report_.reference = std::move(*reference);
  }
  auto runs = EngineRuns::open(options_);
  if (!runs.ok()) return runs.status();
  runs_ = std::move(*runs);
  report_.kernels = runs_->kernels();
  report_.cost = runs_->cost();
  report_.environment = capture_environment();
  {
    cli::Progress progress("limits of the host", 0);
    progress.update(0);
    auto ceilings = measure_ceilings(report_.kernels, options_.threads, options_.pin,
                                     report_.cost.step_bytes, [this] { return over(); });
    if (!ceilings.ok()) return ceilings.status();
    report_.ceilings = *ceilings;
  }
  if (!options_.batches.empty()) {
    auto memory = MemoryReader::open(options_.threads, options_.pin);
    if (!memory.ok()) return memory.status();
    memory_ = std::move(*memory);
  }
  if (options_.ndjson) KVD_RETURN_IF_ERROR(cli::write_out(start_event(report_)));
  SpeedFigure what;
  for (const std::uint32_t prompt : options_.prompts) {
    what.tokens = prompt;
    KVD_RETURN_IF_ERROR(measure(what));
  }
  if (!options_.prompts.empty()) {
    what.kind = SpeedFigure::Kind::kMatrices;
    what.tokens = options_.chunk;
    KVD_RETURN_IF_ERROR(measure(what));
  }
  // The longest context first: its prompt serves the shorter ones too.
  std::vector<std::uint32_t> contexts = options_.contexts;
  std::sort(contexts.rbegin(), contexts.rend());
  for (const std::uint32_t context : contexts) {
    for (const std::uint32_t batch : options_.batches) {
      what = {};
      what.kind = SpeedFigure::Kind::kDecode;
      what.batch = batch, what.context = context;
      KVD_RETURN_IF_ERROR(measure(what));
    }
  }
  return {};
}

Status Bench::measure(const SpeedFigure& what) {
  if (over()) {
    report_.partial = true;
    return {};
  }
  cli::Progress progress(what.name(), options_.samples);
  SampleLimits limits;
  limits.wanted = options_.samples;
  limits.stop = [this] { return over(); };
  limits.progress = [&progress](std::size_t clean) { progress.update(clean); };
  progress.update(0);
  const auto run = [&] {
    switch (what.kind) {
      case SpeedFigure::Kind::kPrefill:
        return runs_->prefill(what.tokens, limits);
      case SpeedFigure::Kind::kMatrices:
        return runs_->matrices(limits);
      case SpeedFigure::Kind::kDecode:
        break;
    }
    return runs_->decode(what.batch, what.context, limits, memory_.get());
  };
  const SpeedFigure figure = run();
  if (figure.tok_per_s.n == 0) {
    report_.partial = true;
    return {};
  }
  report_.figures.push_back(figure);
  return options_.ndjson ? cli::write_out(result_event(report_, figure)) : Status();
}

int run_engine(Fields& fields, const cli::Invocation& invocation) {
  const auto failed = [&](const Status& status) {
    return cli::report_error(kBenchProgram, status, invocation.json);
  };
  if (const Status status = check(fields, invocation.json); !status.ok()) return failed(status);
  if (fields.phase == Phase::kPrefill) fields.options.batches.clear();
  if (fields.phase == Phase::kDecode) fields.options.prompts.clear();
  Bench bench(fields.options);
  if (const Status status = bench.run(); !status.ok()) return failed(status);
  const EngineReport& report = bench.report();
  std::string text;
  if (invocation.json) {
    text = report_json(report) + "\n";
  } else if (fields.options.ndjson) {
    text = end_event(report);
  } else {
    text = fields.options.csv ? report_csv(report) : report_text(report);
  }
  if (const Status status = cli::write_out(text); !status.ok()) return failed(status);
  return report.partial ? cli::kExitPartial : cli::kExitOk;
}

}  // namespace

Verb engine_verb() {
  const auto fields = std::make_shared<Fields>();
  Verb verb;
  verb.command.name = "engine";
  verb.command.log_level = LogLevel::kWarn;
  verb.command.summary = "prefill and decode speed of a model on this host";
  add_what_rows(&verb.command.options, fields.get());
  add_how_rows(&verb.command.options, &fields->options);
  verb.command.examples =
      "kvd-bench engine --model m.gguf --threads 2\n"
      "kvd-bench engine --model m.gguf --json > before.json\n"
      "kvd-bench engine --model m.gguf --compare before.json --phase decode --batches 1,8";
  verb.run = [fields](const cli::Invocation& invocation) {
    return run_engine(*fields, invocation);
  };
  return verb;
}

}  // namespace kvd::tools
