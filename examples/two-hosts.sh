#!/usr/bin/env bash
# Two hosts: prefill on one, decode on the other, KV over the network between them. Here the hosts are
# two network namespaces joined by a veth pair, which needs root; on real hosts the commands are the
# same without `on`.
#   examples/two-hosts.sh [MODEL.gguf]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PATH=${KVD_BIN:-$root/build/release/bin}:$PATH
model=${1:-$("$root/scripts/fetch-model")}
a=kvd-a-$$ b=kvd-b-$$ keys=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  ip netns del "$a" 2>/dev/null || true
  ip netns del "$b" 2>/dev/null || true
  rm -rf "$keys"
}
trap finish EXIT

ip netns add "$a"
ip netns add "$b"
ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b"
ip -n "$a" addr add 10.9.0.1/24 dev "va$$"
ip -n "$b" addr add 10.9.0.2/24 dev "vb$$"
for ns in "$a" "$b"; do
  ip -n "$ns" link set lo up
done
ip -n "$a" link set "va$$" up
ip -n "$b" link set "vb$$" up
on() { exec ip netns exec "$@"; }

# Between hosts the control channel has keys: each side has its own secret, and the other's public line.
make_key() { (umask 077 && kvd-route keygen --role "$1" ${2:+--addr "$2"} >"$keys/$1"); }
public_line() { sed -n '$s/^# //p' "$keys/$1"; }
make_key prefill 10.9.0.1:7100
make_key decode 10.9.0.2:7200
make_key route
{ public_line decode; public_line route; } >>"$keys/prefill.peers"
{ public_line prefill; public_line route; } >>"$keys/decode.peers"
{ public_line prefill; public_line decode; } >>"$keys/route.peers"
for role in prefill decode route; do cat "$keys/$role.peers" >>"$keys/$role"; done

worker=(--model "$model" --kv-memory 256MiB --provider tcp --log-level warn)
export KVD_API_KEY=example
exec {prefill_fd}< <(on "$a" kvd-prefill "${worker[@]}" --keys "$keys/prefill" --listen 10.9.0.1:7100 --http 10.9.0.1:8100)
pids+=($!)
exec {decode_fd}< <(on "$b" kvd-decode "${worker[@]}" --keys "$keys/decode" --listen 10.9.0.2:7200 --http 10.9.0.2:8200 --prefill 10.9.0.1:7100)
pids+=($!)
read -r -t 60 -u "$prefill_fd" ready
echo "$ready"
read -r -t 60 -u "$decode_fd" ready
echo "$ready"

echo "The capital of France is" |
  ip netns exec "$b" kvd-route generate --keys "$keys/route" --prefill 10.9.0.1:7100 --decode 10.9.0.2:7200 --max-tokens 8 --temperature 0 --json
