# SPDX-License-Identifier: GPL-3.0-or-later
"""A hard mix of tasks for a scheduler, run inside a guest: ``python3 churn.py SECONDS``.

Every kind that has stalled schedulers in the field: CPU hogs that are free, nice, and bound to one CPU;
tasks whose affinity changes all the time, in themselves and from outside; tasks that sleep and wake; short
processes. Prints as JSON how often each kind got something done (``done``: one that got nothing was starved),
and the longest that it took to do so once, in seconds (``longest_s``).
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
PATIENCE_S = 60
"""One that has not come back so long after the end is not waited for any more."""


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


def run(
    kind: str,
    work: Callable[[Any], None],
    nice: int,
    done: Any,
    longest: Any,
    start: Any,
    seconds: float,
) -> None:
    # All begin together: starting twenty processes takes seconds in an emulated guest.
    start.wait()
    os.nice(nice)
    random.seed(kind)
    before = time.monotonic()
    deadline = before + seconds
    while before < deadline:
        work(done)
        now = time.monotonic()
        longest.value = max(longest.value, now - before)
        before = now


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
    longest: dict[str, Synchronized[float]] = {kind: Value("d", 0) for kind, _, _ in kinds}
    processes = {
        kind: Process(target=run, args=(kind, work, nice, done[kind], longest[kind], start, seconds))
        for kind, work, nice in kinds
    }
    for process in processes.values():
        process.start()
    start.set()
    move_others([processes["moved"], processes["moved_hog"]], time.monotonic() + seconds - 0.5)
    end = time.monotonic() + PATIENCE_S
    for kind, process in processes.items():
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            longest[kind].value = max(longest[kind].value, PATIENCE_S)
    found = {"done": done, "longest_s": longest}
    # At once: the interpreter does not end before those that do not come back.
    print(
        json.dumps({name: {kind: of.value for kind, of in values.items()} for name, values in found.items()}),
        flush=True,
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))
