# SPDX-License-Identifier: GPL-3.0-or-later
"""What is still free on a host: the base of allocation and of every suggestion in an error."""

from __future__ import annotations

from zernel.devicetree.model import (
    PAGE_BYTES,
    Device,
    DeviceUse,
    Instance,
    Memory,
    NumaNode,
    Resources,
    System,
)

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterable


def without(system: System, index: int | None) -> tuple[Instance, ...]:
    """Return the instances but the one at ``index``."""
    return tuple(instance for at, instance in enumerate(system.instances) if at != index)


def free_cpus(resources: Resources, instances: tuple[Instance, ...]) -> list[int]:
    """Return the CPUs, ascending, that are available and that none of ``instances`` has."""
    taken = {cpu for instance in instances for cpu in instance.cpus}
    return [cpu for cpu in sorted(set(resources.cpus.available)) if cpu not in taken]


def first_run(cpus: list[int], count: int) -> tuple[int, ...] | None:
    """Return the first ``count`` CPUs of ascending ``cpus`` that are neighbours; if there are none, the first
    ones.

    None when there are fewer than ``count``.
    """
    if count > len(cpus):
        return None
    for start in range(len(cpus) - count + 1):
        if cpus[start + count - 1] - cpus[start] == count - 1:
            return tuple(cpus[start : start + count])
    return tuple(cpus[:count])


def free_memory(memory: Memory, instances: tuple[Instance, ...]) -> list[tuple[int, int]]:
    """Return the free ranges of the pool as (first address, first address after), ascending, page-aligned."""
    gaps: list[tuple[int, int]] = []
    at = memory.pool_base
    for start, end in sorted((instance.memory_base, instance.memory_end) for instance in instances):
        if start > at:
            gaps.append((at, min(start, memory.pool_end)))
        at = max(at, end)
    gaps.append((at, memory.pool_end))
    aligned = [
        ((start + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES)
        for start, end in gaps
    ]
    return [(start, end) for start, end in aligned if start < end]


def first_fit(gaps: list[tuple[int, int]], size: int) -> int | None:
    """Return the lowest address where ``size`` bytes fit, or None."""
    return next((start for start, end in gaps if end - start >= size), None)


def free_parts(device: Device, taken: set[DeviceUse]) -> list[DeviceUse]:
    """Return what can be given away of ``device`` and is not ``taken``: functions, namespaces, or itself."""
    if DeviceUse(device.name) in taken:
        return []
    parts = [DeviceUse(device.name, vf=vf) for vf in device.available_vfs]
    parts += [DeviceUse(device.name, namespace=namespace) for namespace in device.available_ns]
    if not parts and device.sriov_vfs is None and device.namespaces is None:
        parts = [DeviceUse(device.name)]
    return [part for part in parts if part not in taken]


def node_memory(resources: Resources, nodes: Iterable[int]) -> list[tuple[int, int]]:
    """Return the addresses of the NUMA nodes' memory as (first, first after), ascending; those of neighbours
    are one range, so that what lies across their border is inside."""
    wanted = set(nodes)
    merged: list[tuple[int, int]] = []
    for start, end in sorted(
        (node.memory_base, node.memory_base + node.memory_size)
        for node in resources.numa_nodes
        if node.node_id in wanted and node.memory_size
    ):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def within(gaps: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of ``gaps`` that lie in ``ranges``, in whole pages; both are ascending and apart."""
    found: list[tuple[int, int]] = []
    at = 0
    for start, end in gaps:
        while at < len(ranges) and ranges[at][1] <= start:
            at += 1
        for low, high in ranges[at:]:
            if low >= end:
                break
            first = -(-max(start, low) // PAGE_BYTES) * PAGE_BYTES
            last = min(end, high) // PAGE_BYTES * PAGE_BYTES
            if first < last:
                found.append((first, last))
    return found


def bytes_on(node: NumaNode, start: int, end: int) -> int:
    """Return how many bytes of ``start`` to ``end`` lie on a NUMA node."""
    return max(0, min(end, node.memory_base + node.memory_size) - max(start, node.memory_base))


def memory_shares(resources: Resources, start: int, end: int) -> dict[int | None, int]:
    """Return how many bytes of ``start`` to ``end`` lie on each NUMA node; None: on none of them."""
    shares: dict[int | None, int] = {}
    for node in resources.numa_nodes:
        held = bytes_on(node, start, end)
        if held:
            shares[node.node_id] = shares.get(node.node_id, 0) + held
    elsewhere = end - start - sum(shares.values())
    if elsewhere > 0:
        shares[None] = elsewhere
    return shares


def divided_fit(
    resources: Resources, gaps: list[tuple[int, int]], nodes: Iterable[int], size: int
) -> int | None:
    """Return where ``size`` bytes lie on all of the NUMA nodes, as evenly as one range can; None if nowhere.

    One range has memory of several nodes only where their addresses are neighbours: it holds all that lies
    between the lowest and the highest one, and takes the same from these two where that is free.
    """
    wanted = set(nodes)
    lowest, *others = sorted(
        (node for node in resources.numa_nodes if node.node_id in wanted and node.memory_size),
        key=lambda node: node.memory_base,
    ) or (None,)
    if lowest is None or not others:
        return None
    first_end, last_start = lowest.memory_base + lowest.memory_size, others[-1].memory_base
    # The range begins on the lowest node, ends on the highest, and has a page of each at least.
    ideal = first_end - (size - (last_start - first_end)) // 2
    for start, end in within(gaps, node_memory(resources, wanted)):
        low = -(-max(start, last_start + PAGE_BYTES - size) // PAGE_BYTES) * PAGE_BYTES
        high = min(end - size, first_end - PAGE_BYTES) // PAGE_BYTES * PAGE_BYTES
        if low <= high:  # in no other gap: all that fit have what lies between the two in common
            return min(max(ideal // PAGE_BYTES * PAGE_BYTES, low), high)
    return None
