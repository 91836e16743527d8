# SPDX-License-Identifier: GPL-3.0-or-later
"""Real-time threads that keep CPUs busy are found in /proc, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zernel.scheduler import realtime
from zernel.scheduler.realtime import LOOK_S, hogs

FIFO, OTHER = 1, 0


class Proc:
    """Threads below a directory; while somebody pauses, each runs for its part of the time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pauses: list[float] = []
        self.threads: dict[tuple[int, int], tuple[str, int, float]] = {}

    def add(self, pid: int, tid: int, policy: int, part: float, state: str = "R") -> None:
        directory = self.root / f"proc/{pid}/task/{tid}"
        directory.mkdir(parents=True)
        (self.root / f"proc/{pid}/comm").write_text("a) R (b\n")
        self.threads[pid, tid] = state, policy, part
        self._write(0.0)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._write(seconds)

    def _write(self, seconds: float) -> None:
        for (pid, tid), (state, policy, part) in self.threads.items():
            ticks = 1000 + round(part * seconds * os.sysconf("SC_CLK_TCK"))
            fields = [state, *["0"] * 10, str(ticks - 400), "400", *["0"] * 23, "3", "50", str(policy), "0"]
            stat = self.root / f"proc/{pid}/task/{tid}/stat"
            if stat.parent.exists():
                stat.write_text(f"{pid} (a) R (b) {' '.join(fields)}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_a_real_time_thread_that_keeps_a_cpu_busy_is_told_with_its_cpu(proc: Proc) -> None:
    proc.add(10, 10, OTHER, 1.0)
    proc.add(10, 11, FIFO, 1.0)
    proc.add(12, 12, FIFO, 0.2)
    proc.add(13, 13, FIFO, 0.75)
    found = hogs(proc.root, proc.pause)
    assert [(one.pid, one.tid, one.cpu, one.part) for one in found] == [
        (10, 11, 3, 1.0),
        (13, 13, 3, pytest.approx(0.75)),
    ]
    assert str(found[0]) == "a) R (b (thread 11 of process 10, FIFO 50) uses 100% of CPU 3"
    assert proc.pauses == [LOOK_S]


def test_without_a_real_time_thread_that_runs_nobody_waits(proc: Proc) -> None:
    proc.add(10, 10, OTHER, 1.0)
    proc.add(11, 11, FIFO, 0.0, state="S")
    assert hogs(proc.root, proc.pause) == []
    assert proc.pauses == []


def test_a_thread_that_goes_meanwhile_is_left_out(proc: Proc) -> None:
    proc.add(10, 10, FIFO, 1.0)
    stat = proc.root / "proc/10/task/10/stat"

    def pause(seconds: float) -> None:
        stat.unlink()
        stat.parent.rmdir()

    assert hogs(proc.root, pause) == []


def test_no_more_than_the_limit_are_told(proc: Proc) -> None:
    for pid in range(100, 100 + 2 * realtime.MAX_HOGS):
        proc.add(pid, pid, FIFO, 1.0)
    assert len(hogs(proc.root, proc.pause)) == realtime.MAX_HOGS
