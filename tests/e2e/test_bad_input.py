#!/usr/bin/env python3
"""Bad input gets a clear one-line error that says what to do, the right exit code or HTTP status, and the
other requests go on."""
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.parse

from kvdtest import BIN, WORKER, check, cluster, complete, model_path, request, wait_until

MOCK = (*WORKER, "--engine", "mock", "--shape", "tiny", "--kv-memory", "4MiB")


def fails(code, needle, program, *args):
    done = subprocess.run([BIN / program, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=60, stdin=subprocess.DEVNULL)
    lines = [l for l in done.stderr.strip().splitlines() if l]
    what = "%s %s: exit %d, stderr %r" % (program, " ".join(map(str, args)), done.returncode, done.stderr)
    check(done.returncode == code, "expected exit %d: %s" % (code, what))
    check(needle.lower() in (lines[-1] if len(lines) == 1 else done.stderr).lower(),
          "%r is not said: %s" % (needle, what))
    check(done.stdout == "", "something on stdout: " + what)


def command_lines():
    with tempfile.TemporaryDirectory() as folder:
        def write(name, data):
            path = os.path.join(folder, name)
            with open(path, "wb") as f:
                f.write(data)
            return path

        with open(model_path(), "rb") as f:
            head = f.read(3_000_000)
        for name, data in (("empty.gguf", b""), ("text.gguf", b"hello"), ("cut.gguf", head),
                           ("header.gguf", head[:40]), ("counts.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 16)):
            path = write(name, data)
            fails(2, name, "kvd-prefill", *WORKER, "--model", path)
        old = write("v1.gguf", b"GGUF\x01\0\0\0" + b"\0" * 16)
        fails(2, "version", "kvd-prefill", *WORKER, "--model", old)
    fails(2, "no such file", "kvd-prefill", *WORKER, "--model", "/nonexistent.gguf")
    fails(2, "--model", "kvd-prefill", *WORKER, "--modle", "x")
    fails(2, "--model", "kvd-prefill", *WORKER)
    fails(2, "HOST:PORT", "kvd-prefill", "--listen", "nonsense", "--engine", "mock")
    fails(2, "64KiB", "kvd-prefill", *MOCK, "--kv-memory", "lots")
    fails(2, "--kv-memory", "kvd-prefill", *WORKER, "--engine", "mock", "--shape", "llama-3.1-8b",
          "--kv-memory", "1MiB")
    fails(2, "shape", "kvd-prefill", *WORKER, "--engine", "mock", "--shape", "nosuch")
    fails(2, "--insecure", "kvd-prefill", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--engine", "mock")
    fails(2, "--prefill", "kvd-decode", *MOCK)
    fails(3, "verbs", "kvd-prefill", *MOCK, "--provider", "verbs;ofi_rxm")
    fails(2, "choose one of", "kvd-prefill", *MOCK, "--provider", "tpc")
    fails(3, "--require-rdma", "kvd-prefill", *MOCK, "--require-rdma")
    fails(3, "shm", "kvd-prefill", *MOCK, "--provider", "shm")
    fails(4, "127.0.0.1:1", "kvd-route", "generate", "--decode", "127.0.0.1:1", "--timeout", "300ms")


def taken_port(start):
    taken = start("kvd-prefill", *MOCK)
    fails(2, "in use", "kvd-prefill", "--http", "127.0.0.1:0", "--listen", taken.control, "--engine", "mock",
          "--shape", "tiny")
    fails(2, "in use", "kvd-prefill", "--listen", "127.0.0.1:0", "--http",
          taken.http.removeprefix("http://"), "--engine", "mock", "--shape", "tiny")
    return taken


def wrong_peers(start, prefill):
    for flags, needle in ((("--page-size", "64", "--shape", "tiny"), "page_size: 64 here, 32 there"),
                          (("--shape", "smollm2-135m"), "there")):
        decode = start("kvd-decode", *WORKER, "--engine", "mock", "--kv-memory", "64MiB", *flags, "--prefill",
                       prefill.control)
        status, body = request(decode.http + "/v1/completions",
                               {"prompt": "x", "max_tokens": 2, "kvd_prefill": prefill.control})
        check(status in (502, 503) and needle in json.loads(body)["error"]["message"],
              "%s: %d %s" % (flags, status, body))
        decode.kill()


def raw(address, data):
    """Sends bytes, returns what comes back until the other side closes or half a second passes."""
    parts = urllib.parse.urlsplit(address if "//" in address else "//" + address)
    out = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as s:
        s.sendall(data)
        s.settimeout(0.5)
        try:
            while chunk := s.recv(65536):
                out += chunk
        except (TimeoutError, ConnectionError):
            pass
    return out


def http_bodies(decode):
    url = decode.http + "/v1/completions"
    chat = decode.http + "/v1/chat/completions"
    cases = [
        (url, b"", 400, ""), (url, b"{", 400, ""), (url, b"[]", 400, ""), (url, b"{}", 400, "prompt"),
        (url, b'{"prompt":"\xff\xfe"}', 400, "utf-8"),
        (url, b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, ""),
        (url, {"prompt": 7}, 400, "prompt"), (url, {"prompt": ""}, 400, "prompt"),
        (url, {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
        (url, {"prompt": "x", "max_tokens": 10**9}, 400, "max_tokens"),
        (url, {"prompt": "x" * 300000, "max_tokens": 1}, 400, ""),
        (url, {"prompt": [99999999], "max_tokens": 1}, 400, "vocabulary"),
        (url, {"prompt": "x", "temperature": "hot"}, 400, "temperature"),
        (url, {"prompt": "x", "n": 10**6}, 400, "n"),
        (url, {"prompt": "x", "model": "nosuch"}, 404, "nosuch"),
        (url, {"prompt": "x", "kvd_prefill": "10.1.2.3:4"}, 503, "10.1.2.3:4"),
        (chat, {"messages": []}, 400, "messages"),
        (chat, {"messages": [{"role": "nobody", "content": "x"}]}, 400, "role"),
        (decode.http + "/v1/nothing", {"x": 1}, 404, "/v1/nothing"),
    ]
    for where, body, want, needle in cases:
        status, answer = request(where, body)
        shown = body if isinstance(body, bytes) else json.dumps(body).encode()
        check(status == want, "%s: status %d, expected %d: %s" % (shown[:100], status, want, answer[:300]))
        message = json.loads(answer)["error"]["message"]
        check(needle.lower() in message.lower(), "%s: %r does not say %r" % (shown[:100], message, needle))
        check("\n" not in message and message, "not one line: %r" % message)
    for garbage in (b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                    b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n"):
        answer = raw(decode.http, garbage)
        check(not answer.startswith(b"HTTP/1.1 2"), "garbage was welcomed: %r" % answer[:80])


def main():
    command_lines()
    with cluster() as start:
        prefill = taken_port(start)
        wrong_peers(start, prefill)
        decode = start("kvd-decode", *MOCK, "--prefill", prefill.control)
        want = complete(decode.http, prompt="steady", max_tokens=5)["choices"][0]["text"]
        http_bodies(decode)
        for daemon in (prefill, decode):
            for garbage in (os.urandom(2000), b"\xff" + b"\0" * 8 + b"\x7f\x03", b"GET / HTTP/1.1\r\n\r\n"):
                raw(daemon.control, garbage)
        check(complete(decode.http, prompt="steady", max_tokens=5)["choices"][0]["text"] == want,
              "bad input changed an answer")
        for daemon in (prefill, decode):
            wait_until("no page is left behind",
                       lambda d=daemon: d.pages("leased") + d.pages("quarantined") == 0)
    print("bad input: every case has its error, and the workers live on")


if __name__ == "__main__":
    sys.exit(main())
