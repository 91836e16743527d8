# SPDX-License-Identifier: GPL-3.0-or-later
"""How much CPU time hogs of different weight get: ``python3 shares.py SECONDS CPUS NICE...``.

One hog for each NICE, all on the same CPUS (a list such as ``0,1``). Prints the seconds of CPU time that each
got, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import Event, Process, Value
from typing import Any


def hog(nice: int, cpus: set[int], got: Any, start: Any, seconds: float) -> None:
    start.wait()
    os.sched_setaffinity(0, cpus)
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    deadline = time.monotonic() + seconds
    before = time.process_time()
    while time.monotonic() < deadline:
        pass
    got.value = time.process_time() - before


def main(seconds: float, cpus: set[int], nices: list[int]) -> None:
    start = Event()
    got = [Value("d", 0.0) for _ in nices]
    hogs = [
        Process(target=hog, args=(nice, cpus, value, start, seconds))
        for nice, value in zip(nices, got, strict=True)
    ]
    for process in hogs:
        process.start()
    start.set()
    for process in hogs:
        process.join(seconds + 60)
    print(json.dumps([value.value for value in got]))


if __name__ == "__main__":
    main(float(sys.argv[1]), set(map(int, sys.argv[2].split(","))), [int(nice) for nice in sys.argv[3:]])
