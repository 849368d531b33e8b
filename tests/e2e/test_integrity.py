#!/usr/bin/env python3
"""KV that does not arrive as it was sent: the room is retried once, on another pair where there is one, else
over a new link, then the request fails with 502 and `kvd-route generate` with status 6.

The faults are those of kvd-prefill-faults (tests/faults): a page that is never written, a page of another
room, one flipped bit under --digest full. With --digest off nobody notices that bit: the answer is right by
luck alone, and the check of the test would find nothing.
"""
import json
import sys

from kvdtest import BIN, WORKER, check, cluster, complete, request, run_in, wait_until, words

MOCK = (*WORKER, "--provider", "tcp", "--engine", "mock", "--shape", "tiny", "--kv-memory", "2MiB")
# Four pages; the flipped line is the last of the first page, which the mock does not look at so early.
ASK = dict(prompt=words(40)[:120], max_tokens=3, temperature=0)
ALWAYS = 1000000


def faulty(start, kind, rooms, digest):
    return start("test/kvd-prefill-faults", *MOCK, "--digest", digest,
                 env={"KVD_TEST_FAULT": "%s:%d" % (kind, rooms)})


def injected(daemon):
    return daemon.text().count("test: fault injected")


def refused(decode):
    return decode.text().count("commit record refused")


def error_of(body):
    return json.loads(body)["error"]


def nothing_left(*daemons):
    for daemon in daemons:
        wait_until("all pages are free", lambda d=daemon: d.pages("leased") + d.pages("quarantined") == 0)


def once(start, kind, digest, want):
    """One prefill, its first room spoilt: right after a retry over a new link."""
    prefill = faulty(start, kind, 1, digest)
    decode = start("kvd-decode", *MOCK, "--digest", digest, "--prefill", prefill.control)
    got = complete(decode.http, **ASK)["choices"][0]["text"]
    check(got == want, "%s, %s: wrong text after the retry: %r" % (kind, digest, got))
    check(injected(prefill) == 1 and refused(decode) == 1, "%s, %s: injected %d, refused %d" %
          (kind, digest, injected(prefill), refused(decode)))
    check(decode.text().count("link ready") == 2, "no new link")
    nothing_left(decode, prefill)
    print("%s under %s, once: found, right over a new link" % (kind, digest))


def always(start, kind, digest):
    """Every room spoilt: 502 after exactly one retry, directly and through the router; generate exits 6."""
    prefill = faulty(start, kind, ALWAYS, digest)
    decode = start("kvd-decode", *MOCK, "--digest", digest, "--prefill", prefill.control)
    status, body = request(decode.http + "/v1/completions", ASK)
    check(status == 502 and error_of(body)["code"] == "corrupted", "status %d: %s" % (status, body[:300]))
    check(refused(decode) == 2, "%d attempts" % refused(decode))
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--prefill",
                  prefill.control, "--decode", decode.control)
    route.wait_for_workers(prefills=1, decodes=1)
    for name, prefills in (("named", ["--prefill", prefill.control]), ("decode's choice", [])):
        before = refused(decode)
        done = run_in(None, BIN / "kvd-route", "generate", "--json", "--max-tokens", 3, "--decode",
                      decode.control, *prefills, input=ASK["prompt"])
        check(done.returncode == 6, "generate, %s: status %d: %s %s" %
              (name, done.returncode, done.stdout[:500], done.stderr[-500:]))
        check(refused(decode) - before == 2, "generate, %s: %d attempts" % (name, refused(decode) - before))
    before = refused(decode)
    status, body = request(route.http + "/v1/completions", ASK)
    check(status == 502 and error_of(body)["code"] == "corrupted", "status %d: %s" % (status, body[:300]))
    check(refused(decode) - before == 2, "router: %d attempts" % (refused(decode) - before))
    nothing_left(decode, prefill)
    print("%s under %s, always: 502, and status 6, after one retry" % (kind, digest))


def another_pair(start, want):
    """One of two prefills always spoils: every request is right, its retry goes to the other one."""
    bad, good = faulty(start, "missing", ALWAYS, "sample"), start("kvd-prefill", *MOCK)
    lists = ("--prefill", bad.control, "--prefill", good.control)
    decode = start("kvd-decode", *MOCK, *lists)
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", *lists,
                  "--decode", decode.control)
    route.wait_for_workers(prefills=2, decodes=1)
    for base in (decode.http, route.http):
        before = injected(bad)

        def right_and_asked():
            got = complete(base, **ASK)["choices"][0]["text"]
            check(got == want, "wrong text: %r" % got)
            return injected(bad) > before

        for _ in range(6):
            right_and_asked()
        # Its link ended with the last room: it is asked again only once it has a new one.
        wait_until("the bad prefill is asked", right_and_asked)
    nothing_left(decode, bad, good)
    print("one bad prefill of two: %d rooms spoilt, all answers right" % injected(bad))


def unnoticed(start):
    prefill = faulty(start, "flip", ALWAYS, "off")
    decode = start("kvd-decode", *MOCK, "--digest", "off", "--prefill", prefill.control)
    complete(decode.http, **ASK)
    check(injected(prefill) == 1 and refused(decode) == 0, "off: injected %d, refused %d" %
          (injected(prefill), refused(decode)))
    print("flip under off: not noticed")


def main():
    with cluster() as start:
        local = start("kvd-decode", *MOCK, "--prefill", "local")
        want = complete(local.http, **ASK)["choices"][0]["text"]
    for kind, digest in (("missing", "sample"), ("foreign", "sample"), ("missing", "full"),
                         ("foreign", "full"), ("flip", "full")):
        with cluster() as start:
            once(start, kind, digest, want)
    for kind, digest in (("missing", "sample"), ("foreign", "sample"), ("flip", "full")):
        with cluster() as start:
            always(start, kind, digest)
    with cluster() as start:
        another_pair(start, want)
    with cluster() as start:
        unnoticed(start)


if __name__ == "__main__":
    sys.exit(main())
