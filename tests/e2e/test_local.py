#!/usr/bin/env python3
"""Provider local: taken by two workers of one user on one host, and by nobody else; who steps down says why."""
import os
import signal
import sys
import time

from kvdtest import BIN, WORKER, Namespaces, check, cluster, complete, run_in, wait_until, words

MOCK = ("--engine", "mock", "--shape", "tiny", "--kv-memory", "16MiB", "--insecure")
STEP_DOWN = "local does not carry this link"


def carried(decode):
    return complete(decode.http, prompt=words(40), max_tokens=2)["kvd"][0]["provider"]


def one_host(start):
    """It comes first, it is what --provider asks for, and the end of a prefill is known at once."""
    prefill = start("kvd-prefill", *MOCK, *WORKER)
    decode = start("kvd-decode", *MOCK, *WORKER, "--prefill", prefill.control)
    check(carried(decode) == "local", "two workers of one host do not use local")
    check(prefill.ready["providers"][0] == "local", "local is not first")
    began = time.monotonic()
    prefill.kill()
    wait_until("decode knows that prefill died", lambda: "link ended" in decode.text(), timeout=5, pause=0.005)
    check(time.monotonic() - began < 1, "the end of a prefill was noticed only by its silence")
    check("peer closed" in decode.text(), "not by its socket")
    forced = start("kvd-prefill", *MOCK, *WORKER, "--provider", "local")
    check(forced.ready["providers"] == ["local"], "--provider local")
    tcp = start("kvd-decode", *MOCK, *WORKER, "--provider", "tcp", "--prefill",
                start("kvd-prefill", *MOCK, *WORKER).control)
    check(carried(tcp) == "tcp", "--provider tcp")


def other_user(start):
    """A process of another user gets tcp; the log says why."""
    if os.geteuid() != 0:
        return print("not root: no other user tried")
    prefill = start("kvd-prefill", *MOCK, *WORKER)
    decode = start("kvd-decode", *MOCK, *WORKER, "--prefill", prefill.control,
                   prefix=("setpriv", "--reuid", "65534", "--clear-groups"))
    check(carried(decode) == "tcp", "another user got prefill's memory")
    check(decode.text().count(STEP_DOWN) == 1 and "another user" in decode.text(), "the reason is not logged once")


def other_host(start):
    """Another network namespace is as another host; where local is all that is allowed, there is no link."""
    hosts = Namespaces()
    try:
        def at(host):
            return "--http", host + ":0", "--listen", host + ":0"

        prefill = start("kvd-prefill", *MOCK, *at(hosts.addr_a), netns=hosts.a)
        decode = start("kvd-decode", *MOCK, *at(hosts.addr_b), "--prefill", prefill.control, netns=hosts.b)
        body = '{"prompt":"one two three","max_tokens":2}'
        answer = run_in(hosts.b, sys.executable, "-c", "import sys,urllib.request as u;print(u.urlopen(u.Request("
                        "sys.argv[1]+'/v1/completions',sys.argv[2].encode(),{'Content-Type':'application/json'}))"
                        ".read().decode())", decode.http, body, timeout=60)
        check('"provider":"tcp"' in answer.stdout.replace(" ", ""), "no answer over tcp: %s" % answer.stderr)
        check(decode.text().count(STEP_DOWN) == 1 and "network namespace" in decode.text(),
              "the reason is not logged once")
        forced = start("kvd-decode", *MOCK, *at(hosts.addr_b), "--provider", "local", "--prefill", prefill.control,
                       netns=hosts.b)
        wait_until("the reason is in the log", lambda: "network namespace" in forced.text(), timeout=10)
    finally:
        hosts.close()


def no_shared_memory(start):
    """Without memfds a worker offers tcp and says so; asked for local it does not start: exit 3."""
    limited = ("prlimit", "--fsize=1048576")
    prefill = start("kvd-prefill", *MOCK, *WORKER, prefix=limited)
    check(prefill.ready["providers"][0] == "tcp", "it offers %s" % prefill.ready["providers"])
    check("local is not offered" in prefill.text() and "ulimit -f" in prefill.text(), "the reason is not logged")
    decode = start("kvd-decode", *MOCK, *WORKER, "--prefill", prefill.control)
    check(carried(decode) == "tcp", "no tcp instead")
    done = run_in(None, *limited, BIN / "kvd-prefill", *MOCK, *WORKER, "--provider", "local", timeout=30)
    check(done.returncode == 3 and "local" in done.stderr and "ulimit -f" in done.stderr,
          "exit %d: %s" % (done.returncode, done.stderr))
    done = run_in(None, BIN / "kvd-decode", *MOCK, *WORKER, "--prefill", prefill.control, "--require-rdma",
                  timeout=30)
    check(done.returncode == 3 and "local" in done.stderr, "--require-rdma takes local: %s" % done.stderr)


def full_up(start):
    """Prefill maps its pool once for each decode: many decodes come and go, and it keeps nothing of them."""
    prefill = start("kvd-prefill", *MOCK, *WORKER)

    def descriptors():
        return len(os.listdir("/proc/%d/fd" % prefill.pid))

    before = descriptors()
    for _ in range(4):
        decode = start("kvd-decode", *MOCK, *WORKER, "--prefill", prefill.control)
        check(carried(decode) == "local", "not local")
        decode.signal(signal.SIGKILL)
        wait_until("prefill knows", lambda: prefill.text().count("link registered") ==
                   prefill.text().count("link ended"), timeout=5)
    # ZeroMQ closes a dead peer's socket in a thread of its own, a moment after the link has ended.
    wait_until("prefill holds no more descriptors than before its first decode", lambda: descriptors() <= before,
               timeout=5)


def main():
    for part in (one_host, other_user, no_shared_memory, full_up, other_host):
        with cluster() as start:
            part(start)
        print(part.__name__ + ": ok", flush=True)


if __name__ == "__main__":
    sys.exit(main())
