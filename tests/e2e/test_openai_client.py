#!/usr/bin/env python3
"""The official Python client works against kvd-route serve, streaming and not.

Installs `openai` into a virtual environment in the cache folder (once); skipped where PyPI is not to be had.
"""
import os
import pathlib
import subprocess
import sys
import venv

from kvdtest import WORKER, check, cluster, model_path, skip

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "kvd" / "openai-venv"

CLIENT = r"""
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
model = client.models.list().data[0].id
done = client.completions.create(model=model, prompt="The capital of France is", max_tokens=8, temperature=0)
assert "Paris" in done.choices[0].text, done
assert done.usage.prompt_tokens == 5 and done.usage.completion_tokens == 8, done.usage
parts = list(client.completions.create(model=model, prompt="The capital of France is", max_tokens=8,
                                       temperature=0, stream=True, stream_options={"include_usage": True}))
assert "".join(p.choices[0].text for p in parts if p.choices) == done.choices[0].text
assert parts[-1].usage.completion_tokens == 8
messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
chat = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0,
                                      logprobs=True, top_logprobs=2)
text = chat.choices[0].message.content
assert "Paris" in text, chat
assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
streamed = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0,
                                          stream=True)
assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == text
several = client.completions.create(model=model, prompt=["One, two,", "Red, green,"], n=2, max_tokens=4, seed=3)
assert len(several.choices) == 4 and [c.index for c in several.choices] == [0, 1, 2, 3]
try:
    client.completions.create(model=model, prompt="x", max_tokens=-1)
    raise SystemExit("max_tokens -1 was accepted")
except openai.BadRequestError as e:
    assert "max_tokens" in str(e)
print("openai", openai.__version__, "works:", repr(text))
"""


def client_python():
    python = CACHE / "bin" / "python"
    if not python.exists():
        venv.create(CACHE, with_pip=True)
    have = subprocess.run([python, "-c", "import openai"], stderr=subprocess.DEVNULL)
    if have.returncode != 0:
        done = subprocess.run([python, "-m", "pip", "install", "-q", "openai"])
        if done.returncode != 0:
            skip("the openai package cannot be installed here")
    return python


def main():
    python = client_python()
    model = model_path()
    common = (*WORKER, "--model", model, "--kv-memory", "256MiB")
    with cluster() as start:
        prefill = start("kvd-prefill", *common)
        decode = start("kvd-decode", *common, "--prefill", prefill.control)
        for flow in ("decode-first", "standalone"):
            route = start("kvd-route", "serve", "--http", "127.0.0.1:0", "--flow", flow, "--prefill",
                          prefill.control, "--decode", decode.control)
            route.wait_for_workers(prefills=1, decodes=1)
            done = subprocess.run([python, "-c", CLIENT, route.http])
            check(done.returncode == 0, "the client failed in flow " + flow)


if __name__ == "__main__":
    sys.exit(main())
