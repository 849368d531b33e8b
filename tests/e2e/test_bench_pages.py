#!/usr/bin/env python3
"""kvd-bench pages: what it says, what it refuses, and its ceiling.

  test_bench_pages.py           the verb
  test_bench_pages.py ceiling   its ceiling against plain writes without kvd: --pairs N alternating
                                measurements, whose median ratio must lie within --within LOW,HIGH
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import kvdtest
from kvdtest import BIN, check

FIELDS = """provider page_bytes pages runs writes bytes bytes_per_s ceiling_bytes_per_s
    ceiling_1mib_bytes_per_s write_bytes ratio_to_ceiling latency_ns control_ns post_ns wire_ns commit_ns
    digest_ns visible_ns wait_mode cpu_ns_per_gib ceiling_cpu_ns_per_gib environment verified copies
    spread""".split()
QUICK = ("--kv-memory", "64MiB", "--pairs", "1", "--most-pairs", "2", "--max-time", "1s")


def bench(*args, code=0, env=None, cwd=None):
    done = subprocess.run([str(BIN / "kvd-bench"), "pages", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=100, cwd=cwd, env={**os.environ, **(env or {})})
    check(done.returncode == code, "%s: status %d, not %d\n%s%s" % (args, done.returncode, code, done.stdout, done.stderr))
    return done


def result(*args):
    return json.loads(bench(*QUICK, "--json", *args).stdout)


def check_results():
    for provider, fragmentation in (("tcp", "1"), ("tcp;ofi_rxm", "0"), ("local", "0.5")):
        r = result("--provider", provider, "--pages", "16", "--fragmentation", fragmentation)
        missing = [f for f in FIELDS if f not in r]
        check(not missing, "fields are missing: %s" % missing)
        check(r["provider"] == provider and r["page_bytes"] == 737280 and r["pages"] == 16, "not what was asked for")
        check(r["bytes"] == 16 * 737280 and r["copies"] == (1 if provider == "local" else 0), "bytes of a request")
        check({"0": r["runs"] == 1, "1": r["runs"] == 16}.get(fragmentation, 1 < r["runs"] < 16), "runs: %s" % r["runs"])
        check(r["verified"] >= 2 * 4 * 16, "too few pages were checked")
        check(r["bytes_per_s"] > 0 and 0.05 < r["ratio_to_ceiling"] < 20, "a figure is missing")
        stages = sum(r[s + "_ns"]["p50"] for s in ("control", "post", "wire", "commit", "digest", "visible"))
        check(r["latency_ns"]["n"] > 0 and 0 < stages < 3 * r["latency_ns"]["p99"], "stages")
        check(r["environment"]["tcp_congestion_control"] != "", "environment")
    r = result("--provider", "tcp", "--page-bytes", "4KiB", "--pages", "64", "--fragmentation", "1")
    check(r["pieces"] == 4 and r["write_bytes"] == 16384, "small pages go several to a write")
    r = result("--provider", "tcp", "--groups", "--pages", "4", "--tp", "3")
    for stage in ("control", "post", "wire", "commit", "digest", "visible"):
        check(r[stage + "_ns"]["p50"] >= 0, "%s of groups: %s" % (stage, r[stage + "_ns"]))
    check(r["layers"] == 30 and r["page_bytes"] == 245760 and r["writes"] > 4, "groups of one of three ranks")


def check_shapes():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="ascii") as f:
            json.dump({"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256}, f)
        r = result("--provider", "tcp", "--model-config", path, "--tokens", "64-256")
        check(r["page_bytes"] == 2 * 2 * 4 * 32 * 32 * 2, "page of a config.json")
        check(2 <= r["pages"] <= 8, "lengths are drawn")
        bench("--model-config", os.path.join(folder, "none.json"), code=2)
    r = result("--provider", "tcp", "--shape", "deepseek-v3", "--tp", "8", "--pages", "2", "--concurrency", "1")
    check(r["page_bytes"] == 61 * 576 * 32 * 2, "latents are not divided by --tp")


def check_outputs():
    events = [json.loads(line) for line in bench(*QUICK, "--provider", "tcp", "--pages", "4", "--ndjson").stdout.splitlines()]
    kinds = [e["event"] for e in events]
    check(kinds[0] == "start" and kinds[-1] == "end" and "interval" in kinds, "events: %s" % kinds)
    lines = bench(*QUICK, "--provider", "tcp", "--pages", "4", "--csv").stdout.splitlines()
    check(len(lines) == 2 and lines[0].count(",") == lines[1].count(","), "csv")
    text = bench(*QUICK, "--provider", "tcp", "--pages", "4", "--rate", "200").stdout
    check("ratio" in text and "commit alone" in text, "text")


def check_refusals():
    for args in (("--shape", "none"), ("--page-bytes", "100"), ("--page-size", "33"), ("--tokens", "5-"), ("--tp", "2"),
                 ("--pages", "2", "--tokens", "64"), ("--json", "--csv"), ("--tokens", "16000000")):
        done = bench(*args, code=2)
        said = done.stderr if "--json" not in args else json.loads(done.stdout)["error"]["message"]
        check(len(said.strip().splitlines()) <= 2, "one line, please: " + said)
    bench("--provider", "none", "--pages", "2", code=3)


def ceiling(arguments):
    plain = BIN / "test" / "kvd_plain_writes"
    if not plain.exists():
        kvdtest.skip("kvd_plain_writes is not built")
    low, high = (float(x) for x in arguments.within.split(","))
    ratios = []
    for _ in range(arguments.pairs):
        ours = json.loads(bench("--provider", "tcp", "--spin", "--json", "--fragmentation", "1", "--pages", "16", "--pairs",
                                "8", "--most-pairs", "8", "--max-time", "4s").stdout)
        name = ours["environment"]["libfabric_provider"]
        theirs = json.loads(subprocess.run(
            [plain, name, str(ours["write_bytes"]), "160", str(ours["ceiling_depth"]), str(ours["pieces"]), "0.5"],
            stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout)
        ratios.append(ours["ceiling_bytes_per_s"] / theirs["bytes_per_s"])
    median = statistics.median(ratios)
    print("reported ceiling / plain writes without kvd: %s, median %.3f" % (" ".join("%.2f" % r for r in ratios), median))
    check(low <= median <= high, "the median ratio %.3f is outside %s" % (median, arguments.within))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="verb", choices=("verb", "ceiling"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--within", default="0.9,1.1")
    arguments = parser.parse_args()
    if arguments.what == "ceiling":
        ceiling(arguments)
        return
    for part in (check_refusals, check_results, check_shapes, check_outputs):
        part()
        print("ok:", part.__name__)


if __name__ == "__main__":
    sys.exit(main())
