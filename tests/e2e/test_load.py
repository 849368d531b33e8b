#!/usr/bin/env python3
"""Many requests, mixed lengths, streaming and not, a tenth of the clients going away, after the first event or
at any time: all others right, no page left behind, none quarantined at the end, no memory growth.

  test_load.py mock [N] [CONCURRENCY]     2,000 at 32 on the mock engine
  test_load.py model [N] [CONCURRENCY]    100 at 8 on the default model

Memory is compared at rest: after the first 200 requests and at the end, where there are more than 200.
"""
import http.client
import json
import random
import select
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from kvdtest import WORKER, Stream, check, cluster, complete, model_path, request, wait_until, words

PROVIDERS = ("tcp", "tcp;ofi_rxm")
RSS_AFTER = 200
POOL_TOKENS = 65536  # of 16 MiB in the mock's shape
RSS_GROWTH = 1.05
LONGEST_STAY = 0.2


def plan(kind, n):
    """Deterministic requests; each names how its client behaves."""
    rng = random.Random(11)
    out = []
    for i in range(n):
        size = rng.choice((1, 5, 30, 120, 400) if kind == "mock" else (1, 8, 40, 150))
        fields = dict(prompt=words(size, rng.randrange(40)), temperature=0,
                      max_tokens=rng.choice((1, 3, 17, 60) if kind == "mock" else (1, 4, 16)))
        if rng.random() < 0.2:
            fields["n"] = 2
        # None: the client stays; 0: it leaves after the first event; else after so many seconds.
        leaves = rng.choice((0, rng.uniform(0.001, LONGEST_STAY))) if rng.random() < 0.1 else None
        out.append((i, fields, rng.random() < 0.5, leaves))
    return out


def leave_after(base, seconds, fields):
    """Closes the connection then, whatever has come; earlier only when the answer is there."""
    parts = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    connection.request("POST", "/v1/completions", json.dumps({"stream": True, **fields}).encode(),
                       {"Content-Type": "application/json"})
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([connection.sock], [], [], left)[0] and not connection.sock.recv(65536):
            break
    connection.close()


def answer_text(base, fields, stream, leaves):
    """The texts by choice; None when this client went away half-way."""
    if leaves:
        leave_after(base, leaves, fields)
        return None
    if leaves == 0:
        s = Stream(base, timeout=300, **fields)
        try:
            check(s.status == 200, "status %d" % s.status)
            next(s.events(), None)
        finally:
            s.close()
        return None
    texts = [""] * fields.get("n", 1)
    if stream:
        s = Stream(base, timeout=300, **fields)
        try:
            check(s.status == 200, "status %d" % s.status)
            for event in s.events():
                check("error" not in event, str(event))
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
        finally:
            s.close()
    else:
        for choice in complete(base, timeout=300, **fields)["choices"]:
            texts[choice["index"]] = choice["text"]
    return texts


def expected(start, common, requests):
    """What one process says, asked once for each distinct request."""
    local = start("kvd-decode", *common, "--prefill", "local")
    keys = {json.dumps(fields, sort_keys=True): fields for _, fields, _, _ in requests}
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda f: answer_text(local.http, f, False, None), keys.values())
        out = dict(zip(keys, texts))
    local.stop()
    return out


def rss_at_rest(daemon):
    """The least resident set within two seconds without requests."""
    least = daemon.rss_kib()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        threading.Event().wait(0.1)
        least = min(least, daemon.rss_kib())
    return least


def run(kind, n, concurrency, provider, start, common, requests, want):
    prefill = start("kvd-prefill", *common, "--provider", provider)
    decode = start("kvd-decode", *common, "--provider", provider, "--prefill", prefill.control)
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--prefill", prefill.control, "--decode",
                  decode.control)
    route.wait_for_workers(prefills=1, decodes=1)
    daemons = (prefill, decode, route)
    wrong, left = [], 0
    # prefill grows by 7 % in its first 5,000 rooms, and then no more: a long run begins to compare there.
    half = n // 2 if n > 8000 else min(RSS_AFTER, n // 2)
    lock = threading.Lock()

    def one(item):
        nonlocal left
        index, fields, stream, leaves = item
        try:
            got = answer_text(route.http, fields, stream, leaves)
        except Exception as e:  # noqa: BLE001 - every failure is a wrong answer
            got = "%s: %s" % (type(e).__name__, e)
        with lock:
            if got is None:
                left += 1
            elif got != want[json.dumps(fields, sort_keys=True)]:
                wrong.append((index, fields["max_tokens"], stream, got, want[json.dumps(fields, sort_keys=True)]))

    if kind == "mock":  # every page of both pools is used once: what grows afterwards is no pool
        answer = complete(route.http, prompt=[5] * (POOL_TOKENS - 64), max_tokens=1, temperature=0)
        check(answer["kvd"][0]["kv_pages"] >= POOL_TOKENS // 32 - 2, "the pool is not full: %s" % answer["kvd"])
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(one, requests[:half]))
        before = {d.name: rss_at_rest(d) for d in daemons}
        list(pool.map(one, requests[half:]))
    check(not wrong, "%d of %d wrong, the first: %s" % (len(wrong), n, wrong[:5]))
    for daemon in (prefill, decode):
        wait_until(daemon.name + " has no page leased or quarantined",
                   lambda d=daemon: d.pages("leased") == 0 and d.pages("quarantined") == 0, timeout=20)
    grown = {d.name: rss_at_rest(d) / before[d.name] for d in daemons}
    print("%s, %s: %d requests at %d, %d clients left, all others right; RSS grew %s" %
          (kind, provider, n, concurrency, left,
           ", ".join("%s %.3f" % (name, g) for name, g in grown.items())))
    for name, g in grown.items() if kind == "mock" else ():  # a model's pool is not used up
        check(g <= RSS_GROWTH, "RSS of %s grew by %.3f" % (name, g))
    for daemon in (route, decode, prefill):
        check(daemon.stop() == 0, daemon.name + " did not drain")


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else "mock"
    n = int(sys.argv[2]) if len(sys.argv) > 2 else (2000 if kind == "mock" else 100)
    concurrency = int(sys.argv[3]) if len(sys.argv) > 3 else (32 if kind == "mock" else 8)
    if kind == "mock":
        common = (*WORKER, "--engine", "mock", "--shape", "tiny", "--kv-memory", "16MiB")
    else:
        common = (*WORKER, "--model", model_path(), "--kv-memory", "256MiB", "--deterministic")
    requests = plan(kind, n)
    with cluster() as start:
        want = expected(start, common, requests)
        for provider in PROVIDERS if kind == "mock" else PROVIDERS[:1]:
            run(kind, n, concurrency, provider, start, common, requests, want)


if __name__ == "__main__":
    sys.exit(main())
