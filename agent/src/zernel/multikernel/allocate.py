# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing CPUs, memory and an id for a new instance, by topology and in pages of 4 KiB.

What is chosen is the same for the same state and wishes. Whether it is as good as was wished is for
validation to say, which looks at what a person chose in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable

from zernel.devicetree.free import divided_fit, first_fit, free_memory, node_memory, within
from zernel.devicetree.model import MAX_INSTANCE_ID, DeviceUse, Instance, Resources, System
from zernel.devicetree.topology_rules import memory_nodes
from zernel.devicetree.units import format_cpus, format_size
from zernel.errors import Problem, fail
from zernel.multikernel import placement
from zernel.multikernel.placement import Layout
from zernel.record import Record
from zernel.topology import Topology

_SHOWN = 8
"""Pairs of siblings that a warning lists."""


class Wishes(Record):
    """Where an instance should be: on which NUMA nodes (none: any), by which policies, near which devices."""

    numa_nodes: tuple[int, ...] = ()
    cpu_affinity: str | None = None
    memory_policy: str | None = None
    devices: tuple[DeviceUse, ...] = ()


ANYWHERE = Wishes()


def choose_cpus(
    resources: Resources, layout: Layout, count: int, subject: str, wishes: Wishes = ANYWHERE
) -> tuple[int, ...]:
    """Return ``count`` free CPUs, ascending; raises `ZernelError` when there are not as many."""
    nodes = _known(resources, wishes.numa_nodes)
    wanted = {use.device for use in wishes.devices}
    near = frozenset(
        device.numa_node
        for device in (resources.devices if wanted else ())
        if device.name in wanted and device.numa_node is not None and (not nodes or device.numa_node in nodes)
    )
    chosen = placement.choose(layout, count, wishes.cpu_affinity, nodes, near)
    if chosen is not None:
        return chosen
    free = layout.free_on(nodes)
    elsewhere = len(layout.free) - len(free)
    where = f" on NUMA node {format_cpus(nodes)}" if nodes else ""
    raise fail(
        "not-enough-cpus" if count > 0 else "bad-cpu-count",
        f"{count} CPU{'s' * (count != 1)} cannot be given{where}",
        subject=subject,
        explanation=(
            f"Free CPUs{where}: {format_cpus(free)} ({len(free)})",
            *((f"Free CPUs on other nodes: {elsewhere}",) if elsewhere else ()),
        ),
        suggestion=f"Use --cpu-count={len(free)} or less"
        if free
        else "Name other NUMA nodes"
        if elsewhere
        else "Delete an instance that is not needed",
    )


def shared_cores(
    resources: Resources, others: Iterable[Instance], layout: Layout, instance: Instance, topology: Topology
) -> list[Problem]:
    """Return a warning when ``instance`` has a part of a core whose other part somebody else has.

    ``layout`` is that of ``others``, and may have the instance, too.
    """
    sharers = layout.sharers(instance.name, instance.cpus)
    if not sharers:
        return []
    rest = tuple(one for one in others if one.name != instance.name)
    layout = Layout(System(resources, rest), topology)
    pairs = [(cpu, sibling, owner) for owner, found in sharers.items() for cpu, sibling in found]
    owners = " or ".join(owner for owner in sharers if owner != "the host kernel")
    nodes = _known(resources, instance.numa_nodes)
    better = placement.choose(layout, len(set(instance.cpus)), instance.cpu_affinity, nodes)
    if better is not None and layout.sharers(instance.name, better):
        better = None
    return [
        Problem(
            "cpu-core-shared",
            f"Shares cores with {' and '.join(sharers)}",
            subject=instance.name,
            explanation=(
                *(
                    f"CPU {cpu} has a core with CPU {sibling} of {owner}"
                    for cpu, sibling, owner in pairs[:_SHOWN]
                ),
                *((f"and {len(pairs) - _SHOWN} more",) if len(pairs) > _SHOWN else ()),
            ),
            suggestion=f"Use --cpus={format_cpus(better)}: nobody has a part of these cores"
            if better is not None
            else f"Free whole cores: make {owners} smaller"
            if owners
            else "Give the host whole cores in the baseline",
            note="CPUs of a core share its caches and execution units: they slow each other, and can spy",
            severity="WARNING",
        )
    ]


def choose_memory(
    system: System, size: int, subject: str, wishes: Wishes = ANYWHERE, cpus: tuple[int, ...] = ()
) -> int:
    """Return the lowest address where ``size`` bytes are free on the named NUMA nodes, or else on those of
    ``cpus``; where there is none, the lowest in the pool, but for "bind".

    Raises `ZernelError` if there is none.
    """
    resources = system.resources
    gaps = free_memory(resources.memory, system.instances)
    nodes = memory_nodes(
        system, Instance(subject, None, cpus, 0, size, numa_nodes=_known(resources, wishes.numa_nodes))
    )
    policy = wishes.memory_policy
    near = within(gaps, node_memory(resources, nodes)) if nodes else gaps
    base = divided_fit(resources, gaps, nodes, size) if policy == "interleave" else None
    if base is None:
        base = first_fit(near, size)
    if base is None and policy != "bind":
        base = first_fit(gaps, size)
    if base is not None:
        return base
    bound = policy == "bind" and near is not gaps
    where = f" on NUMA node {format_cpus(nodes)}" if bound else ""
    start, end = max(near if bound else gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
    first, last = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
    raise fail(
        "not-enough-memory",
        f"{format_size(size)} of memory cannot be given in one piece{where}",
        subject=subject,
        explanation=(
            f"Memory pool: {format_size(resources.memory.pool_bytes)}, {format_size(_total(gaps))} free",
            *((f"Free{where}: {format_size(_total(near))}",) if bound else ()),
            f"Largest free block{where}: {_block(start, end)}",
            *((f"Largest free block of the pool: {_block(first, last)}",) if bound else ()),
        ),
        suggestion=f"Use --memory={end - start:#x} ({format_size(end - start)}) or less"
        if end > start
        else "Delete an instance that is not needed",
        alternative="Let memory come from other nodes where it must: --memory-policy=local"
        if bound and last - first >= size
        else None,
    )


def choose_id(system: System, subject: str) -> int:
    """Return the lowest free instance id; raises `ZernelError` when all are taken."""
    taken = {instance.id for instance in system.instances}
    number = next((number for number in range(1, MAX_INSTANCE_ID + 1) if number not in taken), None)
    if number is None:
        raise fail(
            "no-id",
            f"All {MAX_INSTANCE_ID} instance ids are taken",
            subject=subject,
            suggestion="Delete an instance that is not needed",
        )
    return number


def _known(resources: Resources, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the nodes; none at all when one does not exist, which validation refuses."""
    there = {node.node_id for node in resources.numa_nodes} if nodes else set()
    return nodes if there.issuperset(nodes) else ()


def _total(gaps: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in gaps)


def _block(start: int, end: int) -> str:
    return f"{format_size(end - start)} at {start:#x}" if end > start else "none"
