#include "cli/program.h"

#include <catch2/catch.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

#include "cli/config_file.h"
#include "cli/suggest.h"
#include "cli/version.h"

namespace kvd::cli {
namespace {

struct Fields {
  std::string model, listen = "127.0.0.1:7100", api_key, worker;
  bool insecure = false, stream = true;
  std::uint64_t kv_memory = 1 << 30;
  std::uint32_t page_size = 32;
  Duration timeout{30'000'000'000}, dead_a{2'000'000'000}, dead_b{2'000'000'000};
  std::vector<std::string> prefills, stops;
  std::vector<int> cpus;
  std::vector<std::uint32_t> sizes = {8, 16};
  float temperature = 1;
  int engine = 0;
};

Program make_program(Fields* f) {
  Program program;
  program.name = "kvd-x";
  program.summary = "does x";
  Command command;
  command.options.group(
      "Main",
      {text_option("model", "FILE", &f->model, "the model"),
       address_option("listen", &f->listen, "control address"),
       text_option("api-key", "KEY", &f->api_key, "key of clients").as_secret(),
       flag_option("insecure", &f->insecure, "no keys"),
       negated_flag_option("no-stream", &f->stream, "whole pages").hidden_in_brief(),
       bytes_option("kv-memory", &f->kv_memory, "pool", 1 << 20),
       count_option("page-size", &f->page_size, "tokens", 32, 4096),
       duration_option("timeout", {&f->timeout}, "wait"),
       duration_option("dead-after", {&f->dead_a, &f->dead_b}, "silence"),
       addresses_option("prefill", &f->prefills, "prefills", {"local"}),
       list_option("stop", "TEXT", &f->stops, "stop strings"), cpus_option("pin", &f->cpus, "CPUs"),
       counts_option("sizes", &f->sizes, "sizes", 1, 64),
       real_option("temperature", "T", &f->temperature, "of the draw", 0.0F, 100.0F),
       choice_option<int>("engine", &f->engine, {{"cpu", 0}, {"mock", 1}}, "what computes")});
  command.examples = "kvd-x --model m.gguf";
  program.commands.push_back(std::move(command));
  return program;
}

struct Run {
  Fields fields;
  Invocation invocation;
  std::string out, err;
  bool started() const { return !invocation.exit; }
};

Run run_with(const std::vector<std::string>& arguments,
             const std::map<std::string, std::string>& env = {}) {
  Run run;
  std::ostringstream out;
  std::ostringstream err;
  const auto lookup = [&env](const std::string& name) -> std::optional<std::string> {
    const auto it = env.find(name);
    if (it == env.end()) return std::nullopt;
    return it->second;
  };
  const Program program = make_program(&run.fields);
  run.invocation = parse(program, arguments, lookup, out, err);
  run.out = out.str();
  run.err = err.str();
  return run;
}

// A file in the working directory of the test, removed at the end.
struct ConfigFile {
  std::string path = "kvd_cli_test.conf";
  explicit ConfigFile(const std::string& text) { std::ofstream(path) << text; }
  ~ConfigFile() { std::remove(path.c_str()); }
};

void expect_usage_error(const Run& run, const std::string& message) {
  CAPTURE(run.err);
  REQUIRE(run.invocation.exit.has_value());
  CHECK(*run.invocation.exit == 2);
  CHECK(run.out.empty());
  CHECK(run.err == "kvd-x: " + message + "; see kvd-x --help\n");
}

}  // namespace

TEST_CASE("options: every kind of value reaches its field") {
  const Run run = run_with({"--model",
                            "m.gguf",
                            "--listen=[::1]:0",
                            "--insecure",
                            "--no-stream",
                            "--kv-memory",
                            "64MiB",
                            "--page-size",
                            "64",
                            "--timeout",
                            "250ms",
                            "--dead-after",
                            "3s",
                            "--prefill",
                            "127.0.0.1:1",
                            "127.0.0.1:2",
                            "--stop",
                            "a, b",
                            "--stop",
                            "[x]",
                            "--pin",
                            "0-2,5",
                            "--temperature",
                            "0.5",
                            "--engine",
                            "mock",
                            "--sizes",
                            "1,64",
                            "2"});
  CAPTURE(run.err);
  REQUIRE(run.started());
  CHECK(run.fields.model == "m.gguf");
  CHECK(run.fields.listen == "[::1]:0");
  CHECK(run.fields.insecure);
  CHECK_FALSE(run.fields.stream);
  CHECK(run.fields.kv_memory == 64 << 20);
  CHECK(run.fields.page_size == 64);
  CHECK(run.fields.timeout == Duration(250'000'000));
  CHECK(run.fields.dead_a == Duration(3'000'000'000));
  CHECK(run.fields.dead_b == Duration(3'000'000'000));
  CHECK(run.fields.prefills == std::vector<std::string>{"127.0.0.1:1", "127.0.0.1:2"});
  CHECK(run.fields.stops == std::vector<std::string>{"a, b", "[x]"});
  CHECK(run.fields.cpus == std::vector<int>{0, 1, 2, 5});
  CHECK(run.fields.sizes == std::vector<std::uint32_t>{1, 64, 2});
  CHECK(run.fields.temperature == 0.5F);
  CHECK(run.fields.engine == 1);
}

TEST_CASE("options: a list is given by repetition, commas or further arguments") {
  const std::vector<std::string> three = {"a:1", "b:2", "local"};
  CHECK(run_with({"--prefill", "a:1", "b:2", "local"}).fields.prefills == three);
  CHECK(run_with({"--prefill", "a:1", "--prefill", "b:2,local"}).fields.prefills == three);
  CHECK(run_with({"--prefill=a:1 b:2", "--prefill=local"}).fields.prefills == three);
}

TEST_CASE("options: the last of two scalars counts") {
  CHECK(run_with({"--model", "a", "--model", "b"}).fields.model == "b");
}

TEST_CASE("options: flag before environment before file before default") {
  const ConfigFile file("model = file.gguf\npage-size = 96\nkv-memory = 2MiB\n");
  const Run run = run_with({"--config", file.path, "--model", "flag.gguf"},
                           {{"KVD_MODEL", "env.gguf"}, {"KVD_PAGE_SIZE", "64"}});
  CAPTURE(run.err);
  REQUIRE(run.started());
  CHECK(run.fields.model == "flag.gguf");
  CHECK(run.fields.page_size == 64);
  CHECK(run.fields.kv_memory == 2 << 20);
  CHECK(run.fields.timeout == Duration(30'000'000'000));
}

TEST_CASE("options: a list from a flag replaces the file's") {
  const ConfigFile file("prefill = a:1, b:2\nprefill = c:3\n");
  CHECK(run_with({"--config", file.path}).fields.prefills ==
        std::vector<std::string>{"a:1", "b:2", "c:3"});
  CHECK(run_with({"--config", file.path, "--prefill", "d:4"}).fields.prefills ==
        std::vector<std::string>{"d:4"});
}

TEST_CASE("options: a bad value names the option, the value and the accepted form") {
  expect_usage_error(run_with({"--kv-memory", "12 apples"}),
                     "--kv-memory: \"12 apples\" is not a size, for example 64KiB, 1GiB or 500MB");
  expect_usage_error(run_with({"--kv-memory", "1KiB"}),
                     "--kv-memory: \"1KiB\" is not a size of at least 1MiB");
  expect_usage_error(run_with({"--page-size", "31"}),
                     "--page-size: \"31\" is not a whole number from 32 to 4096");
  expect_usage_error(run_with({"--page-size", "32x"}),
                     "--page-size: \"32x\" is not a whole number from 32 to 4096");
  expect_usage_error(run_with({"--timeout", "0"}),
                     "--timeout: \"0\" is not a time above zero, for example 250ms, 30s or 2m");
  expect_usage_error(
      run_with({"--listen", "7100"}),
      "--listen: \"7100\" is not HOST:PORT, for example 127.0.0.1:7100 or [::1]:7100");
  expect_usage_error(run_with({"--engine", "gpu"}), "--engine: \"gpu\" is not one of cpu, mock");
  expect_usage_error(run_with({"--pin", "3-1"}),
                     "--pin: \"3-1\" is not a CPU number or range, for example 0-3,8");
  expect_usage_error(run_with({"--temperature", "nan"}),
                     "--temperature: \"nan\" is not a number from 0 to 100");
  expect_usage_error(run_with({"--sizes", "1,65"}),
                     "--sizes: \"65\" is not a whole number from 1 to 64");
  expect_usage_error(run_with({"--insecure=maybe"}), "--insecure: \"maybe\" is not true or false");
  expect_usage_error(run_with({}, {{"KVD_PAGE_SIZE", "x"}}),
                     "KVD_PAGE_SIZE: \"x\" is not a whole number from 32 to 4096");
}

TEST_CASE("options: a missing value is not taken from the next option") {
  expect_usage_error(run_with({"--model"}), "--model needs a value: FILE");
  expect_usage_error(run_with({"--model", "--insecure"}), "--model needs a value: FILE");
  expect_usage_error(run_with({"--model=", "--insecure"}), "--model: the value is empty");
  expect_usage_error(run_with({"--prefill", ","}), "--prefill: the list is empty");
}

TEST_CASE("options: an unknown one names its nearest neighbour") {
  expect_usage_error(run_with({"--modle", "m"}), "unknown option --modle; did you mean --model?");
  expect_usage_error(run_with({"--modle=m"}), "unknown option --modle; did you mean --model?");
  expect_usage_error(run_with({"--colour"}), "unknown option --colour");
  expect_usage_error(run_with({"-m"}), "unknown option -m");
  expect_usage_error(run_with({"stray"}), "unexpected argument \"stray\"");
  CHECK(nearest("insec", {"insecure", "inspect"}) == "insecure");
}

TEST_CASE("options: with --json a usage error is a JSON document on stdout") {
  const Run run = run_with({"--json", "--modle", "m"});
  CHECK(*run.invocation.exit == 2);
  CHECK(run.err.empty());
  CHECK(run.out.rfind("{\"error\":{\"code\":\"", 0) == 0);
  CHECK(run.out.find("did you mean --model?\"}}\n") != std::string::npos);
}

TEST_CASE("config file: an unknown key fails with its place") {
  const ConfigFile file("# comment\n\nmodle = m.gguf\n");
  expect_usage_error(run_with({"--config", file.path}),
                     file.path + ":3: unknown key modle; did you mean model?");
}

TEST_CASE("config file: what is wrong is named with its line") {
  const auto fails = [](const std::string& text, const std::string& message) {
    const ConfigFile file(text);
    expect_usage_error(run_with({"--config", file.path}), file.path + message);
  };
  fails("model\n", ":1: no '='; lines are key = value");
  fails("\nmodel =\n", ":2: model: no value after '='");
  fails("model = \"a\n", ":1: model: the quoted value does not end");
  fails("model = a, b\n", ":1: model takes one value; put double quotes around one with a comma");
  fails("model = a\nmodel = b\n", ":2: model is given twice");
  fails("page-size = 7\n", ":1: page-size: \"7\" is not a whole number from 32 to 4096");
  fails("a b = 7\n", ":1: the key is not an option's name");
  fails("version = true\n", ":1: version belongs on the command line");
  expect_usage_error(run_with({"--config", "/nonexistent.conf"}),
                     "--config /nonexistent.conf: No such file or directory");
}

TEST_CASE("print-config: what it prints reads back to the same fields") {
  const std::vector<std::string> arguments = {
      "--model",  "a # \"b\".gguf", "--prefill",    "a:1",        "b:2",    "--no-stream", "--stop",
      "x, y",     "--stop",         "line\nline\t", "--timeout",  "1500ms", "--pin",       "1-3",
      "--engine", "mock",           "--stop",       "back\\slash"};
  std::vector<std::string> printing = arguments;
  printing.push_back("--print-config");
  const Run printed = run_with(printing);
  CAPTURE(printed.out, printed.err);
  REQUIRE(printed.invocation.exit == 0);
  const ConfigFile file(printed.out);
  const Run read = run_with({"--config", file.path});
  CAPTURE(read.err);
  REQUIRE(read.started());
  const Run direct = run_with(arguments);
  CHECK(read.fields.model == direct.fields.model);
  CHECK(read.fields.prefills == direct.fields.prefills);
  CHECK(read.fields.stops == direct.fields.stops);
  CHECK(read.fields.stream == direct.fields.stream);
  CHECK(read.fields.timeout == direct.fields.timeout);
  CHECK(read.fields.cpus == direct.fields.cpus);
  CHECK(read.fields.engine == direct.fields.engine);
  CHECK(read.fields.listen == direct.fields.listen);
}

TEST_CASE("print-config: says where a value comes from and hides secrets") {
  const Run run = run_with({"--api-key", "hunter2", "--page-size=64", "--print-config"},
                           {{"KVD_MODEL", "m.gguf"}});
  CAPTURE(run.out);
  CHECK(run.out.find("hunter2") == std::string::npos);
  CHECK(run.out.find("# api-key = (not shown)") != std::string::npos);
  CHECK(run.out.find("# environment KVD_MODEL\n") != std::string::npos);
  CHECK(run.out.find("# flag\n") != std::string::npos);
  CHECK(run.out.find("# default\n") != std::string::npos);
  const Run json = run_with({"--api-key", "hunter2", "--print-config", "--json"});
  CHECK(json.out.find("hunter2") == std::string::npos);
  CHECK(json.out.find("{\"name\":\"api-key\",\"value\":null,\"origin\":\"flag\"") !=
        std::string::npos);
}

TEST_CASE("help: brief leaves advanced options out, --help-all has all with defaults") {
  const Run brief = run_with({"--help"});
  CHECK(brief.invocation.exit == 0);
  CHECK(brief.out.find("--model FILE") != std::string::npos);
  CHECK(brief.out.find("--no-stream") == std::string::npos);
  CHECK(brief.out.find("kvd-x --model m.gguf") != std::string::npos);
  const Run all = run_with({"--help-all"});
  CHECK(all.out.find("--no-stream") != std::string::npos);
  CHECK(all.out.find("[default 1GiB; KVD_KV_MEMORY]") != std::string::npos);
  CHECK(all.out.find("--log-format text|json") != std::string::npos);
  std::istringstream lines(all.out);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}

TEST_CASE("help: answers even when the environment is wrong") {
  CHECK(run_with({"--help"}, {{"KVD_PAGE_SIZE", "x"}}).invocation.exit == 0);
}

TEST_CASE("version: one line, or JSON") {
  CHECK(run_with({"--version"}).out == "kvd-x " + version() + "\n");
  const Run json = run_with({"--version", "--json"});
  CHECK(json.out.rfind("{\"program\":\"kvd-x\",\"version\":\"" + version() + "\",\"commit\":", 0) ==
        0);
}

TEST_CASE("commands: the last positional may be left out, or take all the words that are left") {
  std::string first, second;
  std::vector<std::string> rest;
  Program program;
  program.name = "kvd-y";
  Command pair, all;
  pair.name = "pair";
  pair.positionals = {{"A", "the first", &first}, {"B", "the second", &second, true}};
  all.name = "all";
  all.positionals = {{"RESULT...", "what to read", nullptr, false, &rest}};
  program.commands = {pair, all};
  std::string said;
  const auto call = [&](const std::vector<std::string>& arguments) {
    std::ostringstream out;
    const Environment none = [](const std::string&) { return std::nullopt; };
    const Invocation invocation = parse(program, arguments, none, out, out);
    said = out.str();
    return invocation.exit.value_or(-1);
  };
  CHECK(call({"pair", "x"}) == -1);
  CHECK((first == "x" && second.empty()));
  CHECK(call({"pair", "x", "y"}) == -1);
  CHECK(second == "y");
  CHECK(call({"pair", "x", "y", "z"}) == 2);
  CHECK(said.find("unexpected argument \"z\"") != std::string::npos);
  CHECK(call({"pair"}) == 2);
  CHECK(call({"all", "a", "b", "c"}) == -1);
  CHECK(rest == std::vector<std::string>{"a", "b", "c"});
  CHECK(call({"all"}) == 2);
  CHECK(said.find("RESULT... is missing: what to read") != std::string::npos);
  CHECK(call({"pair", "--help"}) == 0);
  CHECK(said.find("usage: kvd-y pair A [B] [options]") != std::string::npos);
}

TEST_CASE("options: a share is a percentage or a part of one") {
  double share = 0.1;
  const Option option = share_option("most", &share, "how much");
  CHECK(option.default_text == "10%");
  for (const auto& [text, value] : {std::pair("5%", 0.05), {"0.25", 0.25}, {"0", 0.0}}) {
    CHECK(option.set(text).ok());
    CHECK(share == Approx(value));
  }
  for (const char* text : {"", "%", "10", "-1%", "x", "5%%", "nan", "101%", "1 %"}) {
    CAPTURE(text);
    CHECK_FALSE(option.set(text).ok());
  }
  CHECK(share == 0);
}

TEST_CASE("commands: chosen by the first word, with positionals and their own options") {
  Fields f;
  bool wait = false;
  Program program;
  program.name = "kvd-y";
  Command serve;
  serve.name = "serve";
  Command drain;
  drain.name = "drain";
  drain.positionals = {{"WORKER", "the worker's control address", &f.worker}};
  drain.options.group("Drain", {flag_option("wait", &wait, "wait until it is drained")});
  program.commands = {serve, drain};
  const auto call = [&](const std::vector<std::string>& arguments, std::string* said) {
    std::ostringstream out;
    std::ostringstream err;
    const Environment none = [](const std::string&) { return std::nullopt; };
    const Invocation invocation = parse(program, arguments, none, out, err);
    *said = out.str() + err.str();
    return invocation;
  };
  std::string said;
  Invocation invocation = call({"drain", "--wait", "127.0.0.1:7200"}, &said);
  CHECK(said.empty());
  CHECK_FALSE(invocation.exit.has_value());
  CHECK(invocation.command == 1);
  CHECK(f.worker == "127.0.0.1:7200");
  CHECK(wait);
  CHECK(call({"drian"}, &said).exit == 2);
  CHECK(said == "kvd-y: unknown command drian; did you mean drain?; see kvd-y --help\n");
  CHECK(call({"drain"}, &said).exit == 2);
  CHECK(said == "kvd-y: WORKER is missing: the worker's control address; see kvd-y drain --help\n");
  CHECK(call({"drain", "a", "b"}, &said).exit == 2);
  CHECK(call({}, &said).exit == 2);
  CHECK(said == "kvd-y: no command; see kvd-y --help\n");
  CHECK(call({"--help"}, &said).exit == 0);
  CHECK(said.find("  drain") != std::string::npos);
  CHECK(call({"--version"}, &said).exit == 0);
  CHECK(call({"serve", "--wait"}, &said).exit == 2);
}

}  // namespace kvd::cli
