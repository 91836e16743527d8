# SPDX-License-Identifier: GPL-3.0-or-later
"""On which NUMA node a process runs that is told to belong to one: ``python3 near.py SECONDS``.

Loads the scheduler itself. Two processes run and sleep in turn, on a host of two nodes with two CPUs each.
Prints as JSON the part of the looks at each time that found them on a CPU of the second node: with a hint for
the first node, with one for the second, and with one for the second while they may only use the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from processes import start_ticks

from zernel.scheduler import topology
from zernel.scheduler.config import Config
from zernel.scheduler.loader import load_checked
from zernel.scheduler.maps import Hint
from zernel.scheduler.policy import Phase

HALF = """
import time
while True:
    time.sleep(0.01)
    end = time.thread_time() + 0.002
    while time.thread_time() < end: pass
"""


def cpu_of(pid: int) -> int:
    """Return the CPU that the process runs on, or ran on last."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[36])


def main(seconds: float) -> None:
    host = topology.read()
    first = {cpu for cpu, node in enumerate(host.node_of_cpu) if node == 0}
    running = [subprocess.Popen([sys.executable, "-c", HALF]) for _ in range(2)]
    report = []
    with load_checked(Config()) as scheduler:
        for node, allowed in ((0, None), (1, None), (1, first)):
            for process in running:
                os.sched_setaffinity(process.pid, allowed or range(host.nr_cpus))
            looks, deadline = [], time.monotonic() + seconds
            while time.monotonic() < deadline:
                hints = {p.pid: Hint(start_ticks(p.pid), Phase.UNKNOWN, node) for p in running}
                scheduler.maps.set_hints(hints)
                time.sleep(0.05)
                looks += [cpu_of(process.pid) not in first for process in running]
            # The first looks may have come before they woke.
            settled = looks[len(looks) // 4 :]
            report.append(sum(settled) / len(settled))
    for process in running:
        process.kill()
        process.wait()
    print(json.dumps(report))


if __name__ == "__main__":
    main(float(sys.argv[1]))
