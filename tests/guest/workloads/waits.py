# SPDX-License-Identifier: GPL-3.0-or-later
"""How long hogs of unequal weight wait: ``python3 waits.py SECONDS NICE...``, one hog for each NICE.

Prints the longest time that each went without the CPU, in seconds, as JSON. More hogs than CPUs, please.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import Event, Process, Value
from typing import Any


def hog(nice: int, longest: Any, start: Any, seconds: float) -> None:
    start.wait()
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    deadline = time.monotonic() + seconds
    last = time.monotonic()
    while last < deadline:
        now = time.monotonic()
        longest.value = max(longest.value, now - last)
        last = now


def main(seconds: float, nices: list[int]) -> None:
    start = Event()
    longest = [Value("d", 0.0) for _ in nices]
    hogs = [
        Process(target=hog, args=(nice, value, start, seconds))
        for nice, value in zip(nices, longest, strict=True)
    ]
    for process in hogs:
        process.start()
    start.set()
    for process in hogs:
        process.join(seconds + 60)
    print(json.dumps([value.value for value in longest]))


if __name__ == "__main__":
    main(float(sys.argv[1]), [int(nice) for nice in sys.argv[2:]])
