#!/usr/bin/env python3
"""Keys on the control channel: who is listed for it serves, drains and looks; who is not, does not."""
import json
import pathlib
import subprocess
import sys
import tempfile

import kvdtest
from kvdtest import check

MOCK = ["--engine", "mock", "--shape", "smollm2-135m", "--kv-memory", "64MiB", "--mock-compute", "1",
        "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--provider", "tcp"]


def keygen(role):
    """(the secret line, the public key) of a new key."""
    text = subprocess.run([kvdtest.BIN / "kvd-route", "keygen", "--role", role], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    secret = next(line for line in text.splitlines() if not line.startswith("#"))
    return secret, secret.split()[0]


class Keys:
    """Key files of a cluster; `listed` may give a holder another role in the others' files."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.made = {role: keygen(role) for role in ("prefill", "decode", "route", "probe", "stranger")
                     if role != "stranger"}
        self.made["stranger"] = keygen("decode")

    def file(self, holder, *lines):
        path = self.folder / (holder + ".keys")
        path.write_text("\n".join([self.made[holder][0], *lines]) + "\n", encoding="ascii")
        path.chmod(0o600)
        return str(path)

    def line(self, holder, role=None, address=""):
        return " ".join([self.made[holder][1], role or holder, address]).strip()


def run(program, *args):
    done = subprocess.run([kvdtest.BIN / program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def complete(worker, timeout_ms):
    status, body = kvdtest.request(worker.http + "/v1/completions",
                                   {"prompt": [1, 2, 3], "max_tokens": 4, "kvd_timeout_ms": timeout_ms})
    return status, body.decode()


def main():
    with tempfile.TemporaryDirectory() as folder, kvdtest.cluster() as start:
        keys = Keys(folder)
        prefill_keys = keys.file("prefill", keys.line("decode"), keys.line("route"), keys.line("probe"))
        prefill = start("kvd-prefill", *MOCK, "--keys", prefill_keys)
        to_prefill = keys.line("prefill", address=prefill.control)

        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control, "--keys",
                       keys.file("decode", to_prefill, keys.line("route"), keys.line("probe")))
        status, body = complete(decode, 20000)
        check(status == 200, "a listed decode was not served: %d %s" % (status, body))
        print("listed: served")

        # The route's key is good for the channel, but not to register as a decode.
        wrong = start("kvd-decode", *MOCK, "--prefill", prefill.control, "--timeout", "3s", "--keys",
                      keys.file("route", to_prefill))
        status, body = complete(wrong, 8000)
        check(status == 503, "a key of another role registered: %d %s" % (status, body))
        check("decode" in body or "decode" in wrong.text(), "the reason is not said: " + body + wrong.text())
        wrong.kill()
        print("wrong role: refused,", json.loads(body)["error"]["message"])

        # A key that nobody listed does not even reach the message layer.
        stranger = start("kvd-decode", *MOCK, "--prefill", prefill.control, "--timeout", "2s", "--keys",
                         keys.file("stranger", to_prefill))
        status, body = complete(stranger, 5000)
        check(status == 503, "an unlisted key was served: %d %s" % (status, body))
        stranger.kill()
        print("unlisted: refused")

        probe = keys.file("probe", to_prefill)
        code, out, err = run("kvd-probe", "leaks", prefill.control, "--keys", probe, "--json")
        check(code == 0 and json.loads(out), "leaks with a probe's key: %d %s %s" % (code, out, err))
        route = keys.file("route", to_prefill)
        code, out, err = run("kvd-probe", "leaks", prefill.control, "--keys", route, "--timeout", "3s")
        check(code != 0 and "probe" in err, "leaks with a route's key: %d %s %s" % (code, out, err))
        ping = ("kvd-probe", "ping", prefill.control, "--bytes", "4KiB", "--time", "100ms", "--json", "--timeout", "3s")
        code, out, err = run(*ping, "--keys", probe)
        check(code == 0 and json.loads(out)["complete"], "ping with a probe's key: %d %s %s" % (code, out, err))
        code, out, err = run(*ping, "--keys", route)
        check(code == 3 and "probe" in err, "ping with a route's key: %d %s %s" % (code, out, err))
        code, out, err = run(*ping)
        check(code == 4 and "--keys" in err, "ping without a key: %d %s %s" % (code, out, err))
        code, out, err = run("kvd-route", "drain", prefill.control, "--keys", probe, "--timeout", "3s")
        check(code != 0 and "route" in err + out, "drain with a probe's key: %d %s %s" % (code, out, err))
        status, body = complete(decode, 20000)
        check(status == 200, "the refused drain did something: %d %s" % (status, body))
        code, out, err = run("kvd-route", "drain", prefill.control, "--keys", route, "--timeout", "10s", "--wait")
        check(code == 0, "drain with a route's key: %d %s %s" % (code, out, err))
        print("probe looks, route drains, and neither does the other's")

        router = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--keys",
                       keys.file("prefill", keys.line("decode"), keys.line("probe"), keys.line("route")))
        to_router = keys.line("prefill", address=router.control)
        code, out, err = run("kvd-route", "drain", router.control, "--timeout", "3s", "--keys",
                             keys.file("probe", to_router))
        check(code == 3 and "route" in err, "a probe's key drained the router: %d %s %s" % (code, out, err))
        code, out, err = run("kvd-route", "drain", router.control, "--timeout", "10s", "--wait", "--keys",
                             keys.file("route", to_router))
        check(code == 0 and router.process.wait(20) == 0, "drain of the router: %d %s %s" % (code, out, err))
        print("the router asks the same")

        serve = start("kvd-probe", "serve", "--listen", "127.0.0.1:0", "--log-level", "warn", "--keys",
                      keys.file("prefill", keys.line("probe"), keys.line("route"), keys.line("decode")))
        to_serve = keys.line("prefill", address=serve.control)
        bench = ("kvd-bench", "pages", "--peer", serve.control, "--json", "--timeout", "3s", "--pages", "4",
                 "--kv-memory", "64MiB", "--pairs", "1", "--most-pairs", "1")
        code, out, err = run(*bench, "--keys", keys.file("probe", to_serve))
        check(code == 0 and json.loads(out)["verified"] > 0, "pages with a probe's key: %d %s %s" % (code, out, err))
        for holder in ("route", "decode"):
            code, out, err = run(*bench, "--keys", keys.file(holder, to_serve))
            check(code == 3 and "probe" in out, "pages with a key of %s: %d %s %s" % (holder, code, out, err))
        code, out, err = run(*bench)
        check(code == 4 and "--keys" in out, "pages without a key: %d %s %s" % (code, out, err))
        print("a serve sends pages of a benchmark to a probe's key only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
