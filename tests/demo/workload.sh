#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Demo workload, run in the guest by systemd: a CUDA program on the tests' stub of libcuda (the guest has no GPU).
# It holds 256 MiB and allocates and frees 8 MiB each second, for the gpu_mem probe to count.
set -eu
cd "$(dirname "$0")"

attached() {
  python3 -c '
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9091/metrics", timeout=5).read().decode()
raise SystemExit("zernel_probe_attached{probe=\"gpu_mem\"} 1" not in text)
' 2>/dev/null
}

{
  # The library is open now. What is allocated before the probe found it would not be counted.
  until attached; do
    sleep 1
  done
  printf 'init\ncreate 0\nalloc 67108864 4\n'
  while sleep 1; do
    printf 'alloc 1048576 8\nfree 8\n'
  done
} | ./workload ./libcuda.so.1 >/dev/null
