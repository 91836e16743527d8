# SPDX-License-Identifier: GPL-3.0-or-later
"""What settings do to a thread that wakes next to hogs, and to the hogs: ``python3 effects.py [PROBE]``.

Loads the scheduler itself. Reads rounds from standard input, as JSON, each with

* ``settings``: the text of a settings file, which is applied to the running scheduler;
* ``waker``: the phase that a hint gives to the process that sleeps for 5 ms and then runs, null for none;
* ``hogs``: the same for each of the hogs, as many as the first round has; all are on CPUs 0 and 1;
* ``burst_ms``: how long the waker runs each time (1);
* ``gpu``: whether it works with the GPU, as PROBE sees it (see gpu_sync.bpf.c).

Prints for each round, as JSON: how long the waker waited per burst (``wait_ms``, the median; as the kernel
accounts for it), how often it woke per second (``wakes``), the row of the policy table that it had (``row``),
the part of the hogs' CPU time that each got (``hogs``), how often one was made to stop running, per second
(``switches``), and what the scheduler counted (``counters``).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Process, RawArray, RawValue
from pathlib import Path
from typing import Any

from processes import start_ticks
from wakes import waited

from zernel.bpf import BpfObject
from zernel.config import parse
from zernel.gpu import activity
from zernel.scheduler.config import Config
from zernel.scheduler.loader import LoadedScheduler, load_checked
from zernel.scheduler.maps import Hint
from zernel.scheduler.policy import Phase

CPUS = {0, 1}
SLEEP_S = 0.005
SETTLE_S = 0.4
MEASURE_S = 1.0
GPU_EVERY_S = 0.3  # a call makes the thread wait once more, and counts for a second


class Waker:
    """A process that sleeps and runs in turn, and notes how long it waited each time."""

    def __init__(self) -> None:
        self.burst_ms = RawValue("d", 1.0)
        self.gpu = RawValue("b", 0)
        self.wakes = RawValue("q", 0)
        self._waits = RawArray("d", 1 << 14)
        self.process = Process(target=self._run, daemon=True)

    def _run(self) -> None:
        os.sched_setaffinity(0, CPUS)
        account = os.open("/proc/self/schedstat", os.O_RDONLY)
        before, called = waited(account), 0.0
        while True:
            time.sleep(SLEEP_S)
            if self.gpu.value and time.monotonic() - called > GPU_EVERY_S:
                os.sched_yield()
                called = time.monotonic()
            end = time.thread_time() + self.burst_ms.value / 1000
            while time.thread_time() < end:
                pass
            after = waited(account)
            self._waits[self.wakes.value % len(self._waits)] = (after - before) / 1e6
            self.wakes.value += 1
            before = after

    def waits_since(self, wakes: int) -> list[float]:
        return [self._waits[number % len(self._waits)] for number in range(wakes, self.wakes.value)]


def hog() -> None:
    os.sched_setaffinity(0, CPUS)
    while True:
        pass


def ran_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def stopped(pid: int) -> int:
    """Return how often the process was made to stop running."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("nonvoluntary_ctxt_switches:")[2].split()[0])


def measure(
    scheduler: LoadedScheduler, waker: Waker, hogs: list[int], plan: dict[str, Any]
) -> dict[str, Any]:
    scheduler.apply(parse(Config, plan["settings"]))
    waker.burst_ms.value = plan.get("burst_ms", 1.0)
    waker.gpu.value = plan.get("gpu", False)
    phases = zip([waker.process.pid or 0, *hogs], [plan.get("waker"), *plan["hogs"]], strict=True)
    scheduler.maps.set_hints({pid: Hint(start_ticks(pid), Phase(phase)) for pid, phase in phases if phase})
    time.sleep(SETTLE_S)
    wakes, began = waker.wakes.value, time.monotonic()
    ran, stops, counters = [*map(ran_ns, hogs)], [*map(stopped, hogs)], scheduler.counters()
    time.sleep(MEASURE_S)
    took, waits = time.monotonic() - began, waker.waits_since(wakes)
    got = [ran_ns(pid) - before for pid, before in zip(hogs, ran, strict=True)]
    switches = sum(stopped(pid) - before for pid, before in zip(hogs, stops, strict=True))
    task = scheduler.maps.task(waker.process.pid or 0)
    return {
        # One that waits all the time still waits for as long as was measured.
        "wait_ms": statistics.median(waits) if waits else took * 1000,
        "wakes": len(waits) / took,
        "row": task.policy if task else None,
        "hogs": [part / sum(got) for part in got],
        "switches": switches / took / len(hogs),
        "counters": {name: value - counters[name] for name, value in scheduler.counters().items()},
    }


@contextmanager
def probing(path: Path) -> Iterator[None]:
    with BpfObject.open(path) as obj:
        assert activity.share(obj) is None
        obj.load()
        for program in obj.programs():
            program.attach()
        yield


def main(probe: Path | None) -> None:
    rounds = json.load(sys.stdin)
    # Before the scheduler is loaded: a process that lives on must not hold it.
    waker, hogs = Waker(), [Process(target=hog, daemon=True) for _ in rounds[0]["hogs"]]
    for process in (waker.process, *hogs):
        process.start()
    with ExitStack() as stack:
        scheduler = stack.enter_context(load_checked(parse(Config, rounds[0]["settings"])))
        if probe is not None:
            stack.enter_context(probing(probe))
        pids = [process.pid or 0 for process in hogs]
        report = [measure(scheduler, waker, pids, plan) for plan in rounds]
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
