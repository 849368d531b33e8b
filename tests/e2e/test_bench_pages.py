#!/usr/bin/env python3
"""kvd-bench pages: what it says, what it refuses, and its ceiling.

  test_bench_pages.py           the verb
  test_bench_pages.py peer      a kvd-probe serve as the sending side
  test_bench_pages.py ceiling   its ceiling against plain writes without kvd: --pairs N alternating
                                measurements, whose median ratio must lie within --within LOW,HIGH
                                Under bbr run it where net.ipv4.tcp_wmem ends at 1 MiB: kvd's connections
                                have such send buffers there anyway, and bbr paces what waits in longer ones
"""
import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import kvdtest
from kvdtest import BIN, ROOT, check, cluster

sys.path.insert(0, str(ROOT / "tests" / "json"))
from validate import check as check_document  # noqa: E402  pylint: disable=wrong-import-position

FIELDS = """provider page_bytes pages runs writes bytes bytes_per_s ceiling_bytes_per_s
    ceiling_1mib_bytes_per_s write_bytes ratio_to_ceiling latency_ns control_ns post_ns wire_ns commit_ns
    digest_ns visible_ns wait_mode cpu_ns_per_gib ceiling_cpu_ns_per_gib environment verified copies
    spread""".split()
QUICK = ("--kv-memory", "64MiB", "--pairs", "1", "--most-pairs", "2", "--max-time", "1s")


