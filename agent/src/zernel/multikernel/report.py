# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts and data of the multikernel commands; the words are the kerf document's."""

from __future__ import annotations

from collections import Counter

from zernel.devicetree.model import Device, Instance, Resources
from zernel.devicetree.units import format_cpus, format_size
from zernel.devicetree.validate import is_valid
from zernel.errors import Problem

TYPE_CHECKING = False  # as typing's, whose import would cost a tenth of 'zernel init --report'
if TYPE_CHECKING:
    from typing import Any

_TITLE = "Multikernel Device Tree Validation Report"


def validation_report(
    resources: Resources | None,
    problems: list[Problem],
    instances: tuple[Instance, ...] = (),
    what: str = "Baseline validation",
) -> str:
    """Return the document's validation report as text."""
    lines = [_TITLE, "=" * (len(_TITLE) + 1)]
    lines += [f"Status: {'✓ VALID' if is_valid(problems) else '✗ INVALID'}", ""]
    if resources is not None and is_valid(problems):
        lines += [*inventory_lines(resources), ""]
        if instances:
            lines += ["Instances:", *(f"  {line}" for line in _instances_lines(resources, instances)), ""]
    for problem in problems:
        lines += [problem.render(), ""]
    lines += verdict(problems, what)
    return "\n".join(lines)


def _instances_lines(resources: Resources, instances: tuple[Instance, ...]) -> list[str]:
    cpus = sum(len(instance.cpus) for instance in instances)
    memory = sum(instance.memory_bytes for instance in instances)
    available, pool = len(resources.cpus.available), resources.memory.pool_bytes
    shares = percent(cpus, available), percent(memory, pool)
    return [
        *(line for instance in instances for line in instance_lines(instance, None)),
        f"Allocated CPUs: {cpus} of {available} ({shares[0]})",
        f"Allocated memory: {format_size(memory)} of {format_size(pool)} ({shares[1]})",
    ]


def verdict(problems: list[Problem], what: str = "Baseline validation") -> list[str]:
    """Return the closing lines of a validation; ``what`` is the subject of "passed"."""
    if is_valid(problems):
        return [f"✓ {what} passed"]
    errors = sum(problem.severity != "WARNING" for problem in problems)
    return [f"✗ Validation failed with {errors} error{'s' * (errors != 1)}"]


def inventory_lines(resources: Resources) -> list[str]:
    """Return the hardware inventory in the document's form."""
    cpus, memory = resources.cpus, resources.memory
    categories = Counter(device.category for device in resources.devices)
    devices = ", ".join(f"{count} {category}" for category, count in categories.items())
    pool = f"{format_size(memory.pool_bytes)} at {memory.pool_base:#x}"
    lines = [
        "  CPUs: total unknown",
        "    Host reserved: unknown",
        f"    Memory pool: {format_cpus(cpus.available)} ({_how_many(cpus.available)})",
        "  Memory: total unknown",
        "    Host reserved: unknown",
        f"    Memory pool: {pool}",
        f"  Devices: {', '.join(device.name for device in resources.devices) or 'none'}",
    ]
    if resources.complete:
        reserved_share = percent(memory.host_reserved_bytes, memory.total_bytes)
        lines = [
            f"  CPUs: {cpus.total} total",
            f"    Host reserved: {cpu_share(cpus.host_reserved, cpus.total)}",
            f"    Memory pool: {cpu_share(cpus.available, cpus.total)}",
            f"  Memory: {format_size(memory.total_bytes)} total",
            f"    Host reserved: {format_size(memory.host_reserved_bytes)} ({reserved_share})",
            f"    Memory pool: {pool} ({percent(memory.pool_bytes, memory.total_bytes)})",
            f"  Devices: {devices or 'none'}",
        ]
    nodes = [f"  NUMA nodes: {len(resources.numa_nodes)}"] if resources.numa_nodes else []
    return ["Hardware Inventory:", *lines, *nodes]


def inventory_details(resources: Resources) -> list[str]:
    """Return one line for each device and each NUMA node, for ``--verbose``."""
    lines = []
    for device in resources.devices:
        parts = [device.kind, device.compatible or "", device.pci_id or ""]
        if device.sriov_vfs is not None:
            parts.append(f"VFs {format_cpus(device.available_vfs)} of {device.sriov_vfs}")
        if device.namespaces is not None:
            parts.append(f"namespaces {format_cpus(device.available_ns)} of {device.namespaces}")
        if device.numa_node is not None:
            parts.append(f"NUMA node {device.numa_node}")
        lines.append(f"    {device.name}: {', '.join(part for part in parts if part)}")
    for node in resources.numa_nodes:
        size = f"{format_size(node.memory_size)} at {node.memory_base:#x}"
        lines.append(f"    NUMA node {node.node_id}: CPUs {format_cpus(node.cpus)}, {size}")
    return lines


def cpu_share(cpus: tuple[int, ...] | list[int], total: int) -> str:
    """Return CPUs with how many and what share of ``total`` they are."""
    return f"{format_cpus(cpus)} ({_how_many(cpus)}, {percent(len(cpus), total)})"


