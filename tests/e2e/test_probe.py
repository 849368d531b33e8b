#!/usr/bin/env python3
"""kvd-probe serve, ping and mesh: what they say, what they refuse, and how they end.

  test_probe.py          the verbs
  test_probe.py peers    peers that are absent, foreign, of another version, killed or stopped
  test_probe.py mesh     a mesh of network namespaces, and workers as peers
  test_probe.py paired   ping against plain writes without kvd, and local against one memcpy: --pairs N
                         alternating measurements, whose median ratio must be within --within LOW,HIGH
"""
import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree

import kvdtest
from kvdtest import BIN, ROOT, check, cluster

sys.path.insert(0, str(ROOT / "tests" / "json"))
from validate import check as check_document  # noqa: E402  pylint: disable=wrong-import-position

QUICK = ("--time", "200ms")
NOBODY = "127.0.0.1:1"


def probe(*args, code=0, timeout=60):
    began = time.monotonic()
    done = subprocess.run([str(BIN / "kvd-probe"), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=timeout)
    done.seconds = time.monotonic() - began
    check(done.returncode == code,
          "%s: status %d, not %d\n%s%s" % (args, done.returncode, code, done.stdout[-3000:], done.stderr[-3000:]))
    return done


def ping(peer, *args, code=0):
    done = probe("ping", peer, "--json", *args, code=code)
    check(done.stdout.count("\n") == 1, "not one document: " + done.stdout)
    document = json.loads(done.stdout)
    check_document("ping", document)
    document["seconds"] = done.seconds
    return document


def serve(start, *args, **kwargs):
    return start("kvd-probe", "serve", "--listen", "127.0.0.1:0", "--log-level", "warn", *args, **kwargs)


def status_of(document):
    return {f["id"]: f["status"] for f in document["findings"]}


def check_results():
    with cluster() as start:
        peer = serve(start)
        command = "kvd-probe ping " + peer.control
        kvdtest.wait_until("the client's command on stderr", lambda: command in peer.text())
        for provider in ("tcp", "tcp;ofi_rxm", "local"):
            d = ping(peer.control, "--provider", provider, *QUICK)
            check(d["complete"] and d["provider"] == provider, "not what was asked for")
            check([s["bytes"] for s in d["sizes"]] == [4096, 65536, 1 << 20], "sizes")
            for size in d["sizes"]:
                check(size["latency_ns"]["n"] > 0 and size["latency_ns"]["p50"] > 0, "latency: %s" % size)
                write = size["write"]
                check(0 < write["low"] <= write["bytes_per_s"] <= write["high"], "interval: %s" % write)
                check((size["read"] is None) == (provider == "local"), "reads: %s" % size)
            check(d["verified"]["pages"] >= 3, "pages were not verified")
            check(d["connect_ns"] > 0 and d["first_write_ns"] > 0 and d["cold_ratio"] > 0, "set-up and first write")
            check(min(d["cpu_ns_per_gib"].values()) > 0, "processor time of both sides")
            found, path = status_of(d), next(f for f in d["findings"] if f["id"] == "path")
            if provider == "local":
                check(found["path"] == "pass" and "no interface" in path["evidence"][0], "path: %s" % path)
                check(found["rw-asym"] == "skip", "local cannot read")
            else:
                check(found["path"] == "pass" and "over lo here and lo there" in path["evidence"][0], "path: %s" % path)
            check(found["skew"] == "pass" and found["cold-first"] in ("pass", "warn"), "findings: %s" % found)
        best = ping(peer.control, *QUICK)
        check(best["provider"] == "local" and "both have" in best["provider_why"], "the best is chosen, and why")
        back = ping(peer.control, "--provider", "tcp", "--reverse", "--bytes", "8KiB", *QUICK)
        check(back["reverse"] and back["complete"] and back["verified"]["pages"] > 0, "the far side writes")
        ping(peer.control, "--provider", "local", "--reverse", "--bytes", "8KiB", *QUICK)
        text = probe("ping", peer.control, *QUICK).stdout
        check("were where they belong" in text and "path:" in text, "text: " + text)
        lines = [json.loads(line) for line in probe("ping", peer.control, "--ndjson", *QUICK).stdout.splitlines()]
        check([e["event"] for e in lines] == ["start", "size", "size", "size", "end"], "events: %s" % lines)
        for event in lines:
            check_document("ping_event", event)
        check(peer.stop() == 0, "SIGTERM ends a serve with 0")


def check_gates():
    with cluster() as start:
        peer = serve(start)
        d = ping(peer.control, *QUICK, "--min-gbps", "0.001", "--max-p99-us", "1000000")
        check([g["passed"] for g in d["gates"]] == [True, True], "gates: %s" % d["gates"])
        d = ping(peer.control, *QUICK, "--min-gbps", "100000", "--max-p99-us", "0.001", code=1)
        check([g["passed"] for g in d["gates"]] == [False, False] and d["complete"], "gates: %s" % d["gates"])


def check_refusals():
    for args, code, words in (
            ((NOBODY, "--provider", "tpc"), 2, "did you mean tcp"),
            (("nonsense",), 2, "HOST:PORT"),
            ((NOBODY, "--bytes", "2MiB"), 2, "1MiB"),
            ((NOBODY, "--json", "--ndjson"), 2, "one of them"),
            ((NOBODY, "--provider", "verbs", "--require-rdma"), 3, "verbs"),
            ((NOBODY, "--require-rdma"), 3, "RDMA"),
            ((NOBODY, "--fabric-addr", "192.0.2.250"), 3, "not an address of this host: give --fabric-addr"),
            ((NOBODY, "--fabric-addr", "nosuch.invalid"), 3, "does not resolve"),
            ((NOBODY, "--device", "nosuch0"), 3, "kvd-probe list names devices"),
            ((NOBODY, "--device", "nosuch0", "--provider", "tcp"), 3, "tcp does not have it"),
            (("nosuch.invalid:7300",), 4, "check the name"),
            (("[fe80::1]:7300",), 2, "%INTERFACE]:7300")):
        done = probe("ping", *args, code=code)
        check(done.seconds < 1.5, "%s took %.1f s" % (args, done.seconds))
        said = done.stderr + done.stdout
        check(words in said, "%s says: %s" % (args, said))
    for verb, args, code, words in (
            ("list", ("--provider", "tpc"), 2, "did you mean tcp"),
            ("list", ("--provider", "verbs"), 3, "provider verbs;ofi_rxm: "),
            ("doctor", ("--only", "rw-asym"), 2, "kvd-probe ping"),
            ("doctor", ("--only", "gid", "--skip", "gid"), 2, "no check"),
            ("serve", ("--device", "nosuch0", "--listen", "127.0.0.1:0"), 3, "kvd-probe list names devices"),
            ("serve", ("--listen", "192.0.2.250:0", "--insecure"), 2, "another with --listen"),
            ("leaks", (NOBODY, "--timeout", "200ms"), 4, "control address")):
        done = probe(verb, *args, code=code)
        check(words in done.stderr and done.stderr.count("kvd-probe: ") == 1, "%s %s: %s" % (verb, args, done.stderr))
    taken = socket.create_server(("127.0.0.1", 0))
    done = probe("serve", "--listen", "127.0.0.1:%d" % taken.getsockname()[1], code=2)
    check("in use" in done.stderr, "an address in use")
    done = probe("serve", "--listen", "0.0.0.0:0", code=2)
    check("--insecure" in done.stderr, "an address that others reach")


def check_streams():
    """A closed stdout stays closed: nothing that is opened later takes its place and the results."""
    with cluster() as start:
        peer = serve(start)
        for args in (("list",), ("ping", peer.control, "--bytes", "4KiB", *QUICK)):
            done = subprocess.run([str(BIN / "kvd-probe"), *args], stderr=subprocess.PIPE, text=True, timeout=60,
                                  preexec_fn=lambda: os.close(1))
            check(done.returncode == 7 and "stdout: Bad file descriptor" in done.stderr, "%s: %s" % (args, done.stderr))
        few = probe("ping", peer.control, "--time", "1ns", "--bytes", "4KiB").stdout.splitlines()[3].split()
        check(few[2:5] == [few[2], "-", "-"] and few[5] == "1", "percentiles of one sample: %s" % few)


def check_permission():
    """Who may not take a port is told so, with status 3."""
    if os.geteuid() != 0:
        return
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="utf-8") as f:
        if int(f.read()) <= 81:
            return
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = subprocess.run([*nobody, str(BIN / "kvd-probe"), "serve", "--listen", "127.0.0.1:81"], stderr=subprocess.PIPE,
                          text=True, timeout=60)
    check(done.returncode == 3 and "port from 1024" in done.stderr, "%d %s" % (done.returncode, done.stderr))
    with cluster() as start:
        peer = serve(start)
        done = subprocess.run([*nobody, str(BIN / "kvd-probe"), "ping", peer.control, "--provider", "local"],
                              stderr=subprocess.PIPE, text=True, timeout=60)
        check(done.returncode == 5 and "local: the peer is a process of another user; choose tcp" in done.stderr,
              "%d %s" % (done.returncode, done.stderr))


