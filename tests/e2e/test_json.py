#!/usr/bin/env python3
"""What the programs print as JSON is what tests/json/schema.json and kvd-json(5) say."""
import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from kvdtest import BIN, ROOT, WORKER, check, cluster, complete

sys.path.insert(0, str(ROOT / "tests" / "json"))
from validate import SCHEMA, check as check_document, problems  # noqa: E402  pylint: disable=wrong-import-position

MOCK = (*WORKER, "--engine", "mock", "--shape", "tiny", "--kv-memory", "4MiB", "--log-level", "warn")
NOBODY = "127.0.0.1:1"
seen = {}  # name of a definition -> a document that was valid


def output(code, program, *args, text=""):
    done = subprocess.run([BIN / program, *map(str, args)], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=60)
    check(done.returncode == code,
          "%s %s: status %d, expected %d: %s" % (program, args, done.returncode, code, done.stdout + done.stderr))
    return done.stdout


def document(name, code, program, *args, text=""):
    """The one document that a command prints, checked."""
    out = output(code, program, *args, text=text)
    check(out.count("\n") == 1, "%s %s: not one line" % (program, args))
    parsed = json.loads(out)
    check_document(name, parsed)
    seen.setdefault(name, []).append(parsed)
    return parsed


def events(code, *args, text=""):
    found = []
    for line in output(code, "kvd-route", "generate", "--ndjson", *args, text=text).splitlines():
        parsed = json.loads(line)
        check_document("generate_event", parsed)
        seen.setdefault("generate_event", []).append(parsed)
        found.append(parsed["event"])
    return found


def check_everywhere():
    programs = ("kvd-prefill", "kvd-decode", "kvd-route", "kvd-probe", "kvd-bench")
    for program in programs:
        check(document("version", 0, program, "--version", "--json")["program"] == program, "its own name")
        document("error", 2, program, "--nonsense", "--json")
    document("config", 0, "kvd-prefill", "--print-config", "--json")
    document("config", 0, "kvd-route", "serve", "--prefill", "a:1", "b:2", "--api-key", "x", "--print-config", "--json")
    document("keygen", 0, "kvd-route", "keygen", "--role", "decode", "--json")


def check_generate(decode):
    where = ("--decode", decode.control, "--max-tokens", "3")
    two = '{"prompt":"a","id":"x"}\n{"prompt":7}\n'
    one = document("generate", 0, "kvd-route", "generate", *where, "--json", text="hello")
    check(one["results"][0]["finish_reason"] == "length" and "error" not in one, "one answer")
    document("generate", 0, "kvd-route", "generate", *where, "--n", "2", "--json", text="hello")
    half = document("generate", 7, "kvd-route", "generate", *where, "--ndjson", "--json", text=two)
    check("error" in half["results"][1] and "error" in half, "the failed one says why")
    document("generate", 4, "kvd-route", "generate", "--decode", NOBODY, "--timeout", "200ms", "--json", text="x")
    document("error", 2, "kvd-route", "generate", "--json", text="x")
    check(sorted(events(7, *where, text=two)) == ["end", "error", "result", "result"], "events of a run")
    check(events(0, *where, "--stream", text='{"prompt":"a"}')[0] == "text", "events of a stream")


def check_operations(prefill, decode):
    both = document("workers", 0, "kvd-route", "workers", "--prefill", prefill.control, "--decode", decode.control,
                    "--json")
    check([w["state"] for w in both["workers"]] == ["ready", "ready"], "both are ready")
    document("workers", 4, "kvd-route", "workers", "--decode", NOBODY, "--timeout", "200ms", "--json")
    complete(decode.http, prompt="a prompt whose pages stay", max_tokens=3)
    document("leaks", 0, "kvd-probe", "leaks", decode.control, "--json")
    document("error", 4, "kvd-probe", "leaks", NOBODY, "--timeout", "200ms", "--json")
    document("worker", 0, "kvd-route", "drain", decode.control, "--wait", "--json")
    document("error", 4, "kvd-route", "drain", NOBODY, "--timeout", "200ms", "--json")


