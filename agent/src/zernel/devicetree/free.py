# SPDX-License-Identifier: GPL-3.0-or-later
"""What is still free on a host: the base of allocation and of every suggestion in an error."""

from __future__ import annotations

from zernel.devicetree.model import PAGE_BYTES, Device, DeviceUse, Instance, Memory, Resources, System


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


def free_parts(device: Device, instances: tuple[Instance, ...]) -> list[DeviceUse]:
    """Return what can still be given away of ``device``: functions, namespaces, or the device itself."""
    taken = {use for instance in instances for use in instance.devices if use.device == device.name}
    if DeviceUse(device.name) in taken:
        return []
    parts = [DeviceUse(device.name, vf=vf) for vf in device.available_vfs]
    parts += [DeviceUse(device.name, namespace=namespace) for namespace in device.available_ns]
    if not parts and device.sriov_vfs is None and device.namespaces is None:
        parts = [DeviceUse(device.name)]
    return [part for part in parts if part not in taken]
