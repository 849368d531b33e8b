#!/usr/bin/env python3
"""SIGKILL of any process in the middle of a request: re-sent, or a clear error within 3 s; never a wrong
token, never a hang; the others go on; a restarted worker is taken back."""
import http.client
import json
import sys
import threading
import time

from kvdtest import WORKER, Stream, check, cluster, complete, request, wait_until, words

# 1 ms of compute a token: a prompt of 800 bytes computes for 0.8 s, long enough to be hit in the middle.
MOCK = (*WORKER, "--provider", "tcp", "--engine", "mock", "--shape", "tiny", "--mock-compute", "1000",
        "--kv-memory", "64MiB")
PROMPT = words(200)[:800]
MAX_TOKENS = 40


class Asked(threading.Thread):
    """One request on a thread of its own; .status, .body, .seconds when it has ended."""

    def __init__(self, base, **fields):
        super().__init__(daemon=True)
        self.base, self.fields = base, fields
        self.status, self.body, self.seconds = None, b"", 0.0
        self.start()

    def run(self):
        began = time.monotonic()
        try:
            self.status, self.body = request(self.base + "/v1/completions", self.fields)
        except Exception as e:  # noqa: BLE001 - any way to fail is a result here
            self.status, self.body = 0, str(e).encode()
        self.seconds = time.monotonic() - began

    def done(self, timeout):
        self.join(timeout)
        check(not self.is_alive(), "the request hangs")
        return self


def computing(daemon):
    return lambda: daemon.metrics().get('kvd_pages{state="leased"}', 0) > 0


def text_of(body):
    return json.loads(body)["choices"][0]["text"]


def kill_prefill_behind_decode(start, want):
    first = start("kvd-prefill", *MOCK)
    second = start("kvd-prefill", *MOCK)
    decode = start("kvd-decode", *MOCK, "--prefill", first.control, "--prefill", second.control)
    complete(decode.http, prompt="warm", max_tokens=1)
    asked = Asked(decode.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)
    wait_until("a prefill computes", lambda: computing(first)() or computing(second)())
    victim, survivor = (first, second) if computing(first)() else (second, first)
    killed = time.monotonic()
    victim.kill()
    asked.done(30)
    check(asked.status == 200, "status %s: %s" % (asked.status, asked.body[:300]))
    check(text_of(asked.body) == want, "wrong text after the retry")
    # 2 s to see it, then the whole prompt again on the other.
    print("prefill killed: answered %.2f s later by the other" % (time.monotonic() - killed))
    check(time.monotonic() - killed < 3 + 0.8 + 40 * 0.001 + 1, "too late")
    wait_until("pages are free again", lambda: decode.pages("leased") + decode.pages("quarantined") == 0)
    check(text_of(json.dumps(complete(decode.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)))
          == want, "wrong text from the survivor")
    # The same address, a new incarnation: taken back without restarting anybody.
    back = start("kvd-prefill", "--http", "127.0.0.1:0", "--listen", victim.control, *MOCK[4:])
    check(back.ready["incarnation"] != victim.ready["incarnation"], "same incarnation")
    survivor.kill()
    got = Asked(decode.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0).done(30)
    check(got.status == 200 and text_of(got.body) == want, "not taken back: %s" % got.body[:300])
    return decode, back


def kill_only_prefill(decode, prefill):
    asked = Asked(decode.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)
    wait_until("the prefill computes", computing(prefill))
    killed = time.monotonic()
    prefill.kill()
    asked.done(10)
    late = time.monotonic() - killed
    check(asked.status in (502, 503), "status %s: %s" % (asked.status, asked.body[:300]))
    check("message" in json.loads(asked.body)["error"], "no clear error")
    print("only prefill killed: error %d after %.2f s" % (asked.status, late))
    check(late <= 3.2, "%.2f s until the error" % late)
    wait_until("pages are free again", lambda: decode.pages("leased") + decode.pages("quarantined") == 0)


