# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the free CPUs an instance gets: by NUMA nodes, sockets, cores and SMT siblings.

A core that one instance, or the host, has a part of is given to another one only when there are not enough
cores of which nobody has a part: siblings share caches and execution units, and with them their secrets.
Time grows with the number of CPUs (times its logarithm, for sorting), not with its square.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeVar

from zernel.devicetree.free import free_cpus
from zernel.devicetree.model import System
from zernel.topology import Topology

K = TypeVar("K")


class Layout:
    """Where the CPUs of a system are, and who has them; follows changes with `move`."""

    def __init__(self, system: System, topology: Topology) -> None:
        resources = system.resources
        cpus = resources.cpus
        self.nodes = {cpu: node.node_id for node in resources.numa_nodes for cpu in node.cpus}
        self.sockets = topology.sockets
        self.siblings = topology.siblings
        # Cores in order, so that neighbours have neighbouring places although numbers may be missing.
        every = {self.core(cpu) for cpu in (*cpus.available, *cpus.host_reserved)}
        ordered = sorted(every, key=lambda core: (self.socket(core), core))
        self.places = {core: place for place, core in enumerate(ordered)}
        self.owners = dict.fromkeys(cpus.host_reserved, "the host kernel")
        for instance in system.instances:
            self.owners.update(dict.fromkeys(instance.cpus, instance.name))
        self.split = {self.core(cpu) for cpu in self.owners}
        self.available = set(cpus.available)
        self.free = free_cpus(resources, system.instances)

    def move(self, name: str, before: Iterable[int], after: Iterable[int]) -> None:
        """Follow an instance that had the CPUs ``before`` and has ``after`` now."""
        kept = set(after)
        given = {cpu for cpu in before if cpu not in kept and self.owners.get(cpu) == name}
        for cpu in given:
            del self.owners[cpu]
        for cpu in given:
            if not any(sibling in self.owners for sibling in self.siblings.get(cpu, ())):
                self.split.discard(self.core(cpu))
        self.owners.update(dict.fromkeys(kept, name))
        self.split.update(self.core(cpu) for cpu in kept)
        self.free = [cpu for cpu in self.free if cpu not in kept]
        if given:
            self.free = sorted({*self.free, *(given & self.available)})

    def node(self, cpu: int) -> int:
        """Return the CPU's NUMA node; -1 for none."""
        return self.nodes.get(cpu, -1)

    def socket(self, cpu: int) -> int:
        """Return the CPU's socket; -1 where it is not known."""
        return self.sockets.get(cpu, -1)

    def core(self, cpu: int) -> int:
        """Return the CPU's core, as the lowest CPU of it; a CPU of which nothing is known is a core."""
        core = self.siblings.get(cpu)
        return core[0] if core else cpu

    def is_whole(self, cpu: int) -> bool:
        """Say whether nobody has a part of the CPU's core."""
        return self.core(cpu) not in self.split

    def free_on(self, nodes: tuple[int, ...]) -> list[int]:
        """Return the free CPUs of these NUMA nodes, ascending; of all when none is named."""
        wanted = frozenset(nodes)
        return [cpu for cpu in self.free if self.node(cpu) in wanted] if wanted else self.free

    def sharers(self, name: str, cpus: Iterable[int]) -> dict[str, list[tuple[int, int]]]:
        """Return by owner, but for ``name``, pairs of one of ``cpus`` and a sibling that the owner has."""
        found: dict[str, list[tuple[int, int]]] = {}
        for cpu in cpus:
            for sibling in self.siblings.get(cpu, ()):
                owner = self.owners.get(sibling)
                if sibling != cpu and owner is not None and owner != name:
                    found.setdefault(owner, []).append((cpu, sibling))
        return found

    def rest_of_cores(self, name: str, cpus: Iterable[int]) -> list[int]:
        """Return the free CPUs, ascending, of those cores of ``cpus`` that ``name`` alone has a part of."""
        had = set(cpus)
        cores = {core for cpu in had if (core := self.siblings.get(cpu))}
        own = [core for core in cores if all(self.owners.get(cpu, name) == name for cpu in core)]
        return sorted(cpu for core in own for cpu in core if cpu in self.available and cpu not in had)


def choose(
    layout: Layout,
    count: int,
    affinity: str | None,
    nodes: tuple[int, ...],
    near: frozenset[int] = frozenset(),
) -> tuple[int, ...] | None:
    """Return ``count`` free CPUs, ascending; None when there are fewer.

    ``nodes`` are the NUMA nodes that they may be on (empty: all), ``near`` those preferred for "local"
    (empty: the one with the most free CPUs). No affinity is like "compact".
    """
    free = layout.free_on(nodes)
    if not 0 < count <= len(free):
        return None
    whole = [cpu for cpu in free if layout.is_whole(cpu)]
    pools = [whole, without(free, whole) if len(whole) < len(free) else []]
    if affinity == "local":
        home = near or _home_nodes(layout, count, nodes)
        at_home = [[cpu for cpu in pool if layout.node(cpu) in home] for pool in pools]
        pools = [
            part for pool, first in zip(pools, at_home, strict=True) for part in (first, without(pool, first))
        ]
    chosen: list[int] = []
    for pool in pools:
        missing = count - len(chosen)
        if missing >= len(pool):
            chosen += pool
        elif affinity == "spread":
            chosen += _spread(pool, missing, chosen, (layout.node, layout.socket, layout.core))
        else:
            # What was taken already says which nodes are used anyhow.
            used = {layout.node(cpu) for cpu in chosen}
            beside = [cpu for cpu in pool if layout.node(cpu) in used] if used else []
            chosen += compact(layout, beside, min(missing, len(beside)))
            rest = without(pool, beside) if beside else pool
            chosen += compact(layout, rest, max(0, missing - len(beside)))
    return tuple(sorted(chosen))


