#include "kvd-route/options.h"

#include "cli/version.h"
#include "common/daemon.h"

namespace kvd::tools {
namespace {

using cli::Option;
using node::Flow;

Option prefill_row(std::vector<std::string>* field) {
  return cli::addresses_option("prefill", field, "prefill workers");
}
Option decode_row(std::vector<std::string>* field) {
  return cli::addresses_option("decode", field, "decode workers");
}
Option join_row(std::string* field) {
  return cli::address_option("join", field, "registry that knows the workers");
}
Option keys_row(std::string* field) {
  return cli::text_option("keys", "FILE", field, "CURVE keys of the control channel")
      .hidden_in_brief();
}
Option timeout_row(Duration* field, const char* help) {
  return cli::duration_option("timeout", {field}, help).hidden_in_brief();
}

// How a pair of workers is chosen: the same for `serve` and `generate`.
std::vector<Option> routing_rows(Flow* flow, std::string* policy, std::uint32_t* retries) {
  return {
      cli::choice_option<Flow>(
          "flow", flow, {{"decode-first", Flow::kDecodeFirst}, {"standalone", Flow::kStandalone}},
          "who mints the room: decode's prefill, or the router"),
      cli::text_option("policy", "NAME", policy, "how a pair is chosen: random or round-robin"),
      cli::count_option("retries", retries, "attempts on fresh pairs in all", 1, 100)
          .hidden_in_brief()};
}

cli::Command serve_command(node::RouteOptions* o) {
  cli::Command command;
  command.name = "serve";
  command.summary = "route OpenAI requests to pairs of workers";
  command.options.group("Workers", {prefill_row(&o->prefills), decode_row(&o->decodes)});
  add_daemon_options(&command.options, &o->common, nullptr);
  command.options.group("Routing", routing_rows(&o->flow, &o->policy, &o->retries));
  add_security_options(&command.options, &o->common);
  command.examples =
      "kvd-route serve --prefill 127.0.0.1:7100 --decode 127.0.0.1:7200\n"
      "kvd-route serve                       # is the registry that workers --join";
  return command;
}

void add_sampling_rows(cli::OptionTable* table, node::GenerateOptions* o) {
  const char* server = "the server's";
  table->group(
      "Sampling",
      {cli::count_option("max-tokens", &o->max_tokens, "most tokens to generate", 1)
           .with_default(server),
       cli::real_option("temperature", "T", &o->temperature, "0 takes the likeliest token", 0, 100)
           .with_default(server),
       cli::count_option("top-k", &o->top_k, "draw from the K likeliest; 0: from all")
           .with_default(server)
           .hidden_in_brief(),
       cli::real_option("top-p", "P", &o->top_p, "draw from the likeliest that make up P", 0, 1)
           .with_default(server)
           .hidden_in_brief(),
       cli::real_option("min-p", "P", &o->min_p, "leave out what is below P of the likeliest", 0, 1)
           .with_default(server)
           .hidden_in_brief(),
       cli::real_option("repetition-penalty", "X", &o->repetition_penalty,
                        "above 1 makes seen tokens less likely", 0, 100)
           .with_default(server)
           .hidden_in_brief(),
       cli::count64_option("seed", &o->seed, "the same seed draws the same tokens")
           .with_default(server)
           .hidden_in_brief(),
       cli::list_option("stop", "TEXT", &o->stop, "end the output before TEXT; may be repeated")
           .hidden_in_brief(),
       cli::flag_option("ignore-eos", &o->ignore_eos, "go on after the model's end token")
           .hidden_in_brief(),
       cli::count_option("n", &o->n, "outputs for each prompt", 1, 128)
           .with_default("1")
           .hidden_in_brief(),
       cli::count_option("logprobs", &o->logprobs, "report this many alternatives of each token", 0,
                         20)
           .with_default("none")
           .hidden_in_brief()});
}

cli::Command generate_command(node::GenerateOptions* o, GenerateForm* form) {
  cli::Command command;
  command.name = "generate";
  command.log_level = LogLevel::kWarn;
  command.summary = "send prompts from stdin and print what is generated";
  command.options.group("Workers",
                        {prefill_row(&o->prefills), decode_row(&o->decodes), join_row(&o->join),
                         cli::text_option("url", "URL", &o->url, "a running server instead")});
  command.options.group(
      "Prompts",
      {cli::flag_option("lines", &form->lines, "each line is a prompt; else the whole text is one"),
       cli::flag_option(
           "ndjson", &form->ndjson,
           "each line in is a JSON object with prompt or messages, each line out an event"),
       cli::flag_option("chat", &o->chat, "a prompt is a user's message, in the model's template"),
       cli::text_option("system", "TEXT", &o->system, "with --chat: the system message")
           .hidden_in_brief(),
       cli::text_option("model", "NAME", &o->model, "model to ask for")
           .with_default("the workers'")
           .hidden_in_brief(),
       cli::count_option("concurrency", &o->concurrency, "prompts under way at once", 1, 4096),
       cli::flag_option("stream", &o->stream, "with --ndjson: an event for each piece of text")
           .hidden_in_brief()});
  add_sampling_rows(&command.options, o);
  command.options.group("Routing", routing_rows(&o->flow, &o->policy, &o->retries));
  command.options.group(
      "Waiting",
      {timeout_row(&o->timeout, "wait for workers"),
       cli::duration_option("request-timeout", {&o->request_timeout}, "deadline of a request")
           .hidden_in_brief(),
       cli::duration_option("dead-after", {&o->dead_after},
                            "silence after which a worker is taken for dead")
           .hidden_in_brief()});
  command.options.group(
      "Security", {keys_row(&o->keys),
                   cli::text_option("api-key", "KEY", &o->api_key, "what the HTTP servers ask for")
                       .as_secret()
                       .hidden_in_brief()});
  command.examples =
      "echo \"The capital of France is\" | kvd-route generate --decode 127.0.0.1:7200\n"
      "kvd-route generate --ndjson --url http://127.0.0.1:8000 <prompts.ndjson | jq .text";
  return command;
}

cli::Command workers_command(node::AdminOptions* o) {
  cli::Command command;
  command.name = "workers";
  command.log_level = LogLevel::kWarn;
  command.summary = "list workers with their state and load";
  command.options.group("Workers",
                        {prefill_row(&o->prefills), decode_row(&o->decodes), join_row(&o->join)});
  command.options.group("Waiting", {timeout_row(&o->timeout, "wait for answers")});
  command.options.group("Security", {keys_row(&o->keys)});
  command.examples = "kvd-route workers --join 127.0.0.1:7000";
  return command;
}

cli::Command drain_command(RouteFields* f) {
  cli::Command command;
  command.name = "drain";
  command.log_level = LogLevel::kWarn;
  command.summary = "have a worker finish what it has and take no more";
  command.positionals = {{"WORKER", "the worker's control address", &f->drain_worker}};
  command.options.group(
      "Waiting",
      {cli::flag_option("wait", &f->drain_wait, "return when nothing is left to do"),
       timeout_row(&f->drain.timeout, "wait for the answer, and with --wait for the end")});
  command.options.group("Security", {keys_row(&f->drain.keys)});
  command.examples = "kvd-route drain 127.0.0.1:7200 --wait --timeout 10m";
  return command;
}

cli::Command keygen_command(RouteFields* f) {
  cli::Command command;
  command.name = "keygen";
  command.log_level = LogLevel::kWarn;
  command.summary = "make the keys of one worker, in the form of --keys FILE";
  command.options.group(
      "Key",
      {cli::choice_option<std::string>(
           "role", &f->key_role,
           {{"prefill", "prefill"}, {"decode", "decode"}, {"route", "route"}, {"probe", "probe"}},
           "who will hold the secret key"),
       cli::address_option("addr", &f->key_address, "its control address")});
  command.examples =
      "(umask 077; kvd-route keygen --role decode --addr 10.0.0.2:7200 >decode.keys)";
  return command;
}

}  // namespace

cli::Program route_program(RouteFields* fields) {
  fields->serve.common.program = "kvd-route";
  fields->serve.common.version = cli::version();
  fields->serve.common.http = "127.0.0.1:8000";
  fields->serve.common.listen = "127.0.0.1:7000";
  fields->key_role = "decode";
  cli::Program program;
  program.name = "kvd-route";
  program.summary = "route requests to pairs of prefill and decode workers";
  program.commands = {
      serve_command(&fields->serve), generate_command(&fields->generate, &fields->form),
      workers_command(&fields->workers), drain_command(fields), keygen_command(fields)};
  return program;
}

}  // namespace kvd::tools
