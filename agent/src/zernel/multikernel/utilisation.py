# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a host is used and what is free: by instance, by NUMA node, and in the pool as a whole."""

from __future__ import annotations

from typing import Any

from zernel.devicetree.free import bytes_on, free_cpus, free_memory, free_parts
from zernel.devicetree.model import NumaNode, System
from zernel.devicetree.units import format_cpus, format_size
from zernel.multikernel.report import cpu_share, instance_data, percent, wish_lines

_TITLE = "Multikernel Resource Utilization Report"


def data(system: System, statuses: dict[str, str]) -> dict[str, Any]:
    """Return the figures for JSON and YAML: CPUs as lists, sizes in bytes.

    ``instances`` has each instance and the nodes of its CPUs, ``numa_nodes`` what of the pool lies on each
    node (memory that no node covers is in none), ``devices`` the parts that can be given away.
    """
    resources, instances = system.resources, system.instances
    pool = resources.memory
    gaps = free_memory(pool, instances)
    blocks = [{"base": start, "bytes": end - start} for start, end in gaps]
    free = sum(end - start for start, end in gaps)
    unused_cpus = free_cpus(resources, instances)
    used: dict[str, dict[str, str]] = {}
    for one in instances:
        for use in one.devices:
            used.setdefault(use.device, {})[str(use)] = one.name
    taken = {use for one in instances for use in one.devices}
    nodes = {cpu: node.node_id for node in resources.numa_nodes for cpu in node.cpus}
    homes = {one.name: {nodes[cpu] for cpu in one.cpus if cpu in nodes} for one in instances}
    return {
        "cpus": _cpus(resources.cpus.available, unused_cpus),
        "memory": {
            "total_bytes": pool.pool_bytes,
            "used_bytes": pool.pool_bytes - free,
            "free_bytes": free,
            "largest_free_block": max(blocks, key=lambda block: block["bytes"], default=None),
            "free_blocks": blocks,
        },
        "devices": {
            device.name: {
                "used": used.get(device.name, {}),
                "free": [str(part) for part in free_parts(device, taken)],
            }
            for device in resources.devices
        },
        "numa_nodes": [_node(system, node, unused_cpus, gaps, homes) for node in resources.numa_nodes],
        "instances": {
            one.name: instance_data(one, statuses.get(one.name))
            | {
                "cpu_nodes": [
                    node.node_id for node in resources.numa_nodes if node.node_id in homes[one.name]
                ]
            }
            for one in instances
        },
    }


def _cpus(pool: tuple[int, ...], free: list[int]) -> dict[str, Any]:
    used = sorted(set(pool).difference(free))
    return {"total": len(pool), "used": used, "free": free}


def _node(
    system: System,
    node: NumaNode,
    unused_cpus: list[int],
    gaps: list[tuple[int, int]],
    homes: dict[str, set[int]],
) -> dict[str, Any]:
    resources, memory = system.resources, system.resources.memory
    own = set(node.cpus)
    cpus = tuple(cpu for cpu in resources.cpus.available if cpu in own)
    total = bytes_on(node, memory.pool_base, memory.pool_end)
    unused = sum(bytes_on(node, start, end) for start, end in gaps)
    return {
        "node_id": node.node_id,
        "cpus": _cpus(cpus, [cpu for cpu in unused_cpus if cpu in own]),
        "memory": {"total_bytes": total, "used_bytes": total - unused, "free_bytes": unused},
        "instances": [
            one.name
            for one in system.instances
            if node.node_id in homes[one.name] or bytes_on(node, one.memory_base, one.memory_end) > 0
        ],
    }


def lines(system: System, statuses: dict[str, str]) -> list[str]:
    """Return the figures as text."""
    resources, instances = system.resources, system.instances
    found = data(system, statuses)
    cpus, memory = found["cpus"], found["memory"]
    block = memory["largest_free_block"]
    told = [
        _TITLE,
        "=" * len(_TITLE),
        f"CPUs: {cpus['total']} in the memory pool",
        f"  Used: {cpu_share(cpus['used'], cpus['total'])}",
        f"  Free: {cpu_share(cpus['free'], cpus['total'])}",
        f"Memory: {format_size(memory['total_bytes'])} in the memory pool",
        f"  Used: {_share(memory['used_bytes'], memory['total_bytes'])}",
        f"  Free: {_share(memory['free_bytes'], memory['total_bytes'])}"
        + (f", largest free block {format_size(block['bytes'])} at {block['base']:#x}" if block else ""),
        "Devices:" if resources.devices else "Devices: none",
    ]
    for name, device in found["devices"].items():
        used = ", ".join(f"{use} ({owner})" for use, owner in device["used"].items())
        told.append(f"  {name}: used {used or 'none'}; free {', '.join(device['free']) or 'none'}")
    for node in found["numa_nodes"]:
        here, size = node["cpus"], node["memory"]
        cpus_used = cpu_share(here["used"], here["total"])
        memory_used = _share(size["used_bytes"], size["total_bytes"])
        told += [
            f"NUMA node {node['node_id']}: {', '.join(node['instances']) or 'no instance'}",
            f"  CPUs: used {cpus_used}, free {format_cpus(here['free'])}",
            f"  Memory: used {memory_used}, free {format_size(size['free_bytes'])}",
        ]
    for one in instances:
        told += [
            f"Instance {one.name} ({statuses[one.name]})",
            f"  CPUs: {cpu_share(one.cpus, cpus['total'])}",
            f"  Memory: {_share(one.memory_bytes, memory['total_bytes'])} at {one.memory_base:#x}",
            *([f"  Devices: {', '.join(map(str, one.devices))}"] if one.devices else []),
            *wish_lines(one),
        ]
    return told if instances else [*told, "No instances"]


def _share(part: int, whole: int) -> str:
    return f"{format_size(part)} ({percent(part, whole)})"