def check_probe():
    document("list", 0, "kvd-probe", "list", "--json")
    document("error", 2, "kvd-probe", "list", "--provider", "nonsense", "--json")
    out = subprocess.run([BIN / "kvd-probe", "doctor", "--json"], stdout=subprocess.PIPE, text=True, timeout=60)
    check_document("doctor", json.loads(out.stdout))
    seen["doctor"] = [json.loads(out.stdout)]


def check_bench():
    """kvd-bench engine is checked where there is a model: test_bench_engine.py."""
    quick = ("--provider", "tcp", "--kv-memory", "64MiB", "--pairs", "1", "--most-pairs", "1", "--max-time", "1s",
             "--pages", "4")
    with tempfile.TemporaryDirectory() as folder:
        result, page = pathlib.Path(folder, "result.json"), pathlib.Path(folder, "page.html")
        result.write_text(json.dumps(document("bench_pages", 0, "kvd-bench", "pages", *quick, "--json")))
        document("bench_pages", 0, "kvd-bench", "pages", *quick, "--rate", "50", "--groups", "--json")
        kinds = set()
        for line in output(0, "kvd-bench", "pages", *quick, "--ndjson").splitlines():
            check_document("bench_pages_event", json.loads(line))
            kinds.add(json.loads(line)["event"])
        check(kinds == {"start", "interval", "end"}, "events: %s" % kinds)
        document("bench_compare", 0, "kvd-bench", "compare", result, result, "--threshold", "copies==0", "--json")
        document("bench_compare", 1, "kvd-bench", "compare", result, "--threshold", "copies==1", "--json")
        document("bench_report", 0, "kvd-bench", "report", result, "--output", page, "--json")
        document("error", 2, "kvd-bench", "compare", result, "--json")


def check_schema_refuses():
    """Without it, a schema that allows everything would pass."""
    for name, documents in seen.items():
        schema, spoilt = SCHEMA["$defs"][name], []
        for valid in documents:
            for field in valid:
                for other in (["no", {"such": 1}], -1.5):
                    spoilt.append(copy.deepcopy(valid))
                    spoilt[-1][field] = other
            spoilt.append({**valid, "nonsense": 1})
        for one in spoilt:
            check(list(problems(one, schema)), "%s: the schema takes %s" % (name, json.dumps(one)[:300]))
        for field in schema.get("required", ()):
            left_out = {k: v for k, v in documents[0].items() if k != field}
            check(list(problems(left_out, schema)), "%s: the schema does without %s" % (name, field))


def fields_of(schema):
    found = set(schema.get("properties", ()))
    for part in [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")]:
        found |= fields_of(part) if part else set()
    return found


def check_page():
    page = (ROOT / "man" / "kvd-json.5").read_text(encoding="utf-8")
    wanted = set()
    for schema in SCHEMA["$defs"].values():
        wanted |= fields_of(schema)
    entries = re.findall(r"^\.It Va (.*)$", page, re.M)
    explained = {word for entry in entries for word in entry.replace(",", " ").split()}
    check(wanted == explained, "kvd-json.5 and the schema differ in %s" % sorted(wanted ^ explained))


def main():
    check_page()
    check_everywhere()
    check_probe()
    check_bench()
    with cluster() as start:
        prefill = start("kvd-prefill", *MOCK)
        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
        route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--prefill",
                      prefill.control, "--decode", decode.control, "--log-level", "warn")
        peer = start("kvd-probe", "serve", "--listen", "127.0.0.1:0", "--log-level", "warn")
        for daemon in (prefill, decode, route, peer):
            check_document("ready", daemon.ready)
            seen.setdefault("ready", []).append(daemon.ready)
        check_generate(decode)
        check_operations(prefill, decode)
        document("ping", 0, "kvd-probe", "ping", peer.control, "--time", "100ms", "--json")
        document("ping", 1, "kvd-probe", "ping", peer.control, "--provider", "tcp", "--time", "100ms", "--bytes", "4KiB",
                 "--min-gbps", "1000000", "--json")
        document("mesh", 4, "kvd-probe", "mesh", NOBODY, "127.0.0.1:2", "--timeout", "200ms", "--json")
        document("ping", 4, "kvd-probe", "ping", NOBODY, "--timeout", "200ms", "--json")
    check_schema_refuses()
    print("json: %d documents of %d kinds" % (sum(map(len, seen.values())), len(seen)))


if __name__ == "__main__":
    main()
