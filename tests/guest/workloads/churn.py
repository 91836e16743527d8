# SPDX-License-Identifier: GPL-3.0-or-later
"""A hard mix of tasks for a scheduler, run inside a guest: ``python3 churn.py SECONDS``.

Every kind that has stalled schedulers in the field: CPU hogs that are free, nice, and bound to one CPU;
tasks whose affinity changes all the time, in themselves and from outside; tasks that sleep and wake; short
processes. Prints how often each kind got something done, as JSON: a kind that got nothing was starved.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from multiprocessing import Event, Process, Value
from multiprocessing.sharedctypes import Synchronized
from typing import Any

CPUS = sorted(os.sched_getaffinity(0))


def spin(milliseconds: float) -> None:
    """Use the CPU for about that long."""
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def free(done: Any) -> None:
    spin(2)
    done.value += 1


def bound(cpu: int) -> Callable[[Any], None]:
    def work(done: Any) -> None:
        os.sched_setaffinity(0, {cpu})
        spin(2)
        done.value += 1

    return work


def churning(done: Any) -> None:
    os.sched_setaffinity(0, set(random.sample(CPUS, random.randint(1, len(CPUS)))))
    spin(random.uniform(0, 4))
    done.value += 1


def sleeping(done: Any) -> None:
    time.sleep(0.005)
    spin(0.2)
    done.value += 1


def forking(done: Any) -> None:
    child = os.fork()
    if child == 0:
        spin(0.5)
        os._exit(0)
    os.waitpid(child, 0)
    done.value += 1


def run(kind: str, work: Callable[[Any], None], nice: int, done: Any, start: Any, seconds: float) -> None:
    # All begin together: starting twenty processes takes seconds in an emulated guest.
    start.wait()
    os.nice(nice)
    random.seed(kind)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        work(done)


def move_others(processes: list[Process], deadline: float) -> None:
    """Change the affinity of others, whether they run, wait or sleep."""
    while time.monotonic() < deadline:
        for process in processes:
            os.sched_setaffinity(process.pid or 0, set(random.sample(CPUS, random.randint(1, len(CPUS)))))
        time.sleep(0.003)


def main(seconds: float) -> None:
    start = Event()
    kinds: list[tuple[str, Callable[[Any], None], int]] = [
        ("free", free, 0),
        ("nice", free, 19),
        ("important", free, -15),
        *((f"bound{cpu}", bound(cpu), 0) for cpu in CPUS),
        *((f"bound{cpu}nice", bound(cpu), 10) for cpu in CPUS),
        ("churning", churning, 0),
        ("sleeping", sleeping, 0),
        ("forking", forking, 0),
        ("moved", sleeping, 0),
        ("moved_hog", free, 0),
    ]
    done: dict[str, Synchronized[int]] = {kind: Value("q", 0) for kind, _, _ in kinds}
    processes = {
        kind: Process(target=run, args=(kind, work, nice, done[kind], start, seconds))
        for kind, work, nice in kinds
    }
    for process in processes.values():
        process.start()
    start.set()
    move_others([processes["moved"], processes["moved_hog"]], time.monotonic() + seconds - 0.5)
    for process in processes.values():
        process.join(60)
    print(json.dumps({kind: value.value for kind, value in done.items()}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
