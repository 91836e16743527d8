# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc says of a process; nothing for one that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zernel.scheduler.topology import cpu_list

_MAX_BYTES = 1 << 14
_PF_KTHREAD = 0x0020_0000  # include/linux/sched.h


def start_ticks(pid: int, root: Path = Path("/")) -> int | None:
    """Return when it started, in clock ticks since boot: field 22 of /proc/PID/stat."""
    return _stat(pid, 22, root)


def is_program(pid: int, root: Path = Path("/")) -> bool:
    """Tell whether it is there and runs a program: it is no thread of the kernel's."""
    flags = _stat(pid, 9, root)
    return flags is not None and not flags & _PF_KTHREAD


def name(pid: int, root: Path = Path("/")) -> str | None:
    """Return its name (comm)."""
    return _read(root / f"proc/{pid}/comm").removesuffix("\n") or None


def memory_node(pid: int, root: Path = Path("/")) -> int | None:
    """Return the one NUMA node that its memory may come from; None where there are several.

    Where its memory really is only a walk through all of it tells (numa_maps), with its memory locked.
    """
    nodes = cpu_list(_status(pid, "Mems_allowed_list", root) or "")
    return nodes[0] if len(nodes) == 1 else None


def cpus_allowed(pid: int, root: Path = Path("/")) -> str | None:
    """Return the CPUs that its main thread may run on, as the kernel writes them (``0-3,8``)."""
    return _status(pid, "Cpus_allowed_list", root)


def threads(pid: int, root: Path = Path("/")) -> list[int]:
    """Return the ids of its threads, ascending."""
    return _numbers(root / f"proc/{pid}/task")


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread: ``policy`` is the number of its scheduling policy, ``priority`` its real-time one.

    ``cpu`` is the CPU that it runs on, or ran on last; ``cpu_ticks`` the CPU time that it had, in ticks of
    1/100 s.
    """

    pid: int
    tid: int
    state: str
    cpu_ticks: int
    cpu: int
    priority: int
    policy: int


def thread(pid: int, tid: int, root: Path = Path("/")) -> Thread | None:
    """Return a thread of a process; None if it is gone."""
    fields = _read(root / f"proc/{pid}/task/{tid}/stat").rpartition(")")[2].split()
    try:
        ticks = int(fields[11]) + int(fields[12])
        return Thread(pid, tid, fields[0], ticks, *(int(fields[place]) for place in (36, 37, 38)))
    except (IndexError, ValueError):
        return None


def runnable(root: Path = Path("/")) -> Iterator[Thread]:
    """Yield the threads of all processes that run, or wait for a CPU."""
    for pid in _numbers(root / "proc"):
        for tid in threads(pid, root):
            found = thread(pid, tid, root)
            if found is not None and found.state == "R":
                yield found


def _stat(pid: int, field: int, root: Path) -> int | None:
    """Return a number of /proc/PID/stat; fields count from 1, as in proc(5)."""
    # The name, in parentheses, may hold anything, parentheses and line breaks too; the third follows it.
    fields = _read(root / f"proc/{pid}/stat").rpartition(")")[2].split()
    text = fields[field - 3] if len(fields) > field - 3 else ""
    return int(text) if text.isdecimal() else None


def _numbers(directory: Path) -> list[int]:
    """Return the entries whose names are numbers, ascending."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def _status(pid: int, wanted: str, root: Path) -> str | None:
    """Return a value of /proc/PID/status."""
    for line in _read(root / f"proc/{pid}/status").splitlines():
        key, _, value = line.partition(":")
        if key == wanted:
            return value.strip()
    return None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
