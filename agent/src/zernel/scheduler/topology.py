# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's CPUs and NUMA nodes, as the scheduler numbers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    known node counts to the first. ``nodes`` are the kernel's numbers of the nodes. ``nearest`` gives, for
    the number of a node without CPUs (memory or a GPU alone), the number of the closest one that has some.
    """

    nr_cpus: int
    nodes: tuple[int, ...]
    node_of_cpu: tuple[int, ...]
    smt: bool
    nearest: Mapping[int, int] = field(default_factory=dict)

    def index_of(self, number: int | None) -> int | None:
        """Return the index into ``nodes`` of a node, or of the closest one that has CPUs; None if unknown."""
        number = self.nearest.get(number, number) if number is not None else None
        return self.nodes.index(number) if number in self.nodes and number != NO_NODE else None

    def cpus_of(self, index: int) -> list[int]:
        """Return the CPUs of the node with that index, ascending."""
        return [cpu for cpu, node in enumerate(self.node_of_cpu) if node == index]


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
    empty: list[int] = []
    node_of_cpu = [0] * nr_cpus
    # A kernel without CONFIG_NUMA has no node directory; a node without CPUs (memory alone) needs no queue.
    for number in cpu_list(_text(system / "node/online")):
        cpus = [cpu for cpu in cpu_list(_text(system / f"node/node{number}/cpulist")) if cpu < nr_cpus]
        for cpu in cpus:
            node_of_cpu[cpu] = len(nodes)
        (nodes if cpus else empty).append(number)
    smt = _text(system / "cpu/smt/active") == "1"
    nearest = {number: _nearest(system, number, nodes) for number in empty if nodes}
    return Topology(nr_cpus, tuple(nodes) or (NO_NODE,), tuple(node_of_cpu), smt, nearest)


def _nearest(system: Path, number: int, nodes: list[int]) -> int:
    """Return the one of ``nodes`` that is closest to a node: the kernel lists distances by online node."""
    online = cpu_list(_text(system / "node/online"))
    told = _text(system / f"node/node{number}/distance").split()
    pairs = zip(online, told, strict=False)
    distances = {node: int(text) for node, text in pairs if text.isdecimal() and node in nodes}
    return min(distances, key=distances.__getitem__, default=nodes[0])


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
