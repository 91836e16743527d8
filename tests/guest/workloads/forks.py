# SPDX-License-Identifier: GPL-3.0-or-later
"""A fork storm, run inside a guest: ``python3 forks.py COUNT``, until so many processes were started.

One shell for each CPU forks children that end at once, one after the other, and another one forks fifty at a
time. This process sleeps for 5 ms again and again meanwhile. Prints as JSON how many processes were started,
how often it woke, and how many seconds that took; it gives up after a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SINGLE = "while :; do (:); done"
CROWD = "while :; do n=0; while [ $n -lt 50 ]; do (:) & n=$((n + 1)); done; wait; done"
LIMIT_S = 60


def started() -> int:
    """Return how many processes and threads the kernel has started since it booted."""
    text = Path("/proc/stat").read_text()
    return int(text.partition("\nprocesses ")[2].split()[0])


def main(count: int) -> None:
    shells = [subprocess.Popen(["sh", "-c", text]) for text in [*[SINGLE] * (os.cpu_count() or 1), CROWD]]
    before, began, wakes = started(), time.monotonic(), 0
    took = forks = 0.0
    while forks < count and took < LIMIT_S:
        time.sleep(0.005)
        wakes += 1
        took = time.monotonic() - began
        # Reading /proc/stat takes long: not each time.
        if wakes % 50 == 0:
            forks = started() - before
    for shell in shells:
        shell.kill()
        shell.wait()
    print(json.dumps({"forks": forks, "wakes": wakes, "seconds": took}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
