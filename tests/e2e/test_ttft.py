#!/usr/bin/env python3
"""TTFT disaggregated is at most 1.15 x TTFT in one process, for a 1,000-token prompt (paired, medians)."""
import statistics
import sys

from kvdtest import WORKER, check, cluster, complete, matter_of_time, model_path, words

PAIRS = 7
LIMIT = 1.15


def main():
    matter_of_time()
    model = model_path()
    common = (*WORKER, "--model", model, "--kv-memory", "256MiB")
    with cluster() as start:
        local = start("kvd-decode", *common, "--prefill", "local")
        prefill = start("kvd-prefill", *common, "--provider", "tcp")
        decode = start("kvd-decode", *common, "--provider", "tcp", "--prefill", prefill.control)

        def ttft(daemon, salt):
            answer = complete(daemon.http, prompt=words(1000, salt), max_tokens=2, temperature=0)
            return answer["kvd"][0]["stages_ms"]["ttft"], answer["usage"]["prompt_tokens"]

        for daemon in (local, decode):
            ttft(daemon, 999)
        pairs = []
        for i in range(PAIRS):
            first, second = (local, decode) if i % 2 == 0 else (decode, local)
            got = {d: ttft(d, i)[0] for d in (first, second)}
            pairs.append((got[decode], got[local]))
        ratio = statistics.median(d / l for d, l in pairs)
        print("ttft disaggregated %.1f ms, one process %.1f ms, median of %d paired ratios %.3f" %
              (statistics.median(d for d, _ in pairs), statistics.median(l for _, l in pairs), PAIRS, ratio))
        check(ratio <= LIMIT, "ratio %.3f is above %.2f" % (ratio, LIMIT))


if __name__ == "__main__":
    sys.exit(main())
