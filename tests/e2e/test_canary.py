#!/usr/bin/env python3
"""No write ever lands in somebody else's page: real processes are killed, stopped, aborted and cut off at each
step of the protocol, and every free page of decode holds a pattern that is watched.

  test_canary.py --rounds N [--seed S] [--provider P]   N rounds, the providers in turn
  test_canary.py --stopped SECONDS                      asleep in mid-transfer for so long; the rest serves
  test_canary.py --unfenced first|all                   without a fence, until stale bytes show, or each way

One decode that is watched, one prefill behind a link of 100 Mbit/s (a network namespace of its own; over local,
which needs no network, all are on one host), and a second prefill and a second decode that must go on serving. The pool of decode is so small that the next request reuses
the pages of the one that failed. A step is reached when the process stops itself there (tests/faults).

Rounds in which decode frees pages without a proof must show stale bytes on tcp, or the test fails: then it would
not have seen them in the other rounds either.
"""
import argparse
import collections
import ctypes
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.parse

from kvdtest import BIN, WORKER, Namespaces, check, cluster, complete, run_in, wait_until, words

PROVIDERS = ("tcp", "tcp;ofi_rxm", "local")
RATE = "100mbit"
DEAD_AFTER = 1.2
# Two pages of 4 MiB to transfer, three to lease, of a pool of four.
MOCK = ("--engine", "mock", "--shape", "llama-3.1-8b", "--kv-memory", "16MiB", "--context", "128")
TOKENS, MAX_TOKENS = 60, 6
PROMPTS = [words(20, salt)[:TOKENS] for salt in range(6)]
STALE = "test: a free page was written"
CLUSTER_ROUNDS = 20  # then fresh processes

# (victim, step at which it stops itself). "-": it is stopped before the request; "mid": by us, in mid-transfer.
STEPS = [("prefill", s) for s in (
    "-", "sender Bootstrapping allocate", "sender WaitingForInput sources", "sender WaitingForInput writing",
    "sender write 1", "sender write 8", "sender write 30", "sender Transferring commit",
    "sender Transferring abort", "sender Failed drained")] + [("decode", s) for s in (
        "receiver Bootstrapping allocate", "receiver Transferring opened", "mid",
        "receiver Transferring commit", "receiver Transferring abort", "receiver Failed drained")]
ACTIONS = ("kill", "stop", "abort", "cut")
# These steps follow an abort: the client leaves first.
AFTER_ABORT = ("abort", "drained")


def combinations(provider):
    return [(victim, step, action) for victim, step in STEPS for action in ACTIONS
            if not (action == "abort" and step.endswith(AFTER_ABORT))
            and not (action == "cut" and provider == "local")]