def _home_nodes(layout: Layout, count: int, nodes: tuple[int, ...]) -> frozenset[int]:
    """Return the node that is home to an instance without devices: the one with the most free CPUs."""
    free = layout.free_on(nodes)
    whole = [cpu for cpu in free if layout.is_whole(cpu)]
    groups = _grouped(whole if len(whole) >= count else free, layout.node)
    return frozenset([max(groups, key=lambda node: (len(groups[node]), -node))] if groups else [])


def without(cpus: list[int], others: Iterable[int]) -> list[int]:
    """Return ``cpus`` but ``others``, in order."""
    left_out = set(others)
    return [cpu for cpu in cpus if cpu not in left_out]


# -- compact ------------------------------------------------------------------------------------------------


def compact(layout: Layout, cpus: list[int], count: int) -> list[int]:
    """Return ``count`` of ``cpus`` on the fewest NUMA nodes, then sockets, then neighbouring cores."""
    if count == 0:
        return []
    nodes = _fewest(_grouped(cpus, layout.node).values(), count)
    by_socket = _grouped(cpus, layout.socket) if layout.sockets else {}
    sockets = [
        (found, parts)
        for found in by_socket.values()
        if len(found) >= count
        and len(parts := _fewest(_grouped(found, layout.node).values(), count)) == len(nodes)
    ]
    if sockets:  # one socket alone does it: the fullest, to keep the others whole
        nodes = min(sockets, key=lambda item: len(item[0]))[1]
    chosen: list[int] = []
    for node in nodes:
        for socket in _fewest(_grouped(node, layout.socket).values(), min(count - len(chosen), len(node))):
            wanted = min(count - len(chosen), len(socket))
            for run in _fewest(_runs(layout, socket), wanted):
                chosen += _window(layout, run, min(count - len(chosen), len(run)))
    return chosen


def _fewest(groups: Iterable[list[int]], count: int) -> list[list[int]]:
    """Return the fewest groups that have ``count`` CPUs together: all but the last are used up.

    The last is the smallest that is enough: what is left over elsewhere stays in one piece.
    """
    ordered = sorted(groups, key=lambda group: (-len(group), group[0]))
    chosen: list[list[int]] = []
    for at, group in enumerate(ordered):
        if len(group) >= count:
            enough = (found for found in ordered[at:] if len(found) >= count)
            return [*chosen, min(enough, key=lambda found: (len(found), found[0]))]
        chosen.append(group)
        count -= len(group)
    return chosen


def _runs(layout: Layout, cpus: list[int]) -> list[list[int]]:
    """Return the CPUs core by core, in lists whose cores are neighbours."""
    runs: list[list[int]] = []
    before: int | None = None
    by_place = _grouped(cpus, lambda cpu: layout.places[layout.core(cpu)])
    for place in sorted(by_place):
        if before is not None and place == before + 1:
            runs[-1] += by_place[place]
        else:
            runs.append(list(by_place[place]))
        before = place
    return runs


def _window(layout: Layout, run: list[int], count: int) -> list[int]:
    """Return ``count`` CPUs of the fewest cores of a run, and among these of those that are used up best."""
    members = list(_grouped(run, layout.core).values())
    first = held = 0
    best: tuple[tuple[int, int], int, int] | None = None
    for last, core in enumerate(members):
        held += len(core)
        while held - len(members[first]) >= count:
            held -= len(members[first])
            first += 1
        rank = (last - first, held - count)
        if held >= count and (best is None or rank < best[0]):
            best = (rank, first, last + 1)
    assert best is not None, "a run has as many CPUs as are asked of it"
    return [cpu for core in members[best[1] : best[2]] for cpu in core][:count]


# -- spread -------------------------------------------------------------------------------------------------


def _spread(
    cpus: list[int], count: int, chosen: list[int], keys: tuple[Callable[[int], object], ...]
) -> list[int]:
    """Return ``count`` of ``cpus``, evenly over the groups of the first key, in each over those of the next.

    ``chosen`` are the CPUs that the instance has already; they count, so that all together are even.
    """
    if not keys:
        return cpus[:count]
    groups, present = _grouped(cpus, keys[0]), _grouped(chosen, keys[0])
    members = list(groups.items())
    # The group with the fewest so far gives the next one; among equals the one with the most left.
    heap = [(len(present.get(key, ())), -len(group), at) for at, (key, group) in enumerate(members)]
    heapq.heapify(heap)
    given = [0] * len(members)
    for _ in range(count):
        load, room, at = heapq.heappop(heap)
        given[at] += 1
        if room < -1:
            heapq.heappush(heap, (load + 1, room + 1, at))
    found: list[int] = []
    for (key, group), number in zip(members, given, strict=True):
        if number:
            found += _spread(group, number, present.get(key, []), keys[1:])
    return found


def _grouped(cpus: Iterable[int], key: Callable[[int], K]) -> dict[K, list[int]]:
    groups: dict[K, list[int]] = {}
    for cpu in cpus:
        groups.setdefault(key(cpu), []).append(cpu)
    return groups
