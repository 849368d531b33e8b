#!/usr/bin/env python3
"""Compares an OpenAI server with tests/golden/greedy.jsonl at temperature 0.

  check_golden.py --url http://127.0.0.1:8000 [--concurrency N] [--ids] [--stream]
                  [--max-prompt TOKENS] [--limit N]

Prints one line for each entry that differs, then the count. Exit status 1 when any differs.
"""
import argparse
import concurrent.futures
import json
import pathlib
import sys
import urllib.request

GREEDY = pathlib.Path(__file__).resolve().parents[1] / "golden" / "greedy.jsonl"
EOS = 2
# An entry that ends by the model's end token is offered more tokens than it needs, so that a server
# which does not stop there is caught.
ROOM_AFTER_EOS = 6


def entries(max_prompt=0, limit=0):
    """The golden entries with prompts of at most `max_prompt` tokens (0: all), `limit` of them."""
    out = []
    with open(GREEDY, encoding="ascii") as lines:
        for line in lines:
            entry = json.loads(line)
            if not max_prompt or entry["prompt_tokens"] <= max_prompt:
                out.append(entry)
    return out[:limit] if limit else out


def part(found, count):
    """About `count` entries that still have every kind and prompt length."""
    by_class = {}
    for entry in found:
        by_class.setdefault((entry["kind"], entry["length_class"]), []).append(entry)
    out = []
    while len(out) < count and any(by_class.values()):
        for group in by_class.values():
            if group and len(out) < count:
                out.append(group.pop(0))
    return out


def request_of(entry, ids=False, stream=False):
    """Path and body of the request that must give the entry's output."""
    ends_itself = entry["finish_reason"] == "eos"
    body = {"temperature": 0, "max_tokens": len(entry["output_ids"]) + (ROOM_AFTER_EOS if ends_itself else 0)}
    if stream:
        body.update(stream=True, stream_options={"include_usage": True})
    if entry["kind"] == "chat":
        return "/v1/chat/completions", {**body, "messages": entry["messages"]}
    return "/v1/completions", {**body, "prompt": entry["prompt_ids"] if ids else entry["prompt"]}


def whole(answer):
    """(text, finish_reason, prompt tokens, token ids or None) of an answer in one piece."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    kvd = answer.get("kvd") or [{}]
    return text or "", choice["finish_reason"], answer["usage"]["prompt_tokens"], kvd[0].get("token_ids")


def streamed(lines):
    """The same, put together from server-sent events."""
    text, reason, usage, ids, done = "", None, {}, None, False
    for raw in lines:
        line = raw.decode("utf-8").strip()
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
            break
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            text += (delta.get("content") or "") if "delta" in choice else (choice.get("text") or "")
            reason = choice.get("finish_reason") or reason
        usage = event.get("usage") or usage
        if event.get("kvd"):
            ids = event["kvd"][0].get("token_ids")
    if not done:
        raise RuntimeError("the stream ended without [DONE]")
    return text, reason, usage.get("prompt_tokens"), ids


def ask(url, entry, ids=False, stream=False, timeout=600):
    path, body = request_of(entry, ids, stream)
    request = urllib.request.Request(url.rstrip("/") + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return streamed(answer) if stream else whole(json.load(answer))


def first_difference(want, got):
    at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
    return "at %d: want %r, got %r" % (at, want[at:at + 20], got[at:at + 20])


def difference(entry, answer):
    """None, or one line that says how the answer differs from the golden one."""
    text, reason, prompt_tokens, ids = answer
    near_tie = entry["near_tie"]
    want = entry["prefix_text"] if near_tie else entry["output_text"]
    if (text[:len(want)] if near_tie else text) != want:
        return "text differs " + first_difference(want, text)
    if ids is not None:
        count = entry["near_tie_step"] if near_tie else len(entry["output_ids"])
        want_ids = [i for i in entry["output_ids"][:count] if i != EOS]
        got_ids = [i for i in ids if i != EOS]
        if (got_ids[:len(want_ids)] if near_tie else got_ids) != want_ids:
            return "token ids differ " + first_difference(want_ids, got_ids)
    if prompt_tokens != entry["prompt_tokens"]:
        return "%d prompt tokens, reported %r" % (entry["prompt_tokens"], prompt_tokens)
    if not near_tie and reason != ("stop" if entry["finish_reason"] == "eos" else "length"):
        return "finish_reason is %r" % reason
    return None


def compare(url, found, concurrency=1, ids=False, stream=False):
    """Lines that name the entries which differ."""
    def one(entry):
        try:
            why = difference(entry, ask(url, entry, ids, stream))
        except Exception as error:  # whatever went wrong, the entry has not matched
            why = "%s: %s" % (type(error).__name__, error)
        return why and "%s (%d prompt tokens): %s" % (entry["id"], entry["prompt_tokens"], why)

    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        return [line for line in pool.map(one, found) if line]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--ids", action="store_true", help="send raw prompts as token ids")
    parser.add_argument("--stream", action="store_true", help="by server-sent events")
    parser.add_argument("--max-prompt", type=int, default=0, help="longest prompt, in tokens")
    parser.add_argument("--limit", type=int, default=0)
    args = parser.parse_args()
    found = entries(args.max_prompt, args.limit)
    wrong = compare(args.url, found, args.concurrency, args.ids, args.stream)
    for line in wrong:
        print(line)
    print("%d of %d golden entries match" % (len(found) - len(wrong), len(found)))
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
