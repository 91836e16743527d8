# SPDX-License-Identifier: GPL-3.0-or-later
"""Which roles threads get that work with a GPU: ``python3 gpu_threads.py PROBE``.

PROBE is the object that stands for the probes; see gpu_sync.bpf.c. Loads the scheduler itself. Prints as JSON
the role of each kind of thread, and the same once it has not worked with the GPU for a while.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zernel.bpf import BpfObject
from zernel.gpu import activity
from zernel.scheduler.config import Config, PhaseDetection
from zernel.scheduler.loader import load_checked

working = True


def spin(milliseconds: float) -> None:
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def launcher() -> None:
    time.sleep(0.01)
    if working:
        os.sched_yield()


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


def bystander() -> None:
    time.sleep(0.01)


def repeat(name: str, act: Callable[[], None], threads: dict[str, int]) -> None:
    threads[name] = threading.get_native_id()
    while True:
        act()


def main(probe: Path) -> None:
    global working
    # Emulated CPUs are slow: what is short there is longer here.
    detection = PhaseDetection(nccl_detection_enabled=True, optimizer_burst_max_ns=20_000_000)
    config = dataclasses.replace(Config(), phase_detection=detection)
    with load_checked(config) as scheduler, BpfObject.open(probe) as obj:
        assert activity.share(obj) is None
        obj.load()
        for program in obj.programs():
            program.attach()
        threads: dict[str, int] = {}
        for act in (launcher, optimizer, collective, bystander):
            threading.Thread(target=repeat, args=(act.__name__, act, threads), daemon=True).start()
        report = []
        for _ in range(2):
            time.sleep(3)
            found = {name: scheduler.maps.task(thread) for name, thread in threads.items()}
            report.append({name: task.role if task else None for name, task in found.items()})
            working = False
        seen = scheduler.maps.drain()[os.getpid()]
    print(json.dumps({"working": report[0], "idle": report[1], "sync": seen.gpu_sync_ns is not None}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
