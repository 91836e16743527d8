# SPDX-License-Identifier: GPL-3.0-or-later
"""Which roles tasks get under which settings: ``python3 gpu_threads.py PROBE``.

PROBE is the object that stands for the probes; see gpu_sync.bpf.c. Reads texts of settings files from
standard input, as a JSON list, loads the scheduler with the first and applies the others one by one. Prints
as JSON the role that each kind of task had most of the time under each (``working``), and under the first
one once the tasks have not worked with the GPU for a while (``idle``).

Each is a process of its own: threads of Python would take turns, whatever the scheduler does.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from zernel.bpf import BpfObject
from zernel.config import parse
from zernel.gpu import activity
from zernel.scheduler.config import Config
from zernel.scheduler.loader import LoadedScheduler, load_checked

working = mmap.mmap(-1, 1)  # shared with the processes
disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 22)


def spin(milliseconds: float) -> None:
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def launcher() -> None:
    time.sleep(0.01)
    if working[0]:
        os.sched_yield()
    spin(0.5)


def optimizer() -> None:
    time.sleep(0.02)
    if working[0]:
        os.sched_yield()
    spin(6)


def collective() -> None:
    if working[0]:
        os.getpriority(os.PRIO_PROCESS, 0)
        threading.Event().wait(0.01)  # a futex
    else:
        time.sleep(0.01)


def loader() -> None:
    os.preadv(disk, [buffer], 0)


def bystander() -> None:
    time.sleep(0.01)
    spin(0.5)


def start(act: Callable[[], None]) -> int:
    """Have a process do it again and again, and return its pid."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    while os.getppid() == parent:
        act()
    os._exit(0)


def roles(scheduler: LoadedScheduler, pids: dict[str, int]) -> dict[str, str | None]:
    """Return the role that each has most of the time, once it had time to change."""
    time.sleep(1)
    looks: dict[str, Counter[str | None]] = {name: Counter() for name in pids}
    for _ in range(20):
        time.sleep(0.05)
        for name, pid in pids.items():
            task = scheduler.maps.task(pid)
            looks[name][task.role if task else None] += 1
    return {name: seen.most_common(1)[0][0] for name, seen in looks.items()}


def main(probe: Path) -> None:
    configs = [parse(Config, text) for text in json.load(sys.stdin)]
    working[0] = 1
    pids = {act.__name__: start(act) for act in (launcher, optimizer, collective, loader, bystander)}
    with load_checked(configs[0]) as scheduler, BpfObject.open(probe) as obj:
        assert activity.share(obj) is None
        obj.load()
        for program in obj.programs():
            program.attach()
        time.sleep(1)
        report = []
        for config in configs:
            scheduler.apply(config)
            report.append(roles(scheduler, pids))
        seen = scheduler.maps.drain()[pids["launcher"]]
        scheduler.apply(configs[0])
        working[0] = 0
        time.sleep(1)
        idle = roles(scheduler, pids)
    print(json.dumps({"working": report, "idle": idle, "sync": seen.gpu_sync_ns is not None}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
