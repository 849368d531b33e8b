#!/usr/bin/env python3
"""SIGTERM, and `kvd-route drain`, let what runs end whole and refuse what is new; then the exit code is 0. A
second signal ends at once."""
import signal
import subprocess
import sys

from kvdtest import BIN, WORKER, Stream, check, cluster, complete, wait_until

# 5 ms a step: a stream of 100 tokens lasts half a second.
MOCK = (*WORKER, "--provider", "tcp", "--engine", "mock", "--shape", "tiny", "--mock-compute", "5000", "--kv-memory", "16MiB")


def drained_in_mid_stream(base, how, victims, want):
    """Starts a stream, drains `victims` after its first token; the stream must still be whole."""
    stream = Stream(base, prompt="abc", max_tokens=100, temperature=0)
    text, asked = "", False
    for event in stream.events():
        check("error" not in event, str(event))
        text += "".join(c["text"] for c in event["choices"])
        if not asked:
            asked = True
            how()
    check(text == want, "the drained stream is not whole: %d of %d" % (len(text), len(want)))
    for victim in victims:
        check(victim.process.wait(10) == 0, "%s did not exit 0" % victim.name)


def main():
    with cluster() as start:
        prefill = start("kvd-prefill", *MOCK)
        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
        want = complete(decode.http, prompt="abc", max_tokens=100, temperature=0)["choices"][0]["text"]
        drained_in_mid_stream(decode.http, lambda: decode.signal(signal.SIGTERM), [decode], want)
        print("decode drained by SIGTERM in mid-stream: whole")

        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
        route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--prefill", prefill.control, "--decode",
                      decode.control)
        route.wait_for_workers(prefills=1, decodes=1)
        drained_in_mid_stream(route.http, lambda: route.signal(signal.SIGTERM), [route], want)
        print("router drained by SIGTERM in mid-stream: whole")

        def drain():
            done = subprocess.run([BIN / "kvd-route", "drain", decode.control], timeout=20)
            check(done.returncode == 0, "kvd-route drain failed")

        drained_in_mid_stream(decode.http, drain, [decode], want)
        print("decode drained by kvd-route drain: whole")
        done = subprocess.run([BIN / "kvd-route", "drain", prefill.control, "--wait"], timeout=20)
        check(done.returncode == 0 and prefill.process.wait(10) == 0, "prefill did not drain")
        print("prefill drained by kvd-route drain --wait")

        prefill = start("kvd-prefill", *MOCK)
        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
        stream = Stream(decode.http, prompt="abc", max_tokens=2000, temperature=0)
        next(stream.events())
        decode.signal(signal.SIGTERM)
        # Two signals at once would be one: the first must have been seen.
        wait_until("decode drains", lambda: "draining" in decode.text())
        decode.signal(signal.SIGTERM)
        check(decode.process.wait(5) == 7, "cut requests, and not exit 7")
        print("a second SIGTERM ends at once")


if __name__ == "__main__":
    sys.exit(main())