class Asked(threading.Thread):
    """One request whose client can leave."""

    def __init__(self, base, **fields):
        super().__init__(daemon=True)
        parts = urllib.parse.urlsplit(base)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        self.connection.connect()
        self.fields, self.status, self.body = fields, None, b""
        self.left = False
        self.start()

    def run(self):
        try:
            self.connection.request("POST", "/v1/completions", json.dumps(self.fields).encode(),
                                    {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            self.status, self.body = answer.status, answer.read()
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            self.status = 0

    def leave(self):
        self.left = True
        if self.connection.sock is not None:
            self.connection.sock.shutdown(2)

    def done(self, timeout):
        self.join(timeout)
        check(not self.is_alive(), "a request hangs")
        return self.status


def text_of(body):
    return json.loads(body)["choices"][0]["text"]


def is_stopped(pid):
    with open("/proc/%d/stat" % pid, encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


class Site:
    """The two hosts and their daemons; this process itself lives on host a."""

    def __init__(self, start, hosts, provider, rng, unfenced=False):
        self.start, self.hosts, self.provider, self.unfenced = start, hosts, provider, unfenced
        # There is no network in between: the far prefill is on host a, too.
        self.far_addr, self.far_netns = (hosts.addr_a, None) if provider == "local" else (hosts.addr_b, hosts.b)
        self.fence_after = rng.choice(("200ms", "2s"))
        self.folder = tempfile.TemporaryDirectory(prefix="kvd-canary-")
        self.common = (*MOCK, "--provider", provider, "--dead-after", "%gs" % DEAD_AFTER, "--insecure",
                       "--fence-after", self.fence_after)
        self.far = self.start_far("%s:0" % self.far_addr)
        self.near = start("kvd-prefill", *self.common, *self.addresses(hosts.addr_a))
        self.lists = ("--prefill", self.far.control, "--prefill", self.near.control)
        self.decode = self.start_decode("%s:0" % hosts.addr_a)
        self.bystander = start("kvd-decode", *self.common, *self.addresses(hosts.addr_a), *self.lists)
        self.asked = 0

    @staticmethod
    def addresses(host):
        return "--http", host + ":0", "--listen", host + ":0"

    def stop_file(self, victim):
        return os.path.join(self.folder.name, victim)

    def start_far(self, listen):
        # Without a slow link it is the compute, layer by layer, that makes a transfer last.
        slow = ("--mock-compute", "8000") if self.provider == "local" else ()
        return self.start("test/kvd-prefill-faults", *self.common, *slow, "--http", self.far_addr + ":0", "--listen",
                          listen, netns=self.far_netns, env={"KVD_TEST_STOP_FILE": self.stop_file("prefill")})

    def start_decode(self, listen):
        env = {"KVD_TEST_STOP_FILE": self.stop_file("decode"), "KVD_TEST_CANARY": "1"}
        if self.unfenced:
            env["KVD_TEST_UNFENCED"] = "1"
        return self.start("test/kvd-decode-faults", *self.common, "--http", self.hosts.addr_a + ":0", "--listen",
                          listen, *self.lists, env=env)

    def stop_at(self, victim, step):
        with open(self.stop_file(victim) + ".new", "w", encoding="ascii") as f:
            f.write(step + "\n")
        os.rename(f.name, self.stop_file(victim))

    def daemon(self, victim):
        return self.far if victim == "prefill" else self.decode

    def restart(self, victim):
        if victim == "prefill":
            self.far = self.start_far(self.far.control)
        else:
            self.check_log()
            self.decode = self.start_decode(self.decode.control)

    def fields(self, prefill):
        self.asked += 1
        self.last = PROMPTS[self.asked % len(PROMPTS)]
        return dict(prompt=self.last, max_tokens=MAX_TOKENS, temperature=0, kvd_prefill=prefill.control,
                    kvd_timeout_ms=30000)

    def far_bytes(self):
        """What the far prefill has written, as it counts itself."""
        return sum(v for k, v in self.far.metrics().items() if k.startswith("kvd_transfer_bytes_total"))

    def cut(self):
        self.hosts._ip("-n", self.hosts.b, "link", "set", self.hosts.dev[self.hosts.b], "down")

    def heal(self):
        self.hosts._ip("-n", self.hosts.b, "link", "set", self.hosts.dev[self.hosts.b], "up")

    def check_log(self):
        check(self.unfenced or STALE not in self.decode.text(), "stale bytes in a free page")

    def at_rest(self):
        for daemon in (self.decode, self.bystander, self.near, self.far):
            wait_until("%s has no page leased or quarantined" % daemon.name,
                       lambda d=daemon: d.pages("leased") == 0 and d.pages("quarantined") == 0, timeout=20)

    def serve(self, want, decode, prefill, until=15.0):
        """A request that must be answered right; a link that is being made anew may refuse it for a while."""
        end = time.monotonic() + until
        while True:
            asked = Asked(decode.http, **self.fields(prefill))
            prompt = self.last
            status = asked.done(60)
            if status == 200:
                check(text_of(asked.body) == want[prompt], "a wrong answer: %s" % asked.body[:300])
                return
            check(status in (502, 503, 504) and b"corrupted" not in asked.body,
                  "status %s: %s" % (status, asked.body[:300]))
            check(time.monotonic() < end, "not served within %g s: %s" % (until, asked.body[:300]))
            threading.Event().wait(0.05)

    def finish(self):
        """Drains all; returns (filled, checked, changed) of the watched decode."""
        for daemon in (self.bystander, self.decode, self.near, self.far):
            check(daemon.stop() == 0, daemon.name + " did not drain")
        line = [l for l in self.decode.text().splitlines() if "test: canary" in l][-1]
        return {k: int(v) for k, v in (p.split("=") for p in line.split() if "=" in p)}


def reach(site, want, victim, step):
    """A request during which the victim stops at the step; returns it, the victim being stopped.

    On a busy host a link may be given up before the step is reached: such a request does not count.
    """
    daemon = site.daemon(victim)
    if step == "mid" and site.provider == "local":
        return reach_mid_copy(site, want)
    if step not in ("-", "mid"):
        site.stop_at(victim, step)
    if step == "-":
        daemon.signal(signal.SIGSTOP)
    for _ in range(3):
        asked = ask_until(site, daemon, step)
        if is_stopped(daemon.pid):
            return asked
        site.serve(want, site.decode, site.far)
    raise AssertionError("%s did not stop at: %s" % (victim, step))


def reach_mid_copy(site, want):
    """Stops decode with copies still to make: prefill is held in the middle of its writes, then goes on alone."""
    site.stop_at("prefill", "sender write 8")
    for _ in range(3):
        asked = ask_until(site, site.far, "sender write 8")
        if is_stopped(site.far.pid):
            site.decode.signal(signal.SIGSTOP)
            site.far.signal(signal.SIGCONT)
            return asked
        site.serve(want, site.decode, site.far)
    raise AssertionError("prefill did not stop at: sender write 8")


def ask_until(site, daemon, step):
    """One request; returns it when the victim is stopped, or when that will not come any more."""
    before = 0 if step == "-" else site.far_bytes()
    asked = Asked(site.decode.http, **site.fields(site.far))
    asked.prompt = site.last
    if step == "mid" or step.endswith(AFTER_ABORT):
        # Some writes have completed then, and more are on their way.
        wait_until("the transfer has begun",
                   lambda: site.far_bytes() > before or not asked.is_alive(), pause=0.005)
        if step != "mid":
            asked.leave()
        elif asked.is_alive():
            daemon.signal(signal.SIGSTOP)
    wait_until("the request ends", lambda: is_stopped(daemon.pid) or not asked.is_alive(), pause=0.005)
    end = time.monotonic() + 3
    while not is_stopped(daemon.pid) and time.monotonic() < end:
        threading.Event().wait(0.005)
    return asked


def one_round(site, want, victim, step, action):
    daemon = site.daemon(victim)
    asked = reach(site, want, victim, step)
    rest = site.bystander if victim == "decode" else site.decode
    if action == "kill":
        daemon.kill()
    elif action == "cut":
        site.cut()
        daemon.signal(signal.SIGCONT)
    elif action == "abort":
        asked.leave()
        daemon.signal(signal.SIGCONT)
    ended = site.far.text().count("link ended")
    # The pages of the failed request are needed for this one, where it is not decode that is gone.
    site.serve(want, rest, site.near)
    if action == "stop":
        if victim == "decode":
            wait_until("prefill gives the stopped decode up",
                       lambda: site.far.text().count("link ended") > ended and site.far.pages("leased") == 0)
        daemon.signal(signal.SIGCONT)
    elif action == "cut":
        site.heal()
    elif action == "kill":
        site.restart(victim)
    status = asked.done(60)
    if status == 200:
        check(text_of(asked.body) == want[asked.prompt], "a wrong answer: %s" % asked.body[:300])
    site.serve(want, site.decode, site.near)
    site.serve(want, site.decode, site.far)
    site.at_rest()
    site.check_log()
    return status


def expected():
    with cluster() as start:
        local = start("kvd-decode", *MOCK, *WORKER, "--prefill", "local")
        return {p: complete(local.http, prompt=p, max_tokens=MAX_TOKENS, temperature=0)["choices"][0]["text"]
                for p in PROMPTS}


def fenced_rounds(hosts, want, rounds, seed, providers):
    hits, totals = collections.Counter(), collections.Counter()
    for provider_index, provider in enumerate(providers):
        rng = random.Random("%d %s" % (seed, provider))
        queue = []
        left = rounds // len(providers) + (1 if provider_index < rounds % len(providers) else 0)
        while left > 0:
            with cluster() as start:
                site = Site(start, hosts, provider, rng)
                site.serve(want, site.decode, site.far)
                for _ in range(min(left, CLUSTER_ROUNDS)):
                    if not queue:
                        queue = combinations(provider)
                        rng.shuffle(queue)
                    victim, step, action = queue.pop()
                    began = time.monotonic()
                    try:
                        status = one_round(site, want, victim, step, action)
                    except BaseException:
                        print("failed: seed %d, %s, fence after %s, %s at '%s': %s" %
                              (seed, provider, site.fence_after, victim, step, action), flush=True)
                        site.heal()
                        raise
                    print("%-11s %-7s %-35s %-5s -> %s, %.1f s" %
                          (provider, victim, step, action, status, time.monotonic() - began), flush=True)
                    hits[(victim, step, action)] += 1
                    left -= 1
                counts = site.finish()
                check(counts["changed"] == 0, "%d stale pages" % counts["changed"])
                check(counts["checked"] > counts["filled"] > 0, "nothing was watched: %s" % counts)
                totals.update(counts)
    print("canary: %d rounds, %d of %d (step x action), %d pages filled, %d checks, %d stale" %
          (sum(hits.values()), len(hits), len(combinations(None)), totals["filled"], totals["checked"],
           totals["changed"]))


def unfenced_rounds(hosts, want, seed, every):
    """Without a proof and without closing anything, stale bytes must be seen."""
    shown = []
    for step, action in (("sender write 8", "abort"), ("sender write 8", "cut"), ("sender write 8", "stop"),
                         ("sender write 30", "abort")):
        if shown and not every:
            break
        with cluster() as start:
            site = Site(start, hosts, "tcp", random.Random(seed), unfenced=True)
            site.serve(want, site.decode, site.far)
            asked = reach(site, want, "prefill", step)
            if action == "cut":
                site.cut()
            if action != "stop":
                asked.leave()
                site.far.signal(signal.SIGCONT)
            if action != "abort":
                wait_until("decode gives the link up", lambda: "link ended" in site.decode.text())
            if action == "cut":
                site.heal()
            elif action == "stop":
                site.far.signal(signal.SIGCONT)
            end = time.monotonic() + 3
            while STALE not in site.decode.text() and time.monotonic() < end:
                threading.Event().wait(0.05)
            seen = STALE in site.decode.text()
            print("without a fence: %s at '%s': %s" % (action, step, "stale bytes" if seen else "nothing seen"),
                  flush=True)
            shown += [(step, action)] if seen else []
    check(shown, "without a fence no stale byte was seen: the canary cannot see them")


def stopped_rounds(hosts, want, seconds):
    """One process asleep in mid-transfer for so long; the others serve all the time; then it wakes up."""
    for victim, step in (("prefill", "sender write 8"), ("decode", "mid")):
        with cluster() as start:
            site = Site(start, hosts, "tcp", random.Random(1))
            site.serve(want, site.decode, site.far)
            asked = reach(site, want, victim, step)
            rest = site.bystander if victim == "decode" else site.decode
            if victim == "prefill":
                show_leak(site, asked)
            began, served = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                site.serve(want, rest, site.near)
                served += 1
            site.daemon(victim).signal(signal.SIGCONT)
            status = asked.done(60)
            check(status != 200 or text_of(asked.body) == want[asked.prompt], "a wrong answer")
            site.serve(want, site.decode, site.far)
            site.at_rest()
            site.check_log()
            counts = site.finish()
            check(counts["changed"] == 0 and counts["checked"] > 0, "%s" % counts)
            print("%s stopped for %g s in mid-transfer: %d requests served meanwhile, %d checks, nothing landed" %
                  (victim, seconds, served, counts["checked"]), flush=True)


def show_leak(site, asked):
    """kvd-probe leaks: quarantined while the stopped prefill owes the proof, nothing afterwards."""
    asked.leave()

    def probe():
        return run_in(None, BIN / "kvd-probe", "leaks", site.decode.control, "--json")

    seen = {}

    def quarantined():
        done = probe()
        seen["code"], seen["body"] = done.returncode, json.loads(done.stdout)
        return done.returncode == 1

    wait_until("the pages are quarantined", quarantined, timeout=5)
    rows = [row for row in seen["body"]["leases"] if row["state"] == "quarantined"]
    check(len(rows) == 1 and rows[0]["pages"] == 3 and rows[0]["missing"] and rows[0]["ranges"] and
          rows[0]["peer"] == site.far.ready["incarnation"], "leaks says %s" % seen["body"])
    table = run_in(None, BIN / "kvd-probe", "leaks", site.decode.control).stdout
    wait_until("nothing is quarantined any more", lambda: probe().returncode == 0, timeout=10)
    print(table.rstrip())


def enter(namespace):
    """This thread, and those it starts, live in the namespace from now on."""
    with open("/var/run/netns/" + namespace, encoding="ascii") as f:
        if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--provider", choices=PROVIDERS)
    parser.add_argument("--stopped", type=float)
    parser.add_argument("--unfenced", choices=("first", "all"))
    options = parser.parse_args()
    hosts = Namespaces(RATE)
    try:
        enter(hosts.a)
        want = expected()
        if options.rounds:
            fenced_rounds(hosts, want, options.rounds, options.seed,
                          (options.provider,) if options.provider else PROVIDERS)
        if options.stopped:
            stopped_rounds(hosts, want, options.stopped)
        if options.unfenced:
            unfenced_rounds(hosts, want, options.seed, options.unfenced == "all")
    finally:
        hosts.close()


if __name__ == "__main__":
    sys.exit(main())