def bench(*args, code=0, env=None, cwd=None):
    done = subprocess.run([str(BIN / "kvd-bench"), "pages", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=100, cwd=cwd, env={**os.environ, **(env or {})})
    check(done.returncode == code, "%s: status %d, not %d\n%s%s" % (args, done.returncode, code, done.stdout, done.stderr))
    return done


def result(*args):
    return json.loads(bench(*QUICK, "--json", *args).stdout)


STAGES = ("control", "post", "wire", "commit", "digest", "visible")


def check_results():
    for provider, fragmentation in (("tcp", "1"), ("tcp;ofi_rxm", "0"), ("local", "0.5")):
        r = result("--provider", provider, "--pages", "16", "--fragmentation", fragmentation)
        missing = [f for f in FIELDS if f not in r]
        check(not missing, "fields are missing: %s" % missing)
        check(r["provider"] == provider and r["page_bytes"] == 737280 and r["pages"] == 16, "not what was asked for")
        check(r["bytes"] == 16 * 737280 and r["copies"] == (1 if provider == "local" else 0), "bytes of a request")
        check({"0": r["runs"] == 1, "1": r["runs"] == 16}.get(fragmentation, 1 < r["runs"] < 16), "runs: %s" % r["runs"])
        check(r["verified"] >= 2 * 4 * 16, "too few pages were checked")
        check(r["bytes_per_s"] > 0 and 0.05 < r["ratio_to_ceiling"] < 20, "a figure is missing")
        stages = sum(r[s + "_ns"]["p50"] for s in STAGES)
        check(r["latency_ns"]["n"] > 0 and 0 < stages < 3 * r["latency_ns"]["p99"], "stages")
        check(r["environment"]["tcp_congestion_control"] != "", "environment")
    r = result("--provider", "tcp", "--page-bytes", "4KiB", "--pages", "64", "--fragmentation", "1")
    check(r["pieces"] == 4 and r["write_bytes"] == 16384, "small pages go several to a write")
    r = result("--provider", "tcp", "--groups", "--pages", "4", "--tp", "3")
    for stage in STAGES:
        check(r[stage + "_ns"]["p50"] >= 0, "%s of groups: %s" % (stage, r[stage + "_ns"]))
    check(r["layers"] == 30 and r["page_bytes"] == 245760 and r["writes"] == 3 and r["pieces"] == 4,
          "of one of three ranks: a write for each of three groups, with four pages' part of it")


def check_shapes():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="ascii") as f:
            json.dump({"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256}, f)
        r = result("--provider", "tcp", "--model-config", path, "--tokens", "64-256")
        check(r["page_bytes"] == 2 * 2 * 4 * 32 * 32 * 2, "page of a config.json")
        check(2 <= r["pages"] <= 8, "lengths are drawn")
        bench("--model-config", os.path.join(folder, "none.json"), code=2)
    r = result("--provider", "tcp", "--shape", "deepseek-v3", "--tp", "8", "--pages", "2", "--concurrency", "1")
    check(r["page_bytes"] == 61 * 576 * 32 * 2, "latents are not divided by --tp")


def check_outputs():
    events = [json.loads(line) for line in bench(*QUICK, "--provider", "tcp", "--pages", "4", "--ndjson").stdout.splitlines()]
    kinds = [e["event"] for e in events]
    check(kinds[0] == "start" and kinds[-1] == "end" and "interval" in kinds, "events: %s" % kinds)
    lines = bench(*QUICK, "--provider", "tcp", "--pages", "4", "--csv").stdout.splitlines()
    check(len(lines) == 2 and lines[0].count(",") == lines[1].count(","), "csv")
    text = bench(*QUICK, "--provider", "tcp", "--pages", "4", "--rate", "200").stdout
    check("ratio" in text and "commit alone" in text, "text")


def check_refusals():
    for args in (("--shape", "none"), ("--page-bytes", "100"), ("--page-size", "33"), ("--tokens", "5-"), ("--tp", "2"),
                 ("--pages", "2", "--tokens", "64"), ("--json", "--csv"), ("--tokens", "16000000")):
        done = bench(*args, code=2)
        said = done.stderr if "--json" not in args else json.loads(done.stdout)["error"]["message"]
        check(len(said.strip().splitlines()) <= 2, "one line, please: " + said)
    bench("--provider", "none", "--pages", "2", code=2)
    bench("--provider", "shm", "--pages", "2", code=3)


# --- --peer ------------------------------------------------------------------------------------

PEER = ("--pages", "16", *QUICK)


def serve(start, *args, **kwargs):
    return start("kvd-probe", "serve", "--listen", "127.0.0.1:0", "--log-level", "warn", *args, **kwargs)


def check_peer_result(r, provider, clock="shared"):
    check_document("bench_pages", r)
    check(r["provider"] == provider and r["commit_clock"] == clock, "%s, %s" % (r["provider"], r["commit_clock"]))
    check(r["bytes"] == 16 * 737280 and r["verified"] >= 2 * 4 * 16, "bytes and verified pages")
    check(r["bytes_per_s"] > 0 and 0.05 < r["ratio_to_ceiling"] < 20, "a figure is missing")
    check(r["sender_cpu_ns_per_gib"] > 0 and r["receiver_cpu_ns_per_gib"] > 0, "processor time of both sides")
    for stage in STAGES:
        check(r[stage + "_ns"]["p50"] >= 0, "%s: %s" % (stage, r[stage + "_ns"]))
    check(0 < sum(r[s + "_ns"]["p50"] for s in STAGES) < 3 * r["latency_ns"]["p99"], "stages")
    check(r["commit_isolated_ns"]["n"] > 0, "the record alone")


def refused(peer, code, words, *args):
    began = time.monotonic()
    done = bench("--peer", peer, "--json", *PEER, *args, code=code)
    check(done.stdout.count("\n") == 1, "not one document: " + done.stdout)
    document = json.loads(done.stdout)
    check_document("error", document)
    message = document["error"]["message"]
    check(words in message and "\n" not in message, "%r is not in: %s" % (words, message))
    return time.monotonic() - began


def check_peer_results():
    with cluster() as start:
        peer = serve(start)
        for provider in ("tcp", "tcp;ofi_rxm", "local"):
            r = result("--peer", peer.control, "--provider", provider, "--pages", "16")
            check(r["peer"] == peer.control, "peer: %s" % r["peer"])
            check_peer_result(r, provider)
        best = result("--peer", peer.control, "--pages", "16", "--groups", "--fragmentation", "0.5", "--digest", "full")
        check(best["provider"] == "local" and best["mode"] == "groups", "the best that both have")
        small = result("--peer", peer.control, "--provider", "tcp", "--page-bytes", "4KiB", "--pages", "64",
                       "--fragmentation", "1", "--spin")
        check(small["pieces"] == 4 and small["runs"] == 64, "small pages go several to a write")
        many = result("--peer", peer.control, "--provider", "tcp", "--page-bytes", "4KiB", "--pages", "2",
                      "--concurrency", "16")
        # Its first round, from which the length of the others comes, has 4096: four answers with times.
        check(many["latency_ns"]["n"] >= 16, "times of %s requests" % many["latency_ns"]["n"])
        only = serve(start, "--provider", "tcp")
        check(result("--peer", only.control, "--pages", "16")["provider"] == "tcp", "the best that both have")
        refused(only.control, 5, "no provider in common", "--provider", "local")
        check(peer.stop() == 0, "SIGTERM ends a serve with 0")


def check_peer_hosts():
    """Two hosts; then two that do not share a boot id, whose clocks are never subtracted."""
    hosts = kvdtest.Namespaces()
    try:
        with cluster() as start, tempfile.NamedTemporaryFile("w", suffix=".boot") as boot:
            listen = ("--listen", hosts.addr_b + ":0", "--insecure", "--log-level", "warn")
            boot.write("01234567-89ab-4cde-8f01-23456789abcd\n")
            boot.flush()
            elsewhere = ("unshare", "-m", "sh", "-c", "mount --bind %s /proc/sys/kernel/random/boot_id && exec \"$@\"" %
                         boot.name, "sh")
            for clock, prefix in (("shared", ()), ("half_round_trip", elsewhere)):
                peer = start("kvd-probe", "serve", *listen, netns=hosts.b, prefix=prefix)
                done = kvdtest.run_in(hosts.a, BIN / "kvd-bench", "pages", "--peer", peer.control, "--json", *PEER,
                                      timeout=100)
                check(done.returncode == 0, "between hosts: %d %s%s" % (done.returncode, done.stdout, done.stderr))
                r = json.loads(done.stdout)
                check_peer_result(r, "tcp", clock)
                if clock == "half_round_trip":
                    commit = r["commit_ns"]
                    check(commit["p50"] < 0.2 * r["latency_ns"]["p50"], "half a round trip: %s" % commit)
    finally:
        hosts.close()


def midway(peer, *args):
    """A client whose first pair of rounds is over."""
    client = subprocess.Popen([str(BIN / "kvd-bench"), "pages", "--peer", peer.control, "--ndjson", "--provider", "tcp",
                               "--pages", "16", "--kv-memory", "64MiB", "--pairs", "10000", "--most-pairs", "10000",
                               *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kinds = [json.loads(client.stdout.readline())["event"] for _ in range(2)]
    check(kinds == ["start", "interval"], "events: %s" % kinds)
    return client


def check_peer_ends():
    for number, least, most in ((signal.SIGKILL, 0, 3), (signal.SIGSTOP, 0.9, 3)):
        with cluster() as start:
            peer = serve(start)
            client = midway(peer, "--dead-after", "1s")
            peer.signal(number)
            began = time.monotonic()
            out, _ = client.communicate(timeout=60)
            took = time.monotonic() - began
            check(client.returncode in (4, 7), "status %d: %s" % (client.returncode, out))
            last = json.loads(out.splitlines()[-1])
            check(peer.control in last["error"]["message"], "which peer it was: %s" % last)
            check(least < took < most, "signal %d: the client took %.2f s" % (number, took))


def check_peer_client_dies():
    """Its session ends within --dead-after, and who waits meanwhile is told so."""
    with cluster() as start:
        peer = serve(start)
        client = midway(peer, "--dead-after", "1s")
        ping = subprocess.Popen([str(BIN / "kvd-probe"), "ping", peer.control, "--provider", "tcp", "--bytes", "4KiB",
                                 "--time", "200ms", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = ping.stderr.readline()
        check("other clients use it" in told, "a ping waits for the session of pages: " + told)
        client.kill()
        client.communicate()
        began = time.monotonic()
        out, err = ping.communicate(timeout=60)
        check(ping.returncode == 0 and json.loads(out)["complete"], "the next client is served: %s %s" % (out, err))
        check(time.monotonic() - began < 4, "it waited for %.1f s" % (time.monotonic() - began))
        check_peer_result(result("--peer", peer.control, "--provider", "tcp", "--pages", "16"), "tcp")


def check_peer_interrupted():
    """Status 7 with what there is; the serve is free at once."""
    with cluster() as start:
        peer = serve(start)
        client = midway(peer)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=60)
        last = json.loads(out.splitlines()[-1])
        check(client.returncode == 7 and last["event"] == "end" and last["partial"], "interrupted: %s %s" % (last, err))
        check(last["verified"] > 0 and last["bytes_per_s"] > 0, "what was measured is kept")
        done = bench("--peer", peer.control, "--provider", "tcp", *PEER)
        check("other clients" not in done.stderr, "the session was closed: " + done.stderr)
        check("sent by        " + peer.control + "\n" in done.stdout, "text: " + done.stdout)


def check_peer_lost_its_turn():
    """The second session, for the record alone, may not come: what was measured stands."""
    with cluster() as start:
        peer = serve(start)
        first = midway(peer, "--max-time", "3s", "--timeout", "1s")
        second = subprocess.Popen([str(BIN / "kvd-bench"), "pages", "--peer", peer.control, "--provider", "tcp",
                                   "--pages", "16", "--kv-memory", "64MiB", "--pairs", "10000", "--most-pairs", "10000"],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        check("other clients use it" in second.stderr.readline(), "the second client waits in line")
        out, err = first.communicate(timeout=60)
        last = json.loads(out.splitlines()[-1])
        check(first.returncode == 7 and last["event"] == "end" and last["partial"], "%d: %s" % (first.returncode, last))
        check(last["bytes_per_s"] > 0 and last["commit_isolated_ns"]["n"] == 0, "what was measured is kept: %s" % last)
        check("the commit alone was not measured" in err, "why it is partial: " + err)
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=60)


def check_peer_log():
    """Who was here, and no line for each room."""
    with cluster() as start:
        peer = start("kvd-probe", "serve", "--listen", "127.0.0.1:0", "--log-level", "info")
        result("--peer", peer.control, "--provider", "tcp", "--pages", "16")
        check(peer.stop() == 0, "SIGTERM ends a serve with 0")
        log = peer.text()
        check(log.count("probe session opened") == 2 == log.count("probe session ended"), "who was here: " + log)
        check("room" not in log, "a line for each room: " + log[-300:])


def check_peer_either_first():
    port = socket.create_server(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % port.getsockname()[1]
    port.close()
    client = subprocess.Popen([str(BIN / "kvd-bench"), "pages", "--peer", address, "--json", *PEER],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = client.stderr.readline()
    check("waiting for " + address in line, "what is awaited is named: " + line)
    with cluster() as start:
        start("kvd-probe", "serve", "--listen", address, "--log-level", "warn")
        out, err = client.communicate(timeout=60)
        check(client.returncode == 0 and json.loads(out)["verified"] > 0, "%s %s" % (out, err))


def check_peer_refusals():
    for args, words in ((("--peer", "nonsense"), "HOST:PORT"), (("--keys", "none"), "--peer"),
                        (("--peer", "127.0.0.1:1", "--pin", "0,1"), "one CPU"),
                        (("--peer", "127.0.0.1:1", "--provider", "tpc"), "did you mean tcp"),
                        (("--peer", "127.0.0.1:1", "--pages", "1024"), "each side needs a pool of")):
        done = bench(*args, code=2)
        check(words in done.stderr, "%s says: %s" % (args, done.stderr))
    took = refused("127.0.0.1:1", 4, "kvd-probe serve", "--timeout", "500ms")
    check(took < 3, "nobody: %.1f s" % took)
    with cluster() as start:
        mock = (*kvdtest.WORKER, "--engine", "mock", "--shape", "tiny", "--kv-memory", "4MiB", "--log-level", "error")
        worker = start("kvd-prefill", *mock)
        refused(worker.control, 5, "is a kvd-prefill: --peer takes")
        route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--log-level", "error")
        refused(route.control, 5, "kvd-route")
        refused(route.http[len("http://"):], 5, "is no kvd")
        # More pages than a peer looks at; the bytes are few.
        peer = serve(start)
        refused(peer.control, 2, "1048576", "--provider", "tcp", "--page-bytes", "128", "--pages", "200000")
        check_peer_result(result("--peer", peer.control, "--provider", "tcp", "--pages", "16"), "tcp")


def ceiling(arguments):
    plain = BIN / "test" / "kvd_plain_writes"
    if not plain.exists():
        kvdtest.skip("kvd_plain_writes is not built")
    low, high = (float(x) for x in arguments.within.split(","))
    ratios = []
    for _ in range(arguments.pairs):
        ours = json.loads(bench("--provider", "tcp", "--spin", "--json", "--fragmentation", "1", "--pages", "16", "--pairs",
                                "8", "--most-pairs", "8", "--max-time", "4s").stdout)
        name = ours["environment"]["libfabric_provider"]
        theirs = json.loads(subprocess.run(
            [plain, name, str(ours["write_bytes"]), "160", str(ours["ceiling_depth"]), str(ours["pieces"]), "0.5"],
            stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout)
        ratios.append(ours["ceiling_bytes_per_s"] / theirs["bytes_per_s"])
    median = statistics.median(ratios)
    print("reported ceiling / plain writes without kvd: %s, median %.3f" % (" ".join("%.2f" % r for r in ratios), median))
    check(low <= median <= high, "the median ratio %.3f is outside %s" % (median, arguments.within))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="verb", choices=("verb", "peer", "ceiling"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--within", default="0.9,1.1")
    arguments = parser.parse_args()
    if arguments.what == "ceiling":
        ceiling(arguments)
        return
    verb = (check_refusals, check_results, check_shapes, check_outputs)
    peer = (check_peer_refusals, check_peer_results, check_peer_hosts, check_peer_ends, check_peer_client_dies,
            check_peer_interrupted, check_peer_lost_its_turn, check_peer_log, check_peer_either_first)
    for part in peer if arguments.what == "peer" else verb:
        part()
        print("ok:", part.__name__)


if __name__ == "__main__":
    sys.exit(main())
