#include "kvd-route/generate.h"

#include <unistd.h>

#include <csignal>

#include "base/units.h"
#include "cli/exit_code.h"
#include "cli/input.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"

namespace kvd::tools {
namespace {

// Turns stdin into prompts. What is wrong with the input ends it and is kept in status().
class PromptReader {
 public:
  explicit PromptReader(const GenerateForm& form) : form_(form), input_(STDIN_FILENO) {}

  bool next(node::Prompt* prompt) {
    if (!status_.ok()) return false;
    *prompt = {};
    if (!form_.lines && !form_.ndjson) return next_text(prompt);
    std::string line;
    while (true) {
      const auto more = input_.next_line(&line);
      if (!more.ok()) return fail(more.status());
      if (!*more) return false;
      ++line_;
      if (line.find_first_not_of(" \t") != std::string::npos) break;
    }
    return form_.lines ? take_text(line, prompt) : take_json(line, prompt);
  }
  const Status& status() const { return status_; }

 private:
  bool next_text(node::Prompt* prompt) {
    if (line_++ > 0) return false;
    const auto text = input_.read_all();
    if (!text.ok()) return fail(text.status());
    std::string prompt_text = *text;
    while (!prompt_text.empty() && (prompt_text.back() == '\n' || prompt_text.back() == '\r')) {
      prompt_text.pop_back();
    }
    if (prompt_text.empty()) return fail(invalid_argument("no prompt on stdin"));
    return take_text(prompt_text, prompt);
  }

  bool take_text(const std::string& text, node::Prompt* prompt) {
    if (!is_valid_utf8(text)) return fail(invalid_argument("the prompt is not valid UTF-8"));
    prompt->text = text;
    return true;
  }

  bool take_json(const std::string& line, node::Prompt* prompt) {
    const auto fields = cli::parse_json_object(line);
    if (!fields.ok()) return fail(fields.status());
    bool have_prompt = false;
    std::string overrides;
    for (const auto& field : *fields) {
      if (field.name == "id") {
        prompt->id = field.is_string ? field.text : field.json;
      } else if (field.name == "messages") {
        prompt->messages = field.json;
        have_prompt = true;
      } else if (field.name == "prompt") {
        (field.is_string ? prompt->text : prompt->prompt_json) =
            field.is_string ? field.text : field.json;
        have_prompt = true;
      } else {
        overrides += overrides.empty() ? "{" : ",";
        overrides += cli::JsonWriter().value(field.name).take() + ":" + field.json;
      }
    }
    if (!have_prompt) return fail(invalid_argument("neither \"prompt\" nor \"messages\""));
    if (!overrides.empty()) prompt->overrides = overrides + "}";
    return true;
  }

  bool fail(const Status& status) {
    const std::string place =
        form_.lines || form_.ndjson ? "stdin line " + std::to_string(line_) : "stdin";
    status_ = status.with_context(place);
    return false;
  }

  GenerateForm form_;
  cli::InputReader input_;
  Status status_;
  std::uint64_t line_ = 0;
};

enum class Output { kText, kJson, kNdjson };

// Writes results as they come. Called from generate()'s sink thread, finish() after it has
// returned.
class ResultWriter {
 public:
  ResultWriter(Output output, bool piece_events)
      : output_(output), piece_events_(piece_events), progress_("generate", 0) {}

  void on_text(std::uint64_t index, std::string_view text) {
    if (output_ == Output::kText) {
      streamed_ = true;
      write(text);
    } else if (output_ == Output::kNdjson && piece_events_ && !text.empty()) {
      cli::JsonWriter json;
      json.begin_object().field("event", "text").field("index", index).field("text", text);
      write(json.end_object().take() + "\n");
    }
  }

  void on_result(const node::GenerateResult& result) {
    ++(result.status.ok() ? succeeded_ : failed_);
    if (output_ == Output::kJson) {
      document_ += (document_.empty() ? "" : ",") + result.json;
      progress_.update(succeeded_ + failed_);
    } else if (output_ == Output::kNdjson) {
      // The object gets its event's name in front.
      write("{\"event\":\"result\"," + result.json.substr(1) + "\n");
    } else {
      if (!streamed_) write(result.text);
      streamed_ = false;
      if (result.status.ok() || !result.text.empty()) write("\n");
      if (!result.status.ok()) {
        cli::report_error("kvd-route", result.status.with_context("prompt " + result.id), false);
      }
    }
  }

  // Says how it ended; returns the exit code.
  int finish(const Status& status) {
    if (!write_status_.ok()) return cli::report_error("kvd-route", write_status_, false);
    if (output_ == Output::kJson) {
      std::string document = "{\"results\":[" + document_ + "]";
      // Without its braces, the error document is a field.
      if (!status.ok()) {
        const std::string error = cli::error_json(status);
        document += "," + error.substr(1, error.size() - 2);
      }
      (void)cli::write_out(document + "}\n");
    } else if (output_ == Output::kNdjson) {
      if (!status.ok())
        (void)cli::write_out("{\"event\":\"error\"," + cli::error_json(status).substr(1) + "\n");
      cli::JsonWriter json;
      json.begin_object().field("event", "end").field("succeeded", succeeded_);
      (void)cli::write_out(json.field("failed", failed_).end_object().take() + "\n");
    } else if (!status.ok() && failed_ != 1) {
      // A single failed prompt was reported with its number.
      return cli::report_error("kvd-route", status, false);
    }
    return cli::exit_code(status);
  }

 private:
  void write(std::string_view text) {
    if (!write_status_.ok()) return;
    write_status_ = cli::write_out(text);
    // Nobody reads any more: what is under way is for nothing, as if the user had ended it.
    if (!write_status_.ok()) std::raise(SIGTERM);
  }

  Output output_;
  bool piece_events_;
  cli::Progress progress_;
  std::string document_;
  Status write_status_;
  bool streamed_ = false;
  std::uint64_t succeeded_ = 0, failed_ = 0;
};

}  // namespace

int run_generate(const RouteFields& fields, const cli::Invocation& invocation) {
  const bool no_workers = fields.generate.url.empty() && fields.generate.join.empty() &&
                          fields.generate.decodes.empty();
  if (no_workers) {
    return cli::report_error(
        "kvd-route",
        invalid_argument("no workers are named: give --decode ADDR, --join ADDR or --url URL"),
        invocation.json);
  }
  const Output output = invocation.json      ? Output::kJson
                        : fields.form.ndjson ? Output::kNdjson
                                             : Output::kText;
  const std::atomic<int>& signals = cli::count_signals();
  node::GenerateOptions options = fields.generate;
  options.interrupt = &signals;
  // Text on a terminal or in a pipe flows as it is made, one prompt after the other.
  const bool piece_events = options.stream;
  options.ordered = output == Output::kText;
  options.stream = output == Output::kText || piece_events;

  PromptReader reader(fields.form);
  ResultWriter writer(output, piece_events);
  node::GenerateSink sink;
  sink.on_text = [&](std::uint64_t index, std::string_view text) { writer.on_text(index, text); };
  sink.on_result = [&](const node::GenerateResult& result) { writer.on_result(result); };
  const Status status = node::generate(
      options, [&](node::Prompt* prompt) { return signals.load() == 0 && reader.next(prompt); },
      sink);
  return writer.finish(reader.status().ok() ? status : reader.status());
}

}  // namespace kvd::tools
