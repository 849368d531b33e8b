#!/usr/bin/env python3
"""The EXAMPLES of all pages run as they stand, in a network namespace of their own, so that the default ports are
free: test_pages.py [PAGE...]

Daemons of an example are waited for by their ready line; what an example takes for granted (workers on the default
ports, files) is put there first. Long measurements are shortened by variables, not by other words.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from kvdtest import BIN, ROOT, check, model_path

TIMEOUT_S = 90
# What listens where, by default.
PORTS = {"7100": "kvd-prefill", "8100": "kvd-prefill", "7200": "kvd-decode", "8200": "kvd-decode",
         "7000": "kvd-route", "8000": "kvd-route"}
FIXTURES = {"kvd-prefill": "kvd-prefill --model m.gguf",
            "kvd-decode": "kvd-decode --model m.gguf --prefill 127.0.0.1:7100",
            "kvd-route": "kvd-route serve --prefill 127.0.0.1:7100 --decode 127.0.0.1:7200"}
# Exit codes besides 0: this host may lack RDMA, or disturb a pair of a mesh; a shortened measurement is partial.
ALSO = {"--require-rdma": {1}, "kvd-bench": {7}, "kvd-probe mesh": {1}}
# Prints nothing when all is well.
SILENT = (">", "uniq -c")
ENVIRONMENT = {"KVD_LOG_LEVEL": "warn"}
WORKER = {"KVD_KV_MEMORY": "128MiB"}
BENCH = {"KVD_MAX_TIME": "60s", "KVD_SAMPLES": "1", "KVD_PROMPTS": "16", "KVD_BATCHES": "1", "KVD_CONTEXTS": "0",
         "KVD_PAIRS": "6", "KVD_MOST_PAIRS": "6", "KVD_CONCURRENCY": "1"}


def blocks(page):
    """The examples of a page: lists of commands, as a shell would take them."""
    found = re.search(r"^\.Sh EXAMPLES\n(.*?)(?=^\.Sh |\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
    if not found:
        return []
    texts = re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed|^\.Dl ([^\n]*)", found.group(1), re.M | re.S)
    out = []
    for many, one in texts:
        text = (many or one).replace("\\e", "\\").replace("\\(dq", '"').replace("\\\n", "")
        text = re.sub(r"\|\n\s*", "| ", text)
        out.append([line for line in text.splitlines() if line.strip()])
    return out


def is_daemon(command):
    words = [word for word in command.split() if "=" not in word or word.startswith("-")]
    return words[0] in ("kvd-prefill", "kvd-decode") or words[:2] in (["kvd-route", "serve"], ["kvd-probe", "serve"])


class Session:
    """One folder, and the daemons of one example."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.daemons = []
        self.variables = ""  # that the example has set so far
        self.environment = {**os.environ, **ENVIRONMENT, "PATH": "%s:%s" % (BIN, os.environ["PATH"])}

    def popen(self, command, **kwargs):
        more = BENCH if command.startswith("kvd-bench") else WORKER
        return subprocess.Popen(["bash", "-c", "set -o pipefail; " + self.variables + command], cwd=self.folder,
                                env={**self.environment, **more}, text=True, start_new_session=True, **kwargs)

    def start(self, command):
        """A daemon, until it has printed its ready line (into a file where the example says so)."""
        command = command.rstrip().rstrip("&").rstrip()
        # An example may give it a file to print to.
        found = re.search(r">\s*(\S+)$", command)
        into = self.folder / (found.group(1) if found else "ready-%d" % len(self.daemons))
        if not found:
            command += " >" + into.name
        log = open(self.folder / ("log-%d" % len(self.daemons)), "w+", encoding="utf-8")
        into.unlink(missing_ok=True)
        process = self.popen("exec " + re.sub(r"^(\w+=\S+) ", r"env \1 ", command), stdin=subprocess.DEVNULL, stderr=log)
        self.daemons.append((process, log))
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            text = into.read_text() if into.exists() else ""
            if text.endswith("\n"):
                check(json.loads(text)["event"] == "ready", "%s: %s" % (command, text))
                return
            check(process.poll() is None, "%s ended: %s" % (command, open(log.name, encoding="utf-8").read()))
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                pass
        raise AssertionError("%s printed no ready line" % command)

    def run(self, command):
        if re.fullmatch(r"\w+=(\"[^\"]*\"|\S*)", command):
            self.variables += command + "; "
            return
        process = self.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
        allowed = {0}.union(*(codes for text, codes in ALSO.items() if text in command))
        # With --json an error is on standard output, wherever that goes.
        into = re.search(r">+\s*([^\s)]+)\)?$", command)
        said = (self.folder / into.group(1)).read_text()[:2000] if into else out
        check(process.returncode in allowed, "%s: status %d\n%s%s" % (command, process.returncode, said, err))
        check(out or any(text in command for text in SILENT), "%s printed nothing; stderr: %s" % (command, err))

    def stop(self):
        for process, log in self.daemons:
            process.terminate()
        for process, log in self.daemons:
            process.wait(TIMEOUT_S)
            log.close()
        self.daemons = []


