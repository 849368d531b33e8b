#!/usr/bin/env python3
"""Decode after RMA is bit-identical to decode on the same pages in one process (--deterministic)."""
import os
import sys
import tempfile

from kvdtest import WORKER, check, cluster, complete, model_path, words

PROVIDERS = ("tcp", "local", "tcp;ofi_rxm")


def main():
    model = model_path()
    common = (*WORKER, "--model", model, "--deterministic", "--kv-memory", "256MiB")
    requests = [dict(prompt=words(n, n), max_tokens=16, temperature=t, seed=7)
                for n, t in ((3, 0), (40, 0.9), (300, 0), (700, 0.7))]
    with tempfile.TemporaryDirectory() as folder:
        def trace(name):
            return os.path.join(folder, name)

        with cluster() as start:
            local = start("kvd-decode", *common, "--prefill", "local", "--trace-logits",
                          trace("one process"))
            want = [complete(local.http, **r)["choices"][0]["text"] for r in requests]
        for provider in PROVIDERS:
            with cluster() as start:
                prefill = start("kvd-prefill", *common, "--provider", provider)
                decode = start("kvd-decode", *common, "--provider", provider, "--prefill", prefill.control,
                               "--trace-logits", trace(provider))
                for text, r in zip(want, requests):
                    answer = complete(decode.http, **r)
                    check(answer["kvd"][0]["provider"] == provider, "carried by %s" % answer["kvd"][0])
                    check(answer["choices"][0]["text"] == text, "text differs over " + provider)
            with open(trace("one process"), "rb") as a, open(trace(provider), "rb") as b:
                left, right = a.read(), b.read()
            steps = left.count(b"\n")
            check(steps >= 4 * 8, "only %d traced steps" % steps)
            check(left == right, "the logits differ between one process and " + provider)
            print("%s: %d decode steps, logits identical to the bit" % (provider, steps))


if __name__ == "__main__":
    sys.exit(main())
