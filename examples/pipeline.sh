#!/usr/bin/env bash
# A shell pipeline: questions in as NDJSON, answers out as NDJSON, several under way at once. Everything
# that is not a result goes to standard error, so that the output can be piped on.
#   examples/pipeline.sh [MODEL.gguf]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PATH=${KVD_BIN:-$root/build/release/bin}:$PATH
model=${1:-$("$root/scripts/fetch-model")}

# A registry: workers join it, the client asks it. Nobody needs to know anybody's address but its own.
exec {route_fd}< <(exec kvd-route serve --http 127.0.0.1:0 --listen 127.0.0.1:0 --log-level warn)
pids=($!)
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
}
trap finish EXIT
read -r -t 60 -u "$route_fd" ready
registry=$(sed -E 's/.*"control":"([^"]+)".*/\1/' <<<"$ready")

worker=(--model "$model" --kv-memory 256MiB --http 127.0.0.1:0 --listen 127.0.0.1:0 --log-level warn --join "$registry")
exec {prefill_fd}< <(exec kvd-prefill "${worker[@]}")
pids+=($!)
read -r -t 60 -u "$prefill_fd" ready
exec {decode_fd}< <(exec kvd-decode "${worker[@]}")
pids+=($!)
read -r -t 60 -u "$decode_fd" ready

for country in France Japan Egypt Peru; do
  printf '{"id":"%s","prompt":"The capital of %s is","max_tokens":6}\n' "$country" "$country"
done |
  kvd-route generate --ndjson --join "$registry" --concurrency 4 --temperature 0 |
  python3 -c '
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    if event["event"] == "result":
        print(event["id"], "->", " ".join(event["text"].split()))
' | sort