def _how_many(cpus: tuple[int, ...] | list[int]) -> str:
    return f"{len(cpus)} CPU{'s' * (len(cpus) != 1)}"


def percent(part: int, whole: int) -> str:
    """Return a share in whole per cent."""
    return f"{round(100 * part / whole) if whole else 0}%"


def memory_text(instance: Instance, *, placed: bool = True) -> str:
    """Return an instance's memory for a person; not ``placed``: the kernel has yet to choose where."""
    where = f"at {instance.memory_base:#x}" if placed else "(the kernel chooses where)"
    return f"{format_size(instance.memory_bytes)} {where}"


def instance_lines(instance: Instance, status: str | None, *, placed: bool = True) -> list[str]:
    """Return an instance as text."""
    lines = [f"Instance {instance.name}" + (f" ({status})" if status else "")]
    lines.append(f"  ID: {instance.id}")
    lines.append(f"  CPUs: {format_cpus(instance.cpus)} ({len(instance.cpus)})")
    lines.append(f"  Memory: {memory_text(instance, placed=placed)}")
    if instance.devices:
        lines.append(f"  Devices: {', '.join(map(str, instance.devices))}")
    return lines + wish_lines(instance)


def wish_lines(instance: Instance) -> list[str]:
    """Return the NUMA nodes and policies that an instance was given by, as text."""
    wishes = (
        ("NUMA nodes", format_cpus(instance.numa_nodes) if instance.numa_nodes else None),
        ("CPU affinity", instance.cpu_affinity),
        ("Memory policy", instance.memory_policy),
    )
    return [f"  {what}: {wish}" for what, wish in wishes if wish is not None]


# -- data ---------------------------------------------------------------------------------------------------


def report_data(
    resources: Resources | None, instances: tuple[Instance, ...], problems: list[Problem]
) -> dict[str, Any]:
    """Return the report for JSON and YAML: the stable form of ``zernel init --report``."""
    suggestions = dict.fromkeys(problem.suggestion for problem in problems if problem.suggestion)
    return {
        "status": "valid" if is_valid(problems) else "invalid",
        "errors": [problem.as_dict() for problem in problems if problem.severity != "WARNING"],
        "warnings": [problem.as_dict() for problem in problems if problem.severity == "WARNING"],
        "suggestions": list(suggestions),
        "hardware": hardware_data(resources) if resources else None,
        "instances": {instance.name: instance_data(instance) for instance in instances},
    }


def hardware_data(resources: Resources, *, placed: bool = True) -> dict[str, Any]:
    """Return the inventory for JSON and YAML.

    ``memory_pool_base`` is None where it is not ``placed``: the kernel has yet to choose. Where only the pool
    is known, the totals, what the host keeps and the devices' types are None.
    """
    cpus, memory, complete = resources.cpus, resources.memory, resources.complete
    return {
        "cpus": {
            "total": cpus.total if complete else None,
            "host_reserved": list(cpus.host_reserved) if complete else None,
            "available": list(cpus.available),
        },
        "memory": {
            "total_bytes": memory.total_bytes if complete else None,
            "host_reserved_bytes": memory.host_reserved_bytes if complete else None,
            "memory_pool_base": memory.pool_base if placed else None,
            "memory_pool_bytes": memory.pool_bytes,
        },
        "devices": {device.name: _device_data(device, complete) for device in resources.devices},
        "topology": {
            "numa_nodes": [
                {
                    "node_id": node.node_id,
                    "memory_base": node.memory_base,
                    "memory_size": node.memory_size,
                    "cpus": list(node.cpus),
                }
                for node in resources.numa_nodes
            ]
        },
    }


def _device_data(device: Device, complete: bool) -> dict[str, Any]:
    return {
        "type": device.kind if complete else None,
        "compatible": device.compatible,
        "pci_id": device.pci_id,
        "sriov_vfs": device.sriov_vfs,
        "host_reserved_vf": list(device.host_reserved_vf) if complete else None,
        "available_vfs": list(device.available_vfs),
        "namespaces": device.namespaces,
        "host_reserved_ns": list(device.host_reserved_ns) if complete else None,
        "available_ns": list(device.available_ns),
        "numa_node": device.numa_node,
    }


def instance_data(instance: Instance, status: str | None = None, *, placed: bool = True) -> dict[str, Any]:
    """Return an instance for JSON and YAML; ``status`` is the kernel's word for it, where there is one.

    ``memory_base`` is None where it is not ``placed``: the kernel has yet to choose.
    """
    return {
        "name": instance.name,
        "id": instance.id,
        "status": status,
        "cpus": list(instance.cpus),
        "memory_base": instance.memory_base if placed else None,
        "memory_bytes": instance.memory_bytes,
        "devices": [str(use) for use in instance.devices],
        "numa_nodes": list(instance.numa_nodes),
        "cpu_affinity": instance.cpu_affinity,
        "memory_policy": instance.memory_policy,
    }
