#!/usr/bin/env python3
"""kvd-bench engine: figures of the default model in each form, ratios to an earlier result, and what is said
when it cannot measure."""
import csv
import io
import json
import os
import subprocess
import sys
import tempfile

from kvdtest import BIN, ROOT, check, model_path

sys.path.insert(0, str(ROOT / "tests" / "json"))
from validate import check as check_schema  # noqa: E402  pylint: disable=wrong-import-position

SMALL = ("--prompts", "32", "--batches", "2", "--contexts", "32", "--chunk", "32", "--samples", "1")


def bench(*args, code=0):
    done = subprocess.run([BIN / "kvd-bench", "engine", *map(str, args)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=250)
    check(done.returncode == code, "%s: exit %d, expected %d: %s" % (args, done.returncode, code, done.stderr))
    return done


def check_document(result):
    check(result["prefill"][0]["tokens"] == 32, "prefill: %s" % result["prefill"])
    decode = result["decode"][0]
    check((decode["batch"], decode["context"]) == (2, 32), "decode: %s" % decode)
    for figure in (result["prefill"][0], result["matrices"][0], decode):
        check(0 < figure["p10"] <= figure["tok_per_s"] <= figure["p90"] and figure["n"] > 0, str(figure))
    # Products that were not made would be far faster than the arithmetic allows.
    matrices = result["matrices"][0]
    check(0 < matrices.get("share_of_limit", 0.5) < 1.3, "more than the limit: %s" % matrices)
    # Two sequences' steps read the weights once; nobody reads faster than 3 x memory, even from a cache.
    check(0 < decode["share_of_memory"] < 3 and decode["memory_bytes_per_s"] > 1e8, "memory: %s" % decode)
    check(result["model"] == "SmolLM2-135M-Instruct.Q4_1" and result["threads"] == 1, str(result))
    check(result["ceilings"]["memory_bytes_per_s"] > 1e8, "ceilings: %s" % result["ceilings"])
    check(result["environment"]["cores"] >= 1, "no environment")
    check(result["kernels"] in ("scalar", "avx2", "avx512", "amx") and not result["partial"], str(result))
    # 106 million weights in the layers of this model, 22.5 KiB of K and V a token.
    check(result["cost"]["linear_macs_per_token"] == 106168320, str(result["cost"]))
    check(result["cost"]["kv_bytes_per_token"] == 23040, str(result["cost"]))


def main():
    model = model_path()
    with tempfile.TemporaryDirectory() as folder:
        before = os.path.join(folder, "before.json")
        done = bench("--model", model, "--threads", 1, "--pin", 0, *SMALL, "--json")
        check_schema("bench_engine", json.loads(done.stdout))
        check_document(json.loads(done.stdout))
        check(done.stderr == "", "something on stderr: " + done.stderr)
        with open(before, "w", encoding="utf-8") as f:
            f.write(done.stdout)

        done = bench("--model", model, "--threads", 1, "--phase", "decode", *SMALL, "--compare", before, "--ndjson")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        check([e["event"] for e in events] == ["start", "result", "end"], str(events))
        for event in events:
            check_schema("bench_engine_event", event)
        check(events[1]["figure"]["ratio"] > 0 and events[2]["prefill"] == [], str(events))

        # The time is over before the first figure: what there is, and status 7.
        done = bench("--model", model, *SMALL, "--max-time", "1ms", "--csv", code=7)
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        check(rows == [] and done.stdout.startswith("phase,"), done.stdout)

        for args, needle in ((("--model", "/nonexistent.gguf"), "nonexistent"), ((), "--model"),
                             (("--model", model, "--compare", model), "--compare"),
                             (("--model", model, "--csv", "--ndjson"), "one of them"),
                             (("--model", model, "--contexts", "99999"), "--contexts"),
                             (("--model", model, "--prompts", "0"), "--prompts")):
            done = bench(*args, code=2)
            check(needle in done.stderr and done.stderr.count("\n") == 1, "%s: %s" % (args, done.stderr))
    print("kvd-bench engine: figures in every form, and every refusal says why")


if __name__ == "__main__":
    sys.exit(main())
