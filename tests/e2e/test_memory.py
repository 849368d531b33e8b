#!/usr/bin/env python3
"""What a worker holds in memory, libraries included: when it is ready, at most 1.15 x the model file (weights
once, the file's own pages given back, KV not yet touched); after a prompt, KV and the buffers of one chunk more."""
import os
import sys

from kvdtest import WORKER, check, cluster, complete, model_path, words

KV_MIB = 64
CHUNK_MIB = 24  # 512 rows of activations of this model are 14 MiB


def main():
    model = model_path()
    file_mib = os.path.getsize(model) / 2**20
    with cluster() as start:
        daemon = start("kvd-decode", *WORKER, "--model", model, "--prefill", "local", "--kv-memory", "%dMiB" % KV_MIB)
        ready_mib = daemon.rss_kib() / 1024
        print("ready: %.1f MiB for a file of %.1f MiB, %.3f x" % (ready_mib, file_mib, ready_mib / file_mib))
        check(ready_mib <= 1.15 * file_mib, "more than 1.15 x the file")
        complete(daemon.http, prompt=words(600, 1), max_tokens=4)
        used_mib = daemon.rss_kib() / 1024
        print("after a prompt of 600 tokens: %.1f MiB" % used_mib)
        check(used_mib <= ready_mib + KV_MIB + CHUNK_MIB, "grew by more than KV and the buffers of a chunk")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit("FAILED: %s" % error)
