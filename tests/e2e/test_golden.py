#!/usr/bin/env python3
"""The golden tokens from real processes: one process, and disaggregated over each provider, in both flows.

  test_golden.py          a part that fits the time of the test suite
  test_golden.py --all    every entry, one at a time and 16 at once, as text, token ids and streams
"""
import argparse
import sys
import time

from check_golden import compare, entries, part
from kvdtest import WORKER, check, cluster, complete, model_path

PROVIDERS = ("tcp", "local", "tcp;ofi_rxm")
AT_ONCE = 16


class Runs:
    """Runs the same comparison on one server after the other and keeps the score."""

    def __init__(self, everything):
        self.everything = everything
        self.wrong = 0
        self.found = entries() if everything else part(entries(max_prompt=1100), 26)

    def run(self, title, url, concurrency, provider=None, **how):
        start = time.monotonic()
        wrong = compare(url, self.found, concurrency, **how)
        for line in wrong:
            print("  %s: %s" % (title, line))
        self.wrong += len(wrong)
        if provider:
            carried = complete(url, prompt="one two", max_tokens=2)["kvd"][0]["provider"]
            check(carried == provider, "%s: KV was carried by %r" % (title, carried))
        print("%-46s %3d of %3d match, %6.1f s" % (title, len(self.found) - len(wrong), len(self.found),
                                                   time.monotonic() - start), flush=True)

    def matrix(self, title, url, provider=None):
        """One at a time and 16 at once; in full also as ids and as streams."""
        if self.everything:
            self.run(title + ", one at a time", url, 1, provider)
        self.run(title + ", 16 at once", url, AT_ONCE, provider, stream=not self.everything)
        if self.everything:
            self.run(title + ", 16 streams of ids", url, AT_ONCE, provider, ids=True, stream=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every entry, one at a time too")
    args = parser.parse_args()
    runs = Runs(args.all)
    # Enough pages for sixteen prompts of 4,000 tokens is more than a small machine has: requests then
    # wait for pages, which is part of what is tested.
    common = (*WORKER, "--model", model_path(), "--kv-memory", "1GiB" if args.all else "256MiB",
              "--log-level", "warn")

    with cluster() as start:
        decode = start("kvd-decode", *common, "--prefill", "local")
        runs.matrix("one process", decode.http)
    for provider in PROVIDERS:
        with cluster() as start:
            prefill = start("kvd-prefill", *common, "--provider", provider)
            decode = start("kvd-decode", *common, "--provider", provider, "--prefill", prefill.control)
            lists = ("--prefill", prefill.control, "--decode", decode.control)
            for flow in ("decode-first", "standalone"):
                route = start("kvd-route", "serve", *WORKER, "--flow", flow, *lists)
                runs.matrix("%s, %s" % (provider, flow), route.http, provider)
                check(route.stop() == 0, "kvd-route did not drain")
            for worker in (prefill, decode):
                for state in ("leased", "quarantined"):
                    check(worker.pages(state) == 0, "%s holds %s pages" % (worker.name, state))
    check(runs.wrong == 0, "%d golden entries differ" % runs.wrong)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit("FAILED: %s" % error)