def kill_decode_behind_router(start, want):
    prefill = start("kvd-prefill", *MOCK)
    decodes = [start("kvd-decode", *MOCK, "--prefill", prefill.control) for _ in range(2)]
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--prefill", prefill.control,
                  *(x for d in decodes for x in ("--decode", d.control)))
    route.wait_for_workers(prefills=1, decodes=2)
    complete(route.http, prompt="warm", max_tokens=1)
    asked = Asked(route.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)
    wait_until("a decode holds pages", lambda: any(computing(d)() for d in decodes))
    victim = next(d for d in decodes if computing(d)())
    survivor = decodes[1 - decodes.index(victim)]
    victim.kill()
    asked.done(30)
    check(asked.status == 200 and text_of(asked.body) == want,
          "after the decode died: %s %s" % (asked.status, asked.body[:300]))
    print("decode killed before the first token: re-sent, right")
    wait_until("prefill's pages are free", lambda: prefill.pages("leased") + prefill.pages("quarantined") == 0)
    # In mid-stream: an error event or a cut, within 3 s, and never a wrong token.
    stream = Stream(route.http, prompt=PROMPT, max_tokens=2000, temperature=0)
    got, killed, error = "", None, None
    try:
        for event in stream.events():
            if "error" in event:
                error = event["error"]
                continue
            got += event["choices"][0]["text"] if event["choices"] else ""
            if killed is None and len(got) >= 5:
                killed = time.monotonic()
                survivor.kill()
        raise AssertionError("the stream ended as if it were whole")
    except (OSError, http.client.HTTPException):
        pass
    late = time.monotonic() - killed
    print("decode killed in mid-stream: %s after %.2f s" % ("error event" if error else "cut", late))
    check(late <= 3.2, "%.2f s until the end" % late)
    check(want.startswith(got[:MAX_TOKENS]), "a wrong token")
    return prefill, route


def kill_router(start, prefill):
    decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--prefill", prefill.control, "--decode",
                  decode.control)
    route.wait_for_workers(prefills=1, decodes=1)
    asked = Asked(route.http, prompt=PROMPT, max_tokens=2000, temperature=0)
    wait_until("decode holds pages", computing(decode))
    killed = time.monotonic()
    route.kill()
    asked.done(5)
    check(asked.status == 0 and time.monotonic() - killed < 1, "the connection stayed open")
    wait_until("decode gives the pages up", lambda: decode.pages("leased") + decode.pages("quarantined") == 0,
               timeout=10)
    print("router killed: the connection closed at once, the pages came back")


def kill_prefill_standalone(start, want):
    """Several requests with several choices in flight: each must end, none may take the decode with it."""
    prefills = [start("kvd-prefill", *MOCK) for _ in range(2)]
    decode = start("kvd-decode", *MOCK, *(x for p in prefills for x in ("--prefill", p.control)))
    lists = (*(x for p in prefills for x in ("--prefill", p.control)), "--decode", decode.control)
    route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--flow", "standalone", *lists)
    route.wait_for_workers(prefills=2, decodes=1)
    complete(route.http, prompt="warm", max_tokens=1)
    asked = [Asked(route.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0, n=2) for _ in range(4)]
    wait_until("both prefills compute", lambda: all(computing(p)() for p in prefills))
    prefills[0].kill()
    for a in asked:
        a.done(40)
        check(a.status in (200, 502, 503), "status %s: %s" % (a.status, a.body[:300]))
        if a.status == 200:
            check([c["text"] for c in json.loads(a.body)["choices"]] == [want, want], "a wrong answer")
    check(any(a.status == 200 for a in asked), "none was answered: %s" % asked[0].body[:300])
    check(decode.process.poll() is None, "the decode died")
    answer = complete(route.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)
    check(answer["choices"][0]["text"] == want, "wrong text from the survivor")
    wait_until("pages are free again", lambda: decode.pages("leased") + decode.pages("quarantined") == 0)
    print("standalone, prefill killed under 4 requests of 2 choices: %d right, %d clear errors" %
          (sum(a.status == 200 for a in asked), sum(a.status != 200 for a in asked)))
    # Decode-first, straight to the decode: the choices of one request share its fate.
    asked = [Asked(decode.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0, n=3) for _ in range(2)]
    wait_until("the survivor computes", computing(prefills[1]))
    prefills[1].kill()
    for a in asked:
        a.done(10)
        check(a.status in (502, 503), "status %s: %s" % (a.status, a.body[:300]))
    check(decode.process.poll() is None, "the decode died")
    wait_until("pages are free again", lambda: decode.pages("leased") + decode.pages("quarantined") == 0)


def main():
    with cluster() as start:
        local = start("kvd-decode", *MOCK, "--prefill", "local")
        want = complete(local.http, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0)["choices"][0]["text"]
        local.kill()
        decode, back = kill_prefill_behind_decode(start, want)
        kill_only_prefill(decode, back)
        decode.kill()
        prefill, route = kill_decode_behind_router(start, want)
        route.kill()
        kill_router(start, prefill)
        kill_prefill_standalone(start, want)


if __name__ == "__main__":
    sys.exit(main())
