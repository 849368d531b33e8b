#!/usr/bin/env python3
"""kvd-bench compare and report on recorded results: exit codes, verdicts, and a page that any browser can
show without a network. Where Chromium is installed it shows the page too."""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from kvdtest import BIN, check

RECORDED = pathlib.Path(__file__).resolve().parent / "results"
SVG = "{http://www.w3.org/2000/svg}"
HTML = "{http://www.w3.org/1999/xhtml}"
HOSTILE = "<script>alert('1')</script>&\"\u202e\x01"


def run(code, *args, stdin=None):
    done = subprocess.run([BIN / "kvd-bench", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=60, input=stdin)
    check(done.returncode == code, "expected exit %d, got %d: kvd-bench %s\n%s%s" % (
        code, done.returncode, " ".join(map(str, args)), done.stdout, done.stderr))
    return done


def compare_json(code, *args, stdin=None):
    return json.loads(run(code, "compare", *args, "--json", stdin=stdin).stdout)


def with_field(folder, name, source, **fields):
    """A copy of a recorded result with other values."""
    document = {**json.loads((RECORDED / source).read_text()), **fields}
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def check_compare(folder):
    base = RECORDED / "pages-64k.json"
    recorded = json.loads(base.read_text())
    same = compare_json(0, base, base)
    check(same["passed"] and same["regressed"] == 0 and same["within_noise"] > 10, "a result equals itself")

    slower = with_field(folder, "slower.json", base.name, bytes_per_s=0.9 * recorded["bytes_per_s"],
                        ratio_to_ceiling=0.9 * recorded["ratio_to_ceiling"])
    found = compare_json(1, base, slower)
    verdicts = {f["name"]: f["verdict"] for f in found["cases"][0]["figures"]}
    check(verdicts["bytes_per_s"] == "regressed" and verdicts["ratio_to_ceiling"] == "regressed", "10 % less")
    check(found["regressed"] == 2, "and nothing else")
    check(compare_json(0, base, slower, "--max-regression", "11%")["worse"] == 2, "11 % are allowed")
    check(compare_json(0, slower, base)["better"] == 2, "the other way it is better")
    text = run(1, "compare", base, slower).stdout
    check(re.search(r"bytes_per_s .* -10\.0 % .* regressed", text), "the table says so:\n" + text)

    bbr = with_field(folder, "bbr.json", base.name,
                     environment={**recorded["environment"], "tcp_congestion_control": "bbr"})
    warnings = compare_json(0, base, bbr)["cases"][0]["warnings"]
    check(any("tcp_congestion_control differs" in w for w in warnings), "the other congestion control is a warning")

    engine = RECORDED / "engine-a.json"
    check(compare_json(1, engine, RECORDED / "engine-b.json")["regressed"] == 1, "one figure of the engine")
    piped = compare_json(0, base, "-", stdin=base.read_text())
    check(piped["b"] == "-" and piped["passed"], "B from stdin")


def check_refusals(folder):
    base = RECORDED / "pages-64k.json"
    other = with_field(folder, "local.json", base.name, provider="local")
    said = run(2, "compare", base, other).stderr
    check("provider tcp and local" in said and said.count("\n") == 1, "what differs is named: " + said)
    run(2, "compare", base, RECORDED / "engine-a.json")
    for text in ("", "{", "[]", '{"error":{"code":"deadline","message":"late"}}'):
        (folder / "bad.json").write_text(text)
        check("bad.json" in run(2, "compare", base, folder / "bad.json").stderr, "the file is named")
        check("bad.json" in run(2, "report", folder / "bad.json").stderr, "by report too")
    check("error" in compare_json(2, base, folder / "none.json"), "a failure is JSON too")
    run(2, "compare", base)
    run(2, "report")
    run(2, "report", base, "--output", base)
    run(2, "report", base, "--output", folder / "no" / "such")


def check_thresholds():
    sizes = RECORDED / "sizes.ndjson"
    run(0, "compare", sizes, "--threshold", "ratio_to_ceiling>0.5", "--threshold", "copies==0")
    run(1, "compare", sizes, "--threshold", "ratio_to_ceiling>1.5")
    missed = compare_json(1, sizes, "--threshold", "[page_bytes=64KiB].latency_ns.p99<1us")["thresholds"]
    check(len(missed) == 1 and not missed[0]["passed"] and missed[0]["path"] == "latency_ns.p99", str(missed))
    run(0, "compare", RECORDED / "engine-a.json", "--threshold", "decode[batch=8].tok_per_s>1")
    check("did you mean ratio_to_ceiling" in
          run(2, "compare", sizes, "--threshold", "ratio_to_celling>0.5").stderr, "the neighbour is named")
    run(2, "compare", sizes, "--threshold", "ratio_to_ceiling")


def texts_of(root):
    return [" ".join("".join(e.itertext()).split()) for e in root.iter()]


def check_report(folder):
    hostile = folder / ("a <b> & 'c'.json")
    document = json.loads((RECORDED / "pages-64k.json").read_text())
    document["shape"] = HOSTILE
    document["environment"] = {**document["environment"], "cpu": HOSTILE, HOSTILE: "x"}
    hostile.write_text(json.dumps(document))
    page = folder / "report.html"
    files = [RECORDED / name for name in ("sizes.ndjson", "pages-64k.json", "engine-a.json", "engine-b.json")]
    said = json.loads(run(0, "report", *files, hostile, "--title", HOSTILE[:-1], "--output", page, "--json").stdout)
    check(said["results"] == 7 and said["files"] == 5, str(said))
    text = page.read_text()
    check(text == run(0, "report", *files, hostile, "--title", HOSTILE[:-1]).stdout, "stdout has the same page")
    root = ElementTree.fromstring(text.split("\n", 1)[1])
    names = {e.tag for e in root.iter()}
    check(HTML + "script" not in names and HTML + "b" not in names, "nothing of the files is markup")
    for element in root.iter():
        for name, value in element.attrib.items():
            check(not name.startswith("on") and name not in ("src", "href"), "no %s attribute" % name)
            for number in re.findall(r"nan|inf", value) if element.tag.startswith(SVG) else ():
                check(name in ("class", "aria-label"), "%s=%s" % (name, value))
    check("url(" not in text and "@import" not in text and "default-src 'none'" in text, "nothing is fetched")
    found = texts_of(root)
    captions = [t for t in found if t]
    for wanted in ("Bandwidth by page size", "Bandwidth of KV pages", "Latency of a request", "Stages of a request",
                   "CPU time of both sides", "Prefill", "Decode, all sequences together", "Comparison of runs",
                   "Environment", "batch 8, context 512"):
        check(wanted in captions, "the page has no \"%s\"" % wanted)
    recorded = json.loads((RECORDED / "pages-64k.json").read_text())
    rate = "%.2f GB/s, ratio %.3f" % (recorded["bytes_per_s"] / 1e9, recorded["ratio_to_ceiling"])
    check(rate in captions, "the page has no " + rate)
    check(any(HOSTILE[:8] in t for t in captions), "the hostile name is shown as text")
    check(len(list(root.iter(SVG + "svg"))) == 7, "seven plots")
    return page


def check_browser(folder, page):
    """Returns whether there is a browser. Its picture must not be blank."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        return False
    picture = folder / "page.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--user-data-dir=%s" % (folder / "profile"), "--window-size=1000,3000",
               "--screenshot=%s" % picture, page.as_uri()]
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    except subprocess.TimeoutExpired:
        return False  # a busy host: what the page holds was checked above
    check(picture.exists() and picture.stat().st_size > 50_000, "the browser's picture is blank")
    return True


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        check_compare(folder)
        check_refusals(folder)
        check_thresholds()
        page = check_report(folder)
        shown = check_browser(folder, page)
    print("the page was %s in a browser" % ("shown" if shown else "not shown"))


if __name__ == "__main__":
    sys.exit(main())
