# SPDX-License-Identifier: GPL-3.0-or-later
"""How an instance gets more: CPUs near those that it has, and memory behind its own."""

from __future__ import annotations

from zernel.devicetree.free import free_memory
from zernel.devicetree.model import Instance, System
from zernel.devicetree.topology_rules import memory_nodes
from zernel.devicetree.units import exact_size, format_size
from zernel.errors import Problem, ZernelError
from zernel.multikernel import allocate
from zernel.multikernel.placement import Layout


def resized(system: System, existing: Instance, count: int, layout: Layout) -> tuple[int, ...]:
    """Return ``count`` CPUs: those there are and free ones; or the lowest of those there are.

    What comes is the rest of its own cores, then what its wishes want, on the nodes where it is if these have
    enough; where neither cores nor wishes are known, the nearest above. ``layout`` is that of ``system``.
    Raises `ZernelError` when there are too few.
    """
    has = tuple(sorted(existing.cpus))
    if count <= len(has):
        return has[:count]
    if layout.siblings or existing.numa_nodes or existing.cpu_affinity is not None:
        return tuple(sorted((*has, *_more_cpus(system, existing, count - len(has), layout))))
    following = tuple(range(has[-1] + 1, has[-1] + 1 + count - len(has))) if has else ()
    if not set(following) <= set(layout.free) or not following:
        following = allocate.choose_cpus(system.resources, layout, count - len(has), existing.name)
    return tuple(sorted((*has, *following)))


def _more_cpus(system: System, existing: Instance, count: int, layout: Layout) -> list[int]:
    own: list[int] = []
    name, resources = existing.name, system.resources
    if existing.cpu_affinity != "spread":
        own = layout.rest_of_cores(name, existing.cpus)[:count]
    if len(own) == count:
        return own
    near = existing.numa_nodes if existing.cpu_affinity == "spread" else memory_nodes(system, existing)
    wishes = allocate.Wishes(near, existing.cpu_affinity, None, existing.devices)
    grown = (*existing.cpus, *own)
    layout.move(name, existing.cpus, grown)
    try:
        return [*own, *allocate.choose_cpus(resources, layout, count - len(own), name, wishes)]
    except ZernelError:
        wishes = wishes.but(numa_nodes=existing.numa_nodes)
        return [*own, *allocate.choose_cpus(resources, layout, count - len(own), name, wishes)]
    finally:
        layout.move(name, grown, existing.cpus)


def placed_anew(system: System, after: Instance) -> tuple[Instance, list[Problem]]:
    """Return an instance that is created anew with memory where there is enough, and why there is none."""
    others = system.but(instances=tuple(one for one in system.instances if one.name != after.name))
    wishes = allocate.Wishes(after.numa_nodes, after.cpu_affinity, after.memory_policy, after.devices)
    try:
        base = allocate.choose_memory(others, after.memory_bytes, after.name, wishes, after.cpus)
    except ZernelError as error:
        return after, list(error.problems)
    return after.but(memory_base=base), []


def check_growth(system: System, existing: Instance, after: Instance) -> list[Problem]:
    """Return why an instance's memory cannot grow: it is one range, and what follows it must be free."""
    if after.memory_end <= existing.memory_end or after.memory_base != existing.memory_base:
        return []
    gaps = free_memory(system.resources.memory, system.instances)
    room = next((end - start for start, end in gaps if start == existing.memory_end), 0)
    if after.memory_end - existing.memory_end <= room:
        return []
    most = existing.memory_bytes + room
    largest = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
    free = sum(end - start for start, end in gaps)
    follower = next(
        (one.name for one in system.instances if one.memory_base == existing.memory_end + room), None
    )
    return [
        Problem(
            "memory-cannot-grow",
            f"Memory cannot grow to {format_size(after.memory_bytes)}",
            subject=existing.name,
            explanation=(
                "An instance's memory is one range: it grows at its end",
                f"Free behind it: {format_size(room)}",
                f"Memory pool: {format_size(system.resources.memory.pool_bytes)}, {format_size(free)} free",
                f"Largest free block: {format_size(largest[1] - largest[0])} at {largest[0]:#x}"
                if gaps
                else "Largest free block: none",
            ),
            current_state=f"{format_size(existing.memory_bytes)} at {existing.memory_base:#x}",
            conflict=f"Instance {follower} begins at {existing.memory_end + room:#x}"
            if follower
            else f"The memory pool ends at {system.resources.memory.pool_end:#x}",
            suggestion=f"Use --memory={exact_size(most)} or less"
            if room
            else "Leave its memory as it is, or free what follows it",
            alternative=f"Delete it and create it anew: zernel delete {existing.name}",
        )
    ]
