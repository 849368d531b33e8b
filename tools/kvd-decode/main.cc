// kvd-decode: takes KV that prefill workers write into its pages, and generates.
#include "common/worker_options.h"

int main(int argc, char** argv) {
  kvd::tools::WorkerProgram decode{};
  decode.name = "kvd-decode";
  decode.summary = "generate tokens from KV that prefill workers write into its pages";
  decode.http = "127.0.0.1:8200";
  decode.listen = "127.0.0.1:7200";
  decode.decode = true;
  decode.examples =
      "kvd-decode --model m.gguf --prefill 127.0.0.1:7100\n"
      "kvd-decode --model m.gguf --prefill local";
  decode.start = kvd::node::start_decode;
  return kvd::tools::worker_main(decode, argc, argv);
}
