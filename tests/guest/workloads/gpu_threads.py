# SPDX-License-Identifier: GPL-3.0-or-later
"""Which roles threads get under which settings: ``python3 gpu_threads.py PROBE``.

PROBE is the object that stands for the probes; see gpu_sync.bpf.c. Reads texts of settings files from
standard input, as a JSON list, loads the scheduler with the first and applies the others one by one. Prints
as JSON the role that each kind of thread had most of the time under each (``working``), and under the first
one once the threads have not worked with the GPU for a while (``idle``).
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
from zernel.scheduler.config import Config
from zernel.scheduler.loader import PINS, LoadedScheduler, load_checked

working = True
disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 22)


def spin(milliseconds: float) -> None:
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def launcher() -> None:
    time.sleep(0.01)
    if working:
        os.sched_yield()
    spin(0.5)


def optimizer() -> None:
    time.sleep(0.02)
    if working:
        os.sched_yield()
    spin(6)


def collective() -> None:
    if working:
        os.getpriority(os.PRIO_PROCESS, 0)
        threading.Event().wait(0.01)  # a futex
    else:
        time.sleep(0.01)


def loader() -> None:
    os.preadv(disk, [buffer], 0)


def bystander() -> None:
    time.sleep(0.01)
    spin(0.5)


def repeat(name: str, act: Callable[[], None], threads: dict[str, int]) -> None:
    threads[name] = threading.get_native_id()
    while True:
        act()


def roles(scheduler: LoadedScheduler, threads: dict[str, int]) -> dict[str, str | None]:
    """Return the role that each thread has most of the time, once it had time to change."""
    time.sleep(1)
    looks: dict[str, Counter[str | None]] = {name: Counter() for name in threads}
    for _ in range(20):
        time.sleep(0.05)
        for name, thread in threads.items():
            task = scheduler.maps.task(thread)
            looks[name][task.role if task else None] += 1
    return {name: seen.most_common(1)[0][0] for name, seen in looks.items()}


def main(probe: Path) -> None:
    global working
    configs = [parse(Config, text) for text in json.load(sys.stdin)]
    with load_checked(configs[0]) as scheduler, BpfObject.open(probe) as obj:
        obj.map("gpu_activity").set_pin_path(PINS / "gpu_activity")
        obj.load()
        for program in obj.programs():
            program.attach()
        threads: dict[str, int] = {}
        for act in (launcher, optimizer, collective, loader, bystander):
            threading.Thread(target=repeat, args=(act.__name__, act, threads), daemon=True).start()
        time.sleep(1)
        report = []
        for config in configs:
            scheduler.apply(config)
            report.append(roles(scheduler, threads))
        seen = scheduler.maps.drain()[os.getpid()]
        scheduler.apply(configs[0])
        working = False
        time.sleep(1)
        idle = roles(scheduler, threads)
    print(json.dumps({"working": report, "idle": idle, "sync": seen.gpu_sync_ns is not None}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
