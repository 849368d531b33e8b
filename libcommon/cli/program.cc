#include "cli/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include "cli/completion.h"
#include "cli/config_file.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/suggest.h"
#include "cli/version.h"

namespace kvd::cli {
namespace {

using Arguments = std::vector<std::string>;

// What every program has, beside its own table.
struct Standard {
  bool help = false, help_all = false, version = false, json = false, print_config = false;
  std::optional<Shell> completion;
  std::string config;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

void add_standard(OptionTable* table, Standard* s) {
  std::vector<Option> general;
  general.push_back(flag_option("help", &s->help, "say what the program does and exit"));
  general.push_back(flag_option("help-all", &s->help_all, "the same, with every option"));
  general.push_back(flag_option("version", &s->version, "print the version and exit"));
  general.push_back(flag_option("json", &s->json, "print one JSON document, errors too"));
  general.push_back(
      flag_option("print-config", &s->print_config, "print what every option is, and why, and exit")
          .hidden_in_brief());
  general.push_back(choice_option<std::optional<Shell>>(
      "completion", &s->completion,
      {{"bash", Shell::kBash}, {"zsh", Shell::kZsh}, {"fish", Shell::kFish}},
      "print a script that completes this program's words, and exit"));
  general.back().hidden = true;
  for (auto& option : general) option.argv_only = true;
  general.push_back(text_option("config", "FILE", &s->config, "read options from FILE: key = value")
                        .hidden_in_brief());
  general.push_back(choice_option<LogLevel>("log-level", &s->log_level,
                                            {{"debug", LogLevel::kDebug},
                                             {"info", LogLevel::kInfo},
                                             {"warn", LogLevel::kWarn},
                                             {"error", LogLevel::kError},
                                             {"off", LogLevel::kOff}},
                                            "least severe events that are logged to stderr")
                        .hidden_in_brief());
  general.push_back(
      choice_option<LogFormat>("log-format", &s->log_format,
                               {{"text", LogFormat::kText}, {"json", LogFormat::kJson}},
                               "form of the log lines")
          .hidden_in_brief());
  table->group("General", std::move(general));
}

// Where the values of an option come from; no values: the default stays.
struct Source {
  std::string origin = "default";  // for --print-config
  std::string context;             // in front of an error
  std::vector<ConfigValue> values;
};

// More than any real list; argv and files are bounded by it.
constexpr int kMaxListElements = 4096;

Arguments split_list(const std::string& text) {
  Arguments out;
  std::size_t begin = 0;
  while ((begin = text.find_first_not_of(", \t\n", begin)) != std::string::npos) {
    const std::size_t end = std::min(text.find_first_of(", \t\n", begin), text.size());
    out.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

class Parse {
 public:
  Parse(const Program& program, const Arguments& arguments, const Environment& environment,
        std::ostream& out, std::ostream& err)
      : program_(program), arguments_(arguments), environment_(environment), out_(out), err_(err) {}

  Invocation run();

 private:
  Status select_command();
  Status read_arguments();
  Status read_positionals();
  void read_environment();
  Status read_config_file();
  Status apply();
  Status apply_one(const Option& option, const Source& source);
  Status unknown_argument(const std::string& argument) const;
  std::vector<std::string> names(bool dashes) const;
  std::optional<int> answer() const;
  void print_version() const;
  void print_completion() const;
  void print_config() const;
  int fail(const Status& status) const;

  Source& source(const std::string& name) {
    for (std::size_t i = 0; i < table_.options().size(); ++i) {
      if (table_.options()[i].name == name) return sources_[i];
    }
    KVD_CHECK(false);
    std::abort();
  }

  const Program& program_;
  Arguments arguments_;
  const Environment& environment_;
  std::ostream& out_;
  std::ostream& err_;
  Standard standard_;
  const Command* command_ = nullptr;  // null: none named, of a program with subcommands
  OptionTable table_;
  Arguments words_;              // what is no option
  std::vector<Source> sources_;  // beside table_.options()
};

Status Parse::select_command() {
  if (program_.commands.size() == 1 && program_.commands[0].name.empty()) {
    command_ = &program_.commands[0];
    return {};
  }
  if (arguments_.empty() || arguments_[0].rfind("-", 0) == 0) return {};
  std::vector<std::string> known;
  for (const auto& command : program_.commands) {
    known.push_back(command.name);
    if (command.name == arguments_[0]) command_ = &command;
  }
  if (command_ == nullptr) {
    const std::string near = nearest(arguments_[0], known);
    return invalid_argument("unknown command " + arguments_[0] +
                            (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  arguments_.erase(arguments_.begin());
  return {};
}

std::vector<std::string> Parse::names(bool dashes) const {
  std::vector<std::string> out;
  for (const auto& option : table_.options()) {
    out.push_back(dashes ? "--" + option.name : option.name);
  }
  return out;
}

Status Parse::unknown_argument(const std::string& argument) const {
  if (argument.rfind("-", 0) != 0 || argument == "-") {
    return invalid_argument("unexpected argument \"" + argument + "\"");
  }
  const std::string name = argument.substr(0, argument.find('='));
  const std::string near = nearest(name, names(true));
  return invalid_argument("unknown option " + name +
                          (near.empty() ? "" : "; did you mean " + near + "?"));
}

// CLI11 reads `--name=` as a name without a value and would take the next argument for it.
Arguments separated(const Arguments& arguments, const OptionTable& table) {
  Arguments out;
  bool options_ended = false;
  for (const auto& argument : arguments) {
    const std::size_t equals = argument.find('=');
    options_ended = options_ended || argument == "--";
    if (!options_ended && argument.rfind("--", 0) == 0 && equals != std::string::npos) {
      const Option* option = table.find(argument.substr(2, equals - 2));
      if (option != nullptr && option->kind != Option::Kind::kFlag) {
        out.push_back(argument.substr(0, equals));
        out.push_back(argument.substr(equals + 1));
        continue;
      }
    }
    out.push_back(argument);
  }
  return out;
}

// CLI11 splits argv into options and values; everything else is the table's.
Status Parse::read_arguments() {
  CLI::App app;
  app.set_help_flag("");
  app.allow_extras();
  std::vector<CLI::Option*> rows;
  const auto keep = [](const CLI::results_t&) { return true; };
  for (const auto& option : table_.options()) {
    if (option.kind == Option::Kind::kFlag) {
      rows.push_back(app.add_flag("--" + option.name));
    } else {
      rows.push_back(app.add_option("--" + option.name, CLI::callback_t(keep)));
      rows.back()->expected(1, option.splits ? kMaxListElements : 1);
      rows.back()->allow_extra_args(option.splits);
    }
    rows.back()->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }
  Arguments reversed = separated(arguments_, table_);
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ArgumentMismatch& error) {
    const std::string name =
        std::string(error.what()).substr(0, std::string(error.what()).find(':'));
    const Option* option = name.size() > 2 ? table_.find(name.substr(2)) : nullptr;
    return invalid_argument(name + " needs a value" +
                            (option == nullptr ? "" : ": " + option->metavar));
  } catch (const CLI::Error& error) {
    return invalid_argument(error.what());
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Option& option = table_.options()[i];
    for (const auto& value : rows[i]->results()) {
      if (value.rfind("--", 0) == 0 && table_.find(value.substr(2)) != nullptr) {
        return invalid_argument("--" + option.name + " needs a value: " + option.metavar);
      }
      sources_[i].values.push_back({value, false});
    }
    if (!sources_[i].values.empty()) sources_[i].origin = "flag";
    sources_[i].context = "--" + option.name;
  }
  for (const auto& word : app.remaining()) {
    if (word.rfind("-", 0) == 0 && word != "-" && word != "--") return unknown_argument(word);
    if (word != "--") words_.push_back(word);
  }
  return {};
}

Status Parse::read_positionals() {
  if (command_ == nullptr) return words_.empty() ? Status() : unknown_argument(words_.front());
  const auto& positionals = command_->positionals;
  const bool endless = !positionals.empty() && positionals.back().rest != nullptr;
  if (words_.size() > positionals.size() && !endless) {
    return unknown_argument(words_[positionals.size()]);
  }
  if (endless && words_.size() > kMaxListElements) {
    return invalid_argument("more than " + std::to_string(kMaxListElements) + " arguments");
  }
  for (std::size_t i = 0; i < words_.size(); ++i) {
    const Positional& positional = positionals[std::min(i, positionals.size() - 1)];
    if (positional.rest != nullptr) {
      positional.rest->push_back(words_[i]);
    } else {
      *positional.field = words_[i];
    }
  }
  if (words_.size() < positionals.size() && !positionals[words_.size()].optional) {
    return invalid_argument(positionals[words_.size()].metavar +
                            " is missing: " + positionals[words_.size()].help);
  }
  return {};
}

void Parse::read_environment() {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const Option& option = table_.options()[i];
    if (option.argv_only || !sources_[i].values.empty()) continue;
    const auto value = environment_(option.env_name());
    // An empty variable is an unset one, as in most programs.
    if (!value || value->empty()) continue;
    sources_[i] = {"environment " + option.env_name(), option.env_name(), {{*value, false}}};
  }
}

Status Parse::read_config_file() {
  Source& file = source("config");
  if (file.values.empty()) return {};
  standard_.config = file.values.back().text;
  auto entries = read_config(standard_.config);
  if (!entries.ok()) return entries.status();
  std::vector<Source> read(sources_.size());
  for (const auto& entry : *entries) {
    const std::string place = standard_.config + ":" + std::to_string(entry.line);
    std::size_t i = 0;
    while (i < read.size() && table_.options()[i].name != entry.key) ++i;
    if (i == read.size()) {
      const std::string near = nearest(entry.key, names(false));
      return invalid_argument(place + ": unknown key " + entry.key +
                              (near.empty() ? "" : "; did you mean " + near + "?"));
    }
    if (table_.options()[i].argv_only || entry.key == "config") {
      return invalid_argument(place + ": " + entry.key + " belongs on the command line");
    }
    const bool list = table_.options()[i].kind == Option::Kind::kList;
    if (!list && !read[i].values.empty()) {
      return invalid_argument(place + ": " + entry.key + " is given twice");
    }
    if (!list && entry.values.size() != 1) {
      return invalid_argument(place + ": " + entry.key +
                              " takes one value; put double quotes around one with a comma");
    }
    read[i].origin = place;
    read[i].context = place + ": " + entry.key;
    read[i].values.insert(read[i].values.end(), entry.values.begin(), entry.values.end());
  }
  for (std::size_t i = 0; i < read.size(); ++i) {
    if (sources_[i].values.empty() && !read[i].values.empty()) sources_[i] = read[i];
  }
  return {};
}

Status Parse::apply_one(const Option& option, const Source& source) {
  if (source.values.empty()) return {};
  if (option.kind != Option::Kind::kList) {
    const Status status = option.set(source.values.back().text);
    return status.ok() ? status : status.with_context(source.context);
  }
  option.clear();
  int count = 0;
  for (const auto& value : source.values) {
    Arguments elements = {value.text};
    if (option.splits && !value.quoted) elements = split_list(value.text);
    for (const auto& element : elements) {
      if (++count > kMaxListElements) {
        return invalid_argument(source.context + ": more than " + std::to_string(kMaxListElements) +
                                " elements");
      }
      const Status status = option.set(element);
      if (!status.ok()) return status.with_context(source.context);
    }
  }
  return count > 0 ? Status() : invalid_argument(source.context + ": the list is empty");
}

Status Parse::apply() {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    KVD_RETURN_IF_ERROR(apply_one(table_.options()[i], sources_[i]));
  }
  return {};
}

void Parse::print_version() const {
  if (!standard_.json) {
    out_ << program_.name << " " << version() << "\n";
    return;
  }
  JsonWriter json;
  json.begin_object().field("program", program_.name).field("version", version());
  json.field("commit", commit()).field("build_type", build_type());
  for (const auto& [name, value] : program_.version_fields) json.field(name, value);
  out_ << json.end_object().take() << "\n";
}

void Parse::print_config() const {
  JsonWriter json;
  json.begin_object().key("options").begin_array();
  std::string text;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const Option& option = table_.options()[i];
    if (option.argv_only || option.name == "config") continue;
    const Arguments values = option.secret ? Arguments{} : option.show();
    std::string shown;
    for (const auto& value : values) shown += (shown.empty() ? "" : ", ") + config_text(value);
    json.begin_object().field("name", option.name).key("value");
    if (option.secret || values.empty()) {
      json.null();
    } else if (option.kind == Option::Kind::kList) {
      json.begin_array();
      for (const auto& value : values) json.value(value);
      json.end_array();
    } else {
      json.value(values.front());
    }
    json.field("origin", sources_[i].origin).field("secret", option.secret).end_object();
    // What has no value cannot be read back: it stands as a comment.
    const bool hidden = option.secret && !option.show().empty();
    const std::string line =
        (shown.empty() ? "# " : "") + option.name + " = " + (hidden ? "(not shown)" : shown);
    text += line + std::string(line.size() < 40 ? 40 - line.size() : 1, ' ') + "# " +
            sources_[i].origin + "\n";
  }
  json.end_array().end_object();
  out_ << (standard_.json ? json.take() + "\n" : text);
}

void Parse::print_completion() const {
  std::vector<CompletedCommand> commands;
  for (const Command& command : program_.commands) {
    OptionTable table = command.options;
    Standard fields;
    add_standard(&table, &fields);
    commands.push_back({command.name, command.summary, table.options()});
  }
  out_ << completion_script(*standard_.completion, program_.name, commands);
}

// The exit code when a standard option is all that was asked for.
std::optional<int> Parse::answer() const {
  if (standard_.help || standard_.help_all) {
    out_ << help_text(program_, command_, table_.options(), standard_.help_all);
    return kExitOk;
  }
  if (standard_.version) {
    print_version();
    return kExitOk;
  }
  if (standard_.completion) {
    print_completion();
    return kExitOk;
  }
  return std::nullopt;
}

int Parse::fail(const Status& status) const {
  if (standard_.json) {
    out_ << error_json(status) << "\n";
  } else {
    err_ << program_.name << ": " << status.message() << "; " << help_pointer(program_, command_)
         << "\n";
  }
  return kExitUsage;
}

Invocation Parse::run() {
  Invocation result;
  // Errors before the arguments are understood must already know how to be told.
  standard_.json = std::find(arguments_.begin(), arguments_.end(), "--json") != arguments_.end();
  const auto finish = [&] {
    result.json = standard_.json;
    result.log_level = standard_.log_level;
    result.log_format = standard_.log_format;
    result.command =
        command_ == nullptr ? 0 : static_cast<std::size_t>(command_ - program_.commands.data());
    return result;
  };
  const auto failed = [&](const Status& status) {
    result.exit = fail(status);
    return finish();
  };
  if (Status s = select_command(); !s.ok()) return failed(s);
  if (command_ != nullptr) {
    table_ = command_->options;
    standard_.log_level = command_->log_level;
  }
  add_standard(&table_, &standard_);
  sources_.resize(table_.options().size());
  if (Status s = read_arguments(); !s.ok()) return failed(s);
  // Help and version answer even where the environment or a file is wrong.
  for (const char* name : {"help", "help-all", "version", "completion", "json"}) {
    if (Status s = apply_one(*table_.find(name), source(name)); !s.ok()) return failed(s);
  }
  result.exit = answer();
  if (result.exit) return finish();
  read_environment();
  if (Status s = read_config_file(); !s.ok()) return failed(s);
  if (Status s = apply(); !s.ok()) return failed(s);
  if (standard_.print_config && command_ != nullptr) {
    print_config();
    result.exit = kExitOk;
    return finish();
  }
  if (Status s = read_positionals(); !s.ok()) return failed(s);
  if (command_ == nullptr) return failed(invalid_argument("no command"));
  return finish();
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

std::map<std::string, std::string> environment_with(const std::vector<std::string>& prefixes) {
  std::map<std::string, std::string> out;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::size_t equals = text.find('=');
    const bool wanted =
        std::any_of(prefixes.begin(), prefixes.end(),
                    [&](const std::string& prefix) { return text.starts_with(prefix); });
    if (wanted && equals != std::string::npos)
      out[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return out;
}

Invocation parse(const Program& program, const std::vector<std::string>& arguments,
                 const Environment& environment, std::ostream& out, std::ostream& err) {
  return Parse(program, arguments, environment, out, err).run();
}

// What is opened later must not become stdin, stdout or stderr: results would go into a socket. A
// closed one stays unusable: the other direction of nothing.
static void keep_standard_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
  }
}

Invocation parse(const Program& program, int argc, const char* const* argv) {
  keep_standard_streams();
  std::ostringstream out;
  const Invocation result = parse(program, Arguments(argv + std::min(argc, 1), argv + argc),
                                  process_environment(), out, std::cerr);
  if (!out.str().empty()) (void)write_out(out.str());
  configure_log(result.log_level, result.log_format, program.name);
  return result;
}

}  // namespace kvd::cli
