#!/usr/bin/env python3
"""Runs examples/ as a user would and looks for the answers: test_examples.py [NAME...]"""
import json
import os
import subprocess
import sys

from kvdtest import BIN, ROOT, check, model_path, skip

TIMEOUT_S = 150


def can_make_namespaces():
    name = "kvd-try-%d" % os.getpid()
    made = subprocess.run(["ip", "netns", "add", name], stderr=subprocess.DEVNULL).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made


def run_example(name):
    done = subprocess.run([ROOT / "examples" / (name + ".sh"), model_path()], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S,
                          env={**os.environ, "KVD_BIN": str(BIN)})
    print(done.stdout)
    print(done.stderr, file=sys.stderr)
    check(done.returncode == 0, "%s.sh exited with %d" % (name, done.returncode))
    lines = done.stdout.splitlines()
    if name == "one-host":
        check(lines and "Paris" in lines[0], "kvd-route printed no answer")
        check("Paris" in json.loads(lines[-1])["choices"][0]["text"], "HTTP gave no answer")
    elif name == "two-hosts":
        check([json.loads(line)["program"] for line in lines[:2]] == ["kvd-prefill", "kvd-decode"],
              "two ready lines")
        result = json.loads(lines[2])["results"][0]
        check("Paris" in result["text"], "no answer")
        check(result["provider"] == "tcp" and result["kv_bytes"] > 0, "KV did not go over tcp")
    elif name == "pipeline":
        check([line.split(" -> ")[0] for line in lines] == ["Egypt", "France", "Japan", "Peru"],
              "an answer for each question")
        check("Paris" in lines[1], "no answer")
    else:
        check(False, "no such example")


def main():
    skipped = []
    for name in sys.argv[1:] or ("one-host", "pipeline", "two-hosts"):
        if name == "two-hosts" and not can_make_namespaces():
            skipped.append(name)
        else:
            run_example(name)
    if skipped:
        skip("network namespaces cannot be made here; not run: " + ", ".join(skipped))


if __name__ == "__main__":
    main()
