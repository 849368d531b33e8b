// kvd-prefill: computes prompts and writes their KV into the pages of decode workers.
#include "common/worker_options.h"

int main(int argc, char** argv) {
  kvd::tools::WorkerProgram prefill{};
  prefill.name = "kvd-prefill";
  prefill.summary = "compute prompts and write their KV cache into decode workers";
  prefill.http = "127.0.0.1:8100";
  prefill.listen = "127.0.0.1:7100";
  prefill.decode = false;
  prefill.examples =
      "kvd-prefill --model m.gguf\n"
      "kvd-prefill --model m.gguf --http 127.0.0.1:0 --listen 127.0.0.1:0 --join 127.0.0.1:7000";
  prefill.start = kvd::node::start_prefill;
  return kvd::tools::worker_main(prefill, argc, argv);
}
