# SPDX-License-Identifier: GPL-3.0-or-later
"""Real-time threads that keep a CPU to themselves: what else waits for that CPU gets next to nothing.

The kernel runs them before every other thread, whatever scheduler those have. A task that only that CPU may
run then waits until the kernel gives up on the BPF scheduler, which can do nothing about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zernel.scheduler import processes

LOOK_S = 0.2
"""Between the two looks at how much a thread ran."""

BUSY = 0.5
"""A thread that ran for more than this part of the time keeps its CPU to itself."""

MAX_HOGS = 16
"""More are not told of."""

_TICKS_PER_S = 100  # USER_HZ of x86-64: the unit of CPU times in /proc
_POLICIES = {1: "FIFO", 2: "RR", 6: "DEADLINE"}  # include/uapi/linux/sched.h


@dataclass(frozen=True, slots=True)
class Hog:
    """A real-time thread that runs most of the time: ``part`` (0 to 1) of it, on ``cpu`` when last seen."""

    pid: int
    tid: int
    name: str
    policy: str
    priority: int
    cpu: int
    part: float

    def __str__(self) -> str:
        where = f"{self.name} (thread {self.tid} of process {self.pid}, {self.policy} {self.priority})"
        return f"{where} uses {self.part:.0%} of CPU {self.cpu}"


def hogs(root: Path = Path("/"), pause: Callable[[float], None] = time.sleep) -> list[Hog]:
    """Return the real-time threads that keep a CPU busy now, the busiest first, at most ``MAX_HOGS``.

    Looks at all threads once. Only where real-time ones run just then it waits, for ``LOOK_S``, and looks at
    those again.
    """
    before = {(one.pid, one.tid): one for one in processes.runnable(root) if one.policy in _POLICIES}
    if not before:
        return []
    pause(LOOK_S)
    found = []
    for (pid, tid), old in before.items():
        new = processes.thread(pid, tid, root)
        if new is None or new.policy not in _POLICIES:
            continue
        part = min(1.0, (new.cpu_ticks - old.cpu_ticks) / (_TICKS_PER_S * LOOK_S))
        if part > BUSY:
            name = processes.name(pid, root) or "?"
            found.append(Hog(pid, tid, name, _POLICIES[new.policy], new.priority, new.cpu, part))
    return sorted(found, key=lambda one: -one.part)[:MAX_HOGS]