def check_queue():
    """Clients wait in line, and one that dies in it is forgotten."""
    with cluster() as start:
        peer = serve(start)
        command = [str(BIN / "kvd-probe"), "ping", peer.control, "--json", "--provider", "tcp", "--time", "600ms"]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        clients[3].kill()
        told = []
        for client in clients[:3]:
            out, err = client.communicate(timeout=60)
            check(client.returncode == 0, "a client in line: %s %s" % (out, err))
            told.append(err)
        clients[3].communicate()
        check(sum("other clients use it" in err for err in told) >= 1, "nobody was told to wait: %s" % told)


@contextlib.contextmanager
def listener(answer):
    """A port where `answer` is called with each connection, on a thread of its own."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield "127.0.0.1:%d" % server.getsockname()[1]
    finally:
        server.close()


def http_answer(connection):
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def banner(connection):
    with connection:
        connection.sendall(b"220 mail.example ESMTP ready\r\n")
        connection.recv(4096)


def silence(connection):
    with connection:
        while connection.recv(4096):
            pass


def read_exactly(connection, count):
    out = b""
    while len(out) < count:
        part = connection.recv(count - len(out))
        if not part:
            raise OSError("closed")
        out += part
    return out


def other_version(connection):
    """ZMTP 3.0 with the NULL mechanism, and a kvd of protocol version 2 behind it."""
    try:
        connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31))
        read_exactly(connection, 64)
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"ROUTER"
        connection.sendall(b"\x04" + bytes([len(ready)]) + ready)
        while True:
            flags, length = read_exactly(connection, 2)
            read_exactly(connection, length)
            if flags & 4:
                continue
            body = b"\x99\xce\x6b\x76\x64\x31\x02\x11\x07\x00\x00\x00\x00\x80"
            connection.sendall(bytes([0, len(body)]) + body)
    except OSError:
        pass


def check_foreign():
    for name, answer, code, words, limit in (
            ("HTTP", http_answer, 5, "HTTP/1.1 400", 3), ("a banner", banner, 5, "220 mail", 3),
            ("silence", silence, 4, "says nothing", 4), ("another version", other_version, 5, "version 2", 3)):
        with listener(answer) as address:
            d = ping(address, "--timeout", "2s", code=code)
            check(words in d["error"]["message"], "%s: %s" % (name, d["error"]))
            check(d["seconds"] < limit, "%s: %.1f s" % (name, d["seconds"]))
            check("\n" not in d["error"]["message"] and not d["complete"], "one line")
    d = ping(NOBODY, "--timeout", "500ms", code=4)
    check("kvd-probe serve" in d["error"]["message"] and d["sizes"] == [], "nobody: %s" % d["error"])
    with cluster() as start:
        route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--log-level",
                      "error")
        d = ping(route.control, "--timeout", "2s", code=5)
        check("kvd-prefill" in d["error"]["message"] or "takes no probes" in d["error"]["message"], "a router: %s" % d["error"])


def check_either_first():
    port = socket.create_server(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % port.getsockname()[1]
    port.close()
    client = subprocess.Popen([str(BIN / "kvd-probe"), "ping", address, "--json", *QUICK], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    line = client.stderr.readline()
    check("waiting for " + address in line, "what is awaited is named: " + line)
    with cluster() as start:
        start("kvd-probe", "serve", "--listen", address, "--log-level", "warn")
        out, err = client.communicate(timeout=60)
        check(client.returncode == 0 and json.loads(out)["complete"], "%s %s" % (out, err))


def end_midway(number, *args):
    """Signals a serve while it is written to; the document, and the seconds that the client took to end."""
    with cluster() as start:
        peer = serve(start)
        client = subprocess.Popen([str(BIN / "kvd-probe"), "ping", peer.control, "--ndjson", "--provider", "tcp",
                                   "--time", "3s", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = [client.stdout.readline() for _ in range(2)]  # start, and a size that is done
        check(json.loads(lines[1])["event"] == "size", "a size: %s" % lines)
        peer.signal(number)
        began = time.monotonic()
        out, _ = client.communicate(timeout=60)
        took = time.monotonic() - began
        check(client.returncode in (4, 7), "status %d" % client.returncode)
        last = json.loads(out.splitlines()[-1])
        check_document("ping_event", last)
        check(last["event"] == "end" and not last["complete"] and last["sizes"], "what was measured is kept")
        return last, took


def check_ends():
    _, took = end_midway(signal.SIGKILL)
    check(took < 3, "killed: the client took %.1f s" % took)
    last, took = end_midway(signal.SIGSTOP, "--dead-after", "1s")
    check(1 <= took + 0.5 and took < 2, "stopped: the client took %.1f s" % took)
    check("silent" in last["error"]["message"], "stopped: %s" % last["error"])
    print("ok: a stopped peer ended the client after %.2f s with --dead-after 1s" % took)


def check_client_dies():
    """A session does not outlive its client."""
    with cluster() as start:
        peer = serve(start)
        client = subprocess.Popen([str(BIN / "kvd-probe"), "ping", peer.control, "--ndjson", "--provider", "tcp",
                                   "--time", "5s"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        client.stdout.readline()
        client.kill()
        client.communicate()
        d = ping(peer.control, "--provider", "tcp", "--bytes", "4KiB", *QUICK)
        check(d["complete"], "the next client is served")


class Star:
    """Hosts behind one switch: network namespaces with addresses 10.78.0.1 ..., and one for who measures."""

    def __init__(self, hosts):
        if os.geteuid() != 0:
            kvdtest.skip("network namespaces need root")
        self.tag = "kvdm%d" % os.getpid()
        self.hub = self.tag + "h"
        self.hosts = [self.tag + str(i) for i in range(hosts)]
        try:
            for namespace in (self.hub, *self.hosts):
                self.ip("netns", "add", namespace)
                self.ip("-n", namespace, "link", "set", "lo", "up")
            self.ip("-n", self.hub, "link", "add", "br0", "type", "bridge")
            self.ip("-n", self.hub, "addr", "add", "10.78.0.254/24", "dev", "br0")
            self.ip("-n", self.hub, "link", "set", "br0", "up")
            for i, namespace in enumerate(self.hosts):
                self.ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", "p%d" % i, "netns",
                        self.hub)
                self.ip("-n", self.hub, "link", "set", "p%d" % i, "master", "br0", "up")
                self.ip("-n", namespace, "addr", "add", self.address(i) + "/24", "dev", "eth0")
                self.ip("-n", namespace, "link", "set", "eth0", "up")
        except subprocess.CalledProcessError as e:
            self.close()
            kvdtest.skip("cannot make network namespaces here: %s" % (e.stderr or e))

    @staticmethod
    def ip(*args):
        subprocess.run(["ip", *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    @staticmethod
    def address(i):
        return "10.78.0.%d" % (i + 1)

    def shape(self, i, rate):
        for namespace, device in ((self.hosts[i], "eth0"), (self.hub, "p%d" % i)):
            subprocess.run(["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate",
                            rate, "burst", "256kb", "latency", "50ms"], check=True)

    def close(self):
        for namespace in (self.hub, *self.hosts):
            subprocess.run(["ip", "netns", "del", namespace], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def mesh(hub, peers, *args, code=0):
    done = kvdtest.run_in(hub, BIN / "kvd-probe", "mesh", *peers, "--json", *args, timeout=110)
    check(done.returncode == code, "mesh: status %d, not %d\n%s%s" % (done.returncode, code, done.stdout, done.stderr))
    document = json.loads(done.stdout)
    check_document("mesh", document)
    return document


def check_mesh():
    """Four hosts, one of them behind 100 Mbit/s: that one is marked and no other; then one of them dies."""
    star = Star(4)
    try:
        star.shape(2, "100mbit")
        with cluster() as start, tempfile.TemporaryDirectory() as folder:
            serves = [start("kvd-probe", "serve", "--listen", star.address(i) + ":7300", "--insecure", "--log-level",
                            "warn", netns=host) for i, host in enumerate(star.hosts)]
            peers = [serve.control for serve in serves]
            page = os.path.join(folder, "mesh.html")
            d = mesh(star.hub, peers, "--time", "300ms", "--html", page, code=1)
            check(d["complete"] and len(d["pairs"]) == 12, "every pair, both ways")
            check([p["slow"] for p in d["peers"]] == [False, False, True, False], "slow peers: %s" % d["peers"])
            for pair in d["pairs"]:
                check(pair["slow"] == (peers[2] in (pair["from"], pair["to"])), "slow pairs: %s" % pair)
                check(pair["provider"] == "tcp" and not pair["downgraded"], "provider: %s" % pair)
            with open(page, encoding="utf-8") as f:
                text = f.read()
            xml.etree.ElementTree.fromstring(text.replace("<!DOCTYPE html>", ""))
            check(text.count('class="heat mark"') == 6 and "http://" not in text.replace("http://www.w3.org", ""), "page")
            one = kvdtest.run_in(star.hosts[0], BIN / "kvd-probe", "ping", peers[1], "--json", *QUICK)
            path = next(f for f in json.loads(one.stdout)["findings"] if f["id"] == "path")
            check("over eth0 here and eth0 there" in path["evidence"][0], "path: %s" % path)
            serves[3].kill()
            d = mesh(star.hub, peers, "--time", "200ms", "--timeout", "2s", code=7)
            bad = [pair for pair in d["pairs"] if pair["error"]]
            check(len(bad) == 6 and all(peers[3] in (pair["from"], pair["to"]) for pair in bad), "errors: %s" % bad)
            check(d["peers"][3]["error"]["code"] == "unavailable" and not d["complete"], "the dead one: %s" % d["peers"])
    finally:
        star.close()


def check_mesh_refusals():
    pair = (NOBODY, "127.0.0.1:2")
    for args, words in (((NOBODY,), "2 to 256"), (("a:1", "nonsense"), "HOST:PORT"), ((NOBODY, NOBODY), "twice"),
                        ((*pair, "--provider", "tpc"), "did you mean tcp"),
                        ((*pair, "--html", "/nonexistent/mesh.html"), "No such file")):
        done = probe("mesh", *args, code=2)
        check(words in done.stderr, "%s says: %s" % (args, done.stderr))
    d = json.loads(probe("mesh", NOBODY, "127.0.0.1:2", "--json", "--timeout", "300ms", code=4).stdout)
    check_document("mesh", d)
    with cluster() as start:
        peers = [serve(start).control for _ in range(2)]
        done = probe("mesh", *peers, "--time", "50ms", "--provider", "verbs", code=3)
        check("provider verbs;ofi_rxm: " in done.stdout, "no pair has verbs: " + done.stdout)
        # Slow may be anything on one host, but who asked for tcp was not downgraded to it.
        done = subprocess.run([str(BIN / "kvd-probe"), "mesh", *peers, "--time", "50ms", "--provider", "tcp"],
                              stdout=subprocess.PIPE, text=True, timeout=60)
        check("DOWNGRADED" not in done.stdout, "downgraded by request: " + done.stdout)


def check_workers():
    """A worker is probed while it serves: requests do not notice, pages are left alone, and it dials nobody."""
    mock = (*kvdtest.WORKER, "--engine", "mock", "--shape", "tiny", "--kv-memory", "4MiB", "--mock-compute", "20",
            "--log-level", "error")
    with cluster() as start:
        prefill = start("kvd-prefill", *mock)
        decode = start("kvd-decode", *mock, "--prefill", prefill.control)

        def serve_for(seconds):
            answers, end = [], time.monotonic() + seconds
            while time.monotonic() < end or not answers:
                began = time.monotonic()
                answer = kvdtest.complete(decode.http, prompt="one prompt for all of them", max_tokens=32, temperature=0)
                answers.append((answer["choices"][0]["text"], time.monotonic() - began))
            return answers

        quiet = serve_for(1.5)
        results, probed = [], []
        for worker in (prefill, decode):
            for provider in ("tcp", "local"):
                asked = threading.Thread(target=lambda w=worker, p=provider: results.append(
                    ping(w.control, "--provider", p, "--bytes", "4KiB", "1MiB", "--time", "400ms")))
                asked.start()
                busy = serve_for(0.1)
                while asked.is_alive():
                    busy += serve_for(0.1)
                asked.join()
                check({text for text, _ in busy} == {quiet[0][0]}, "the same answers")
                probed += [took for _, took in busy]
        usual, now = (statistics.median(took for took in times) for times in ([t for _, t in quiet], probed))
        print("ok: a request took %.1f ms, while probed %.1f ms" % (1e3 * usual, 1e3 * now))
        check(now < 2 * usual + 0.05, "requests noticed the probe: %.3f s, not %.3f s" % (now, usual))
        check(len(results) == 4 and all(r["complete"] and r["limited"] for r in results), "workers are probed")
        check(all(r["cpu_ns_per_gib"]["there"] is None for r in results), "a worker has other work")
        check(ping(decode.control, "--provider", "tcp", "--reverse", code=2)["error"]["code"] == "invalid_argument",
              "a worker never writes to a client")
        for worker in (prefill, decode):
            kvdtest.wait_until("no page is held", lambda w=worker: w.pages("leased") + w.pages("quarantined") == 0)
        peer = serve(start)
        d = json.loads(probe("mesh", peer.control, decode.control, "--json", "--time", "300ms").stdout)
        check_document("mesh", d)
        check([(p["from"], p["to"]) for p in d["pairs"]] == [(peer.control, decode.control)], "a worker is a target only")


def plain(mode, size):
    name = {"tcp": "net", "tcp;ofi_rxm": "tcp;ofi_rxm"}.get(mode, mode)
    done = subprocess.run([BIN / "test" / "kvd_plain_writes", name, str(size["bytes"]), str(size["writes"]),
                           str(size["depth"]), "1", "0.5"], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return json.loads(done.stdout)["bytes_per_s"]


def paired(arguments):
    if not (BIN / "test" / "kvd_plain_writes").exists():
        kvdtest.skip("kvd_plain_writes is not built")
    low, high = (float(x) for x in arguments.within.split(","))
    ratios = {}
    with cluster() as start:
        peer = serve(start)
        for turn in range(arguments.pairs):
            for provider, sizes in (("tcp", (4096, 65536, 1 << 20)), ("tcp;ofi_rxm", (4096, 65536, 1 << 20)),
                                    ("local", (1 << 20,))):
                for size in sizes:
                    run = ping(peer.control, "--provider", provider, "--spin", "--bytes", size, "--time", "1s")
                    ours = run["sizes"][0]
                    theirs = plain("memcpy" if provider == "local" else provider, ours)
                    ratios.setdefault((provider, size), []).append(ours["write"]["bytes_per_s"] / theirs)
            print("turn %d of %d" % (turn + 1, arguments.pairs), flush=True)
    bad = []
    for (provider, size), values in ratios.items():
        median = statistics.median(values)
        least = min(low, arguments.memcpy) if provider == "local" else low
        most = 100 if provider == "local" else high
        print("%-12s %7d: ping / %s %s, median %.3f" % (provider, size, "memcpy" if provider == "local" else "plain writes",
                                                        " ".join("%.2f" % v for v in values), median))
        if not least <= median <= most:
            bad.append("%s at %d: %.3f" % (provider, size, median))
    check(not bad, "outside %s: %s" % (arguments.within, "; ".join(bad)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="verbs", choices=("verbs", "peers", "mesh", "paired"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--within", default="0.9,1.1")
    parser.add_argument("--memcpy", type=float, default=0.85)
    arguments = parser.parse_args()
    if arguments.what == "paired":
        paired(arguments)
        return
    parts = {"verbs": (check_refusals, check_streams, check_permission, check_results, check_gates, check_queue),
             "mesh": (check_mesh_refusals, check_workers, check_mesh),
             "peers": (check_foreign, check_either_first, check_ends, check_client_dies)}
    for part in parts[arguments.what]:
        part()
        print("ok:", part.__name__, flush=True)


if __name__ == "__main__":
    main()
