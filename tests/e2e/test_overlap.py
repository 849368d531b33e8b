#!/usr/bin/env python3
"""Layer streaming is real: with a link so slow that the transfer alone takes half as long as the compute,
transfer_exposed of a streamed 2,000-token prompt is at most 15 % of transfer_total with --no-stream.

Two network namespaces, shaped by tc tbf. The rate is computed from a first, unshaped run."""
import json
import sys

from kvdtest import BIN, Namespaces, check, cluster, model_path, run_in, words

TOKENS = 2000


def main():
    model = model_path()
    hosts = Namespaces()
    try:
        with cluster() as start:
            def worker(program, ns, addr, *more):
                return start(program, "--model", model, "--insecure", "--http", addr + ":0", "--listen",
                             addr + ":0", "--kv-memory", "256MiB", "--chunk", "2048", *more, netns=ns)

            streamed = worker("kvd-prefill", hosts.a, hosts.addr_a, "--provider", "tcp")
            whole = worker("kvd-prefill", hosts.a, hosts.addr_a, "--provider", "tcp", "--no-stream")
            decode = worker("kvd-decode", hosts.b, hosts.addr_b, "--provider", "tcp", "--prefill",
                            streamed.control, "--prefill", whole.control)

            def stages(prefill, salt):
                body = {"prompt": words(TOKENS, salt), "max_tokens": 4, "temperature": 0,
                        "kvd_prefill": prefill.control}
                done = run_in(hosts.b, "curl", "-sS", "--max-time", "300", decode.http + "/v1/completions",
                              "-d", json.dumps(body))
                answer = json.loads(done.stdout)
                check("choices" in answer, "no answer: %s %s" % (done.stdout[:400], done.stderr))
                kvd = answer["kvd"][0]
                return kvd["stages_ms"], kvd["kv_bytes"], answer["usage"]["prompt_tokens"]

            first, kv_bytes, tokens = stages(streamed, 0)
            # The transfer alone shall take half as long as the compute.
            rate = kv_bytes * 8 / (first["prefill_compute"] / 2e3)
            hosts.shape("%dkbit" % (rate / 1e3))
            got_stream, got_whole = [], []
            for round_ in range(3):
                got_stream.append(stages(streamed, 2 * round_ + 1)[0])
                got_whole.append(stages(whole, 2 * round_ + 2)[0])
            exposed = sorted(s["transfer_exposed"] for s in got_stream)[1]
            total = sorted(s["transfer_total"] for s in got_whole)[1]
            compute = sorted(s["prefill_compute"] for s in got_stream)[1]
            print("%d tokens, %d bytes, link %.1f Mbit/s, compute %.0f ms" %
                  (tokens, kv_bytes, rate / 1e6, compute))
            print("transfer_exposed streamed %.1f ms, transfer_total --no-stream %.1f ms: %.1f %%" %
                  (exposed, total, 100 * exposed / total))
            check(0.3 * compute < total < 0.8 * compute,
                  "the link does not make the transfer half of the compute: %.0f of %.0f ms" % (total, compute))
            check(exposed <= 0.15 * total, "%.1f ms of the transfer are exposed" % exposed)
    finally:
        hosts.close()


if __name__ == "__main__":
    sys.exit(main())
