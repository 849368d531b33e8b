#!/usr/bin/env python3
"""`kvd-probe doctor` finds in each recorded tree exactly what its description names."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from unpack import names, unpack

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("KVD_BIN", ROOT / "build" / "release" / "bin"))
FINDINGS = ("fail", "warn", "unknown")
# No tree can show these failing: they need CUDA, NVML or root, and are unknown without.
NEVER_BAD = {"acs", "gdr-order", "gpu-mode", "gpu-reg", "gpu-throttle", "nvl-fabric", "pod-ipc"}

problems = []


def doctor(*arguments):
    done = subprocess.run([BIN / "kvd-probe", "doctor", *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def check(what, condition):
    if not condition:
        problems.append(what)


def check_shape(name, one):
    where = "%s: %s" % (name, one["id"])
    check(where + " has no evidence", one["evidence"] and all(one["evidence"]))
    bad = one["status"] in ("fail", "warn")
    check(where + ": remedy and consequence stand with findings only",
          bad == bool(one["remedy"]) == bool(one["consequence"]))
    check(where + ": a command stands with what is unknown only", (one["status"] == "unknown") == bool(one["command"]))


def check_tree(name, folder):
    expected = unpack(name, folder)
    code, out, err = doctor("--root", folder, "--json")
    check("%s: stderr %r" % (name, err), err == "")
    document = json.loads(out)
    found = {one["id"]: one["status"] for one in document["checks"] if one["status"] in FINDINGS}
    for one in sorted(set(expected) | set(found)):
        if expected.get(one) != found.get(one):
            evidence = [c["evidence"] for c in document["checks"] if c["id"] == one]
            problems.append("%s: %s is %s, expected %s: %s" % (name, one, found.get(one), expected.get(one), evidence))
    for one in document["checks"]:
        check_shape(name, one)
    statuses = [one["status"] for one in document["checks"]]
    check("%s: the summary counts otherwise" % name,
          document["summary"] == {s: statuses.count(s) for s in ("fail", "warn", "unknown", "pass", "skip")})
    check("%s: status %d" % (name, code), code == (1 if "fail" in expected.values() else 0))
    return {one for one, status in expected.items() if status != "unknown"}, document


def check_filters(folder):
    code, out, _ = doctor("--root", folder, "--only", "mtu", "--only", "gid", "--json")
    check("--only: status", code == 0)
    check("--only names the checks", {one["id"] for one in json.loads(out)["checks"]} == {"gid", "mtu"})
    _, out, _ = doctor("--root", folder, "--skip", "mtu", "--json")
    ids = {one["id"] for one in json.loads(out)["checks"]}
    check("--skip leaves one out", "mtu" not in ids and "gid" in ids)
    code, out, err = doctor("--root", folder, "--only", "mtuu")
    check("a misspelt check is refused", code == 2 and "did you mean mtu?" in err and out == "")
    code, _, err = doctor("--root", folder / "nothing")
    check("a missing tree is refused", code == 2 and "no such directory" in err)
    code, out, _ = doctor("--root", folder / "nothing", "--json")
    check("the refusal is JSON too", code == 2 and json.loads(out)["error"]["code"] == "invalid_argument")


def check_page(ids):
    page = (ROOT / "man" / "kvd-doctor.7").read_text()
    entries = re.findall(r"^\.It Sy (\S+)$", page, re.M)
    check("kvd-doctor.7 lists a check twice", len(entries) == len(set(entries)))
    for one in sorted(ids ^ set(entries)):
        problems.append("%s is %s kvd-doctor.7" % (one, "not in" if one in ids else "only in"))


def main():
    seen, document = set(), None
    with tempfile.TemporaryDirectory() as top:
        for name in names():
            bad, document = check_tree(name, pathlib.Path(top) / name)
            seen |= bad
        check_filters(pathlib.Path(top) / "roce")
        for name, status in (("roce", 0), ("mtu-1500", 1), ("memlock-8mib", 1)):
            code, _, _ = doctor("--root", pathlib.Path(top) / name, "--fail-on", "warn")
            check("%s --fail-on warn: status %d" % (name, code), code == status)
    ids = {one["id"] for one in document["checks"]}
    for one in sorted(ids - seen - NEVER_BAD):
        problems.append("no tree shows %s failing" % one)
    check_page(ids)
    for problem in problems:
        print(problem)
    print("doctor: %d trees, %d checks, %d problems" % (len(names()), len(ids), len(problems)))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
