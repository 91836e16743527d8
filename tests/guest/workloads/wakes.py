# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a thread that sleeps waits for a CPU next to hogs.

``python3 wakes.py SECONDS HOGS [SLEEP_MS [BURST_MS]]`` prints as JSON: how long it was ready but did not run,
per sleep, as the kernel accounts for it (p50, p90, p99 and the most, in milliseconds; the emulator's own
delays are not in them), how many sleeps there were, and the CPU time that the hogs got, as a part of all
CPUs' time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import Barrier, Process, Value
from typing import Any


def hog(start: Any, got: Any, seconds: float) -> None:
    start.wait()
    deadline = time.monotonic() + seconds
    before = time.process_time()
    while time.monotonic() < deadline:
        pass
    got.value = time.process_time() - before


def waited(account: int) -> int:
    """Return how long this thread was ready but did not run, in nanoseconds."""
    return int(os.pread(account, 100, 0).split()[1])


def main(seconds: float, hogs: int, sleep_ms: float = 5, burst_ms: float = 0) -> None:
    start = Barrier(hogs + 1)
    got = [Value("d", 0.0) for _ in range(hogs)]
    processes = [Process(target=hog, args=(start, value, seconds)) for value in got]
    for process in processes:
        process.start()
    start.wait()
    waits: list[float] = []
    account = os.open("/proc/self/schedstat", os.O_RDONLY)
    deadline = time.monotonic() + seconds - 0.2
    before = waited(account)
    while time.monotonic() < deadline:
        time.sleep(sleep_ms / 1000)
        end = time.monotonic() + burst_ms / 1000
        while time.monotonic() < end:
            pass
        after = waited(account)
        waits.append((after - before) / 1e6)
        before = after
    for process in processes:
        process.join(60)
    waits.sort()
    report: dict[str, float] = {f"p{q}": round(waits[len(waits) * q // 100], 3) for q in (50, 90, 99)}
    report |= {"most": round(waits[-1], 3), "wakes": len(waits)}
    report["hogs"] = round(sum(value.value for value in got) / (seconds * len(os.sched_getaffinity(0))), 3)
    print(json.dumps(report))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