def lay_out(folder):
    """The files that examples speak of."""
    os.symlink(model_path(), folder / "m.gguf")
    (folder / "questions.json").write_text('{"id":"a","question":"What is 2+2?"}\n{"id":"b","question":"Why?"}\n')
    (folder / "prompts.txt").write_text("The capital of France is\nOne, two, three,\n")
    (folder / "decode.log").write_text("2026-11-23T12:00:00.000 I commit seen room=9f3c00a1b2c3d4e5\n")
    recorded = ROOT / "tests" / "e2e" / "results"
    for name, source in (("before.json", "pages-64k.json"), ("after.json", "pages-64k.json"),
                         ("sizes.json", "sizes.ndjson")):
        (folder / name).write_text((recorded / source).read_text(encoding="utf-8"), encoding="utf-8")
    keys = subprocess.run([BIN / "kvd-route", "keygen", "--role", "prefill"], stdout=subprocess.PIPE, check=True)
    (folder / "prefill.keys").write_bytes(keys.stdout)
    (folder / "prefill.keys").chmod(0o600)


def run_block(session, commands):
    text = "\n".join(commands)
    own = {program for program in FIXTURES if any(c.startswith(program) and is_daemon(c) for c in commands)}
    needed = {PORTS[port] for port in re.findall(r"127\.0\.0\.1:(\d+)", text) if port in PORTS}
    if "kvd-route" in needed or "kvd-decode" in needed:
        needed |= {"kvd-prefill"} if "kvd-route" not in own else set()
    if "kvd-route" in needed:
        needed.add("kvd-decode")
    try:
        for program in FIXTURES:
            if program in needed - own:
                session.start(FIXTURES[program])
        for command in commands:
            session.start(command) if is_daemon(command) else session.run(command)
    finally:
        session.stop()


def main():
    if os.environ.get("KVD_PAGES_INSIDE") is None:
        # A namespace of its own, with the addresses that examples name.
        inside = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        tried = subprocess.run([*inside, "true"], stderr=subprocess.DEVNULL, check=False)
        if tried.returncode == 0:
            setup = "ip link set lo up && ip addr add 10.0.0.1/32 dev lo && exec \"$@\""
            os.environ["KVD_PAGES_INSIDE"] = "1"
            os.execvp(inside[0], [*inside, "sh", "-c", setup, "sh", sys.executable, *sys.argv])
        print("no network namespace here: the default ports must be free, and 10.0.0.1 an address of this host")
    wanted = sys.argv[1:] or sorted(page.name for page in (ROOT / "man").iterdir())
    count = 0
    registered = (ROOT / "tests" / "e2e" / "CMakeLists.txt").read_text(encoding="utf-8")
    for page in (ROOT / "man").iterdir():
        check(re.search(r"\b%s\b" % re.escape(page.name), registered), "%s is in no test of examples" % page.name)
    for name in wanted:
        for commands in blocks(ROOT / "man" / name):
            begin = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                lay_out(pathlib.Path(folder))
                run_block(Session(folder), commands)
            print("%s: %s (%.1f s)" % (name, commands[0][:70], time.monotonic() - begin), flush=True)
            count += 1
    check(count > 0, "no examples in %s" % wanted)
    print("pages: %d examples ran" % count)


if __name__ == "__main__":
    main()
