# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's CPUs and NUMA nodes, as the scheduler numbers them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zernel.errors import fail

MAX_CPUS = 8192
"""CPU numbers that are believed: NR_CPUS of the largest x86-64 kernel."""

NO_NODE = -1
"""NUMA_NO_NODE of the kernel: memory may come from anywhere."""


@dataclass(frozen=True, slots=True)
class Topology:
    """CPUs and the nodes that have any.

    ``nr_cpus`` is one more than the highest CPU number that there can ever be (CPUs may be offline, and
    numbers may be missing). ``node_of_cpu`` gives the index into ``nodes`` for each CPU number; a CPU of no
    known node counts to the first. ``nodes`` are the kernel's numbers of the nodes.
    """

    nr_cpus: int
    nodes: tuple[int, ...]
    node_of_cpu: tuple[int, ...]
    smt: bool


def read(root: Path = Path("/")) -> Topology:
    """Read the topology below ``root``/sys/devices/system.

    :raises ZernelError: if the kernel does not say which CPUs there are.
    """
    system = root / "sys/devices/system"
    possible = cpu_list(_text(system / "cpu/possible"))
    if not possible or max(possible) >= MAX_CPUS:
        raise fail(
            "topology",
            "The kernel does not say which CPUs there are",
            explanation=f"{system / 'cpu/possible'}: {_text(system / 'cpu/possible')!r}",
            suggestion="Check that /sys is mounted",
        )
    nr_cpus = max(possible) + 1
    nodes: list[int] = []
    node_of_cpu = [0] * nr_cpus
    # A kernel without CONFIG_NUMA has no node directory; a node without CPUs (memory alone) needs no queue.
    for number in cpu_list(_text(system / "node/online")):
        cpus = [cpu for cpu in cpu_list(_text(system / f"node/node{number}/cpulist")) if cpu < nr_cpus]
        for cpu in cpus:
            node_of_cpu[cpu] = len(nodes)
        if cpus:
            nodes.append(number)
    smt = _text(system / "cpu/smt/active") == "1"
    return Topology(nr_cpus, tuple(nodes) or (NO_NODE,), tuple(node_of_cpu), smt)


def cpu_list(text: str) -> list[int]:
    """Return the numbers in a kernel list such as ``0-3,8``; nothing for text that is not one."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return []
        low, high = int(first), int(last or first)
        if high >= 1 << 20 or low > high:
            return []
        numbers.extend(range(low, high + 1))
    return numbers


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
