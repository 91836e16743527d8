# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for a baseline: is the hardware inventory complete and consistent?"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from zernel.devicetree.model import MAX_CPU, MAX_NUMA_NODES, PAGE_BYTES, Device, DeviceUse, Resources
from zernel.devicetree.reading import Origins
from zernel.devicetree.units import device_use, format_cpus, format_size
from zernel.errors import Problem

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterable

_ADDRESS_SPACE = 1 << 64
MAX_PARTS = 65535
"""What the SR-IOV capability counts to; namespaces are bounded alike."""
_PCI_ID = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.IGNORECASE | re.ASCII)


def check_inventory(resources: Resources, origins: Origins) -> list[Problem]:
    """Return everything that is wrong with the inventory."""
    return [
        *_check_cpus(resources, origins),
        *_check_memory(resources, origins),
        *_check_numa(resources, origins),
        *_check_devices(resources, origins),
    ]


def _repeated(numbers: Iterable[int]) -> list[int]:
    return [number for number, count in Counter(numbers).items() if count > 1]


def _check_cpus(resources: Resources, origins: Origins) -> list[Problem]:
    cpus = resources.cpus
    if not 1 <= cpus.total <= MAX_CPU + 1:
        return [
            Problem(
                "cpu-total",
                f"total = {cpus.total} is no number of CPUs",
                subject="cpus",
                explanation=(f"Linux on x86-64 runs on 1 to {MAX_CPU + 1} CPUs",),
                suggestion="Give the number of CPUs of the host: nproc --all",
                locations=origins.at("cpus", "total"),
            )
        ]
    problems = []
    for name, listed in (("host-reserved", cpus.host_reserved), ("available", cpus.available)):
        missing = sorted({cpu for cpu in listed if cpu >= cpus.total})
        if missing:
            word, verb = ("CPU", "does") if len(missing) == 1 else ("CPUs", "do")
            problems.append(
                Problem(
                    "cpu-not-found",
                    f"{word} {format_cpus(missing)} {verb} not exist (hardware has 0-{cpus.total - 1})",
                    subject=f"cpus {name}",
                    suggestion=f"Remove {format_cpus(missing)} from '{name}', or correct 'total'",
                    locations=origins.at("cpus", name),
                )
            )
        twice = _repeated(listed)
        if twice:
            problems.append(
                Problem(
                    "cpu-duplicate",
                    f"CPUs listed twice: {format_cpus(twice)}",
                    subject=f"cpus {name}",
                    suggestion="List each CPU once",
                    locations=origins.at("cpus", name),
                )
            )
    both = sorted(set(cpus.host_reserved) & set(cpus.available))
    if both:
        problems.append(
            Problem(
                "cpu-reserved-and-available",
                f"CPUs are both host-reserved and available: {format_cpus(both)}",
                subject="cpus",
                explanation=(
                    f"host-reserved: {format_cpus(cpus.host_reserved)}",
                    f"available: {format_cpus(cpus.available)}",
                ),
                suggestion=f"Remove {format_cpus(both)} from 'available'",
                alternative=f"Remove {format_cpus(both)} from 'host-reserved'",
                locations=origins.at("cpus", "host-reserved") + origins.at("cpus", "available"),
            )
        )
    for name, listed, why in (
        ("host-reserved", cpus.host_reserved, "The host kernel itself needs at least one CPU"),
        ("available", cpus.available, "Without a CPU to give away no instance can be created"),
    ):
        if not listed:
            problems.append(
                Problem(
                    "cpu-none",
                    f"No CPU is {name}",
                    subject="cpus",
                    explanation=(why,),
                    suggestion=f"List at least one CPU in '{name}'",
                    locations=origins.at("cpus", name),
                )
            )
    unlisted = set(range(cpus.total)).difference(cpus.host_reserved, cpus.available)
    if unlisted:
        problems.append(
            Problem(
                "cpu-unlisted",
                f"CPUs are neither host-reserved nor available: {format_cpus(unlisted)}",
                subject="cpus",
                suggestion="Add them to one of the lists, unless they are offline",
                locations=origins.at("cpus", "available"),
                severity="WARNING",
            )
        )
    return problems


def _check_memory(resources: Resources, origins: Origins) -> list[Problem]:
    memory = resources.memory
    problems = []

    def problem(code: str, category: str, name: str, explanation: tuple[str, ...], suggestion: str) -> None:
        problems.append(
            Problem(
                code,
                category,
                subject="memory",
                explanation=explanation,
                suggestion=suggestion,
                locations=origins.at("memory", name),
            )
        )

    pool = f"{memory.pool_base:#x} - {memory.pool_end:#x} ({format_size(memory.pool_bytes)})"
    for name, value in (("memory-pool-base", memory.pool_base), ("memory-pool-bytes", memory.pool_bytes)):
        if value % PAGE_BYTES:
            lower = value // PAGE_BYTES * PAGE_BYTES
            problem(
                "pool-not-aligned",
                f"'{name}' is not page-aligned",
                name,
                (f"{name}: {value:#x}", "Page size: 4KB (0x1000)"),
                f"Use {lower if lower or name.endswith('base') else PAGE_BYTES:#x}",
            )
    if memory.total_bytes == 0 or memory.pool_bytes == 0:
        name = "total-bytes" if memory.total_bytes == 0 else "memory-pool-bytes"
        problem("memory-zero", f"'{name}' is zero", name, (), "Give the size in bytes")
        return problems
    if (
        memory.pool_end > _ADDRESS_SPACE
        or max(memory.total_bytes, memory.host_reserved_bytes) >= _ADDRESS_SPACE
    ):
        problem(
            "pool-wraps",
            "Memory pool ends beyond the 64-bit address space",
            "memory-pool-bytes",
            (f"Memory pool: {pool}",),
            "Correct 'memory-pool-base' or 'memory-pool-bytes'",
        )
        return problems
    if memory.host_reserved_bytes + memory.pool_bytes > memory.total_bytes:
        rest = max(0, memory.total_bytes - memory.host_reserved_bytes)
        problem(
            "memory-exceeds-total",
            "Host reserved memory and memory pool exceed the total",
            "memory-pool-bytes",
            (
                f"Total: {format_size(memory.total_bytes)}",
                f"Host reserved: {format_size(memory.host_reserved_bytes)}",
                f"Memory pool: {format_size(memory.pool_bytes)}",
            ),
            f"Reduce the memory pool to {format_size(rest)} ({rest:#x})",
        )
    # Physical memory has holes, so a pool may end above the amount of memory; then the topology must show
    # where memory lies.
    ends = [node.memory_base + node.memory_size for node in resources.numa_nodes]
    if memory.pool_end > max([memory.total_bytes, *ends]):
        problem(
            "pool-outside-memory",
            "Memory pool ends beyond the host's memory",
            "memory-pool-base",
            (f"Memory pool: {pool}", f"Memory ends at: {max([memory.total_bytes, *ends]):#x}"),
            "Correct 'memory-pool-base', or describe in 'topology' where the memory of each NUMA node lies",
        )
    if memory.host_reserved_bytes == 0:
        problem(
            "memory-none-reserved",
            "No memory is reserved for the host",
            "host-reserved-bytes",
            ("The host kernel itself needs memory",),
            "Set 'host-reserved-bytes' to what the host needs",
        )
    return problems


def _check_numa(resources: Resources, origins: Origins) -> list[Problem]:
    problems = []
    ids: dict[int, int] = {}
    owner: dict[int, int] = {}
    for index, node in enumerate(resources.numa_nodes):
        subject = f"node@{node.node_id}"
        if node.node_id in ids:
            problems.append(
                Problem(
                    "numa-duplicate",
                    f"Duplicate NUMA node id: {node.node_id}",
                    subject=subject,
                    suggestion="Give each node an id of its own",
                    locations=origins.at("numa-nodes", ids[node.node_id], "node-id")
                    + origins.at("numa-nodes", index, "node-id"),
                )
            )
        ids.setdefault(node.node_id, index)
        if node.node_id >= MAX_NUMA_NODES:
            problems.append(
                Problem(
                    "numa-id",
                    f"NUMA node {node.node_id} cannot exist: Linux numbers nodes from 0 to"
                    f" {MAX_NUMA_NODES - 1}",
                    subject=subject,
                    suggestion="Use the number of /sys/devices/system/node/nodeN",
                    locations=origins.at("numa-nodes", index, "node-id"),
                )
            )
        missing = [cpu for cpu in node.cpus if cpu >= resources.cpus.total]
        shared = sorted({cpu for cpu in node.cpus if cpu in owner} | set(_repeated(node.cpus)))
        for code, found, what in (
            ("cpu-not-found", missing, f"do not exist (hardware has 0-{resources.cpus.total - 1})"),
            ("numa-cpu-shared", shared, "belong to a NUMA node already"),
        ):
            if found:
                problems.append(
                    Problem(
                        code,
                        f"CPUs {format_cpus(found)} {what}",
                        subject=subject,
                        suggestion="List each CPU of the host in the one node that it belongs to",
                        locations=origins.at("numa-nodes", index, "cpus"),
                    )
                )
        owner.update(dict.fromkeys(node.cpus, index))
        if node.memory_base + node.memory_size > _ADDRESS_SPACE:
            problems.append(
                Problem(
                    "numa-wraps",
                    "NUMA node's memory ends beyond the 64-bit address space",
                    subject=subject,
                    suggestion="Correct 'memory-base' or 'memory-size'",
                    locations=origins.at("numa-nodes", index, "memory-size"),
                )
            )
    by_base = sorted(enumerate(resources.numa_nodes), key=lambda item: item[1].memory_base)
    for (first, lower), (second, upper) in pairwise(by_base):
        if upper.memory_base < lower.memory_base + lower.memory_size and upper.memory_size:
            problems.append(
                Problem(
                    "numa-overlap",
                    f"Memory of NUMA nodes {lower.node_id} and {upper.node_id} overlaps",
                    subject="topology",
                    suggestion=f"Start node {upper.node_id} at {lower.memory_base + lower.memory_size:#x}",
                    locations=origins.at("numa-nodes", first, "memory-size")
                    + origins.at("numa-nodes", second, "memory-base"),
                )
            )
    return problems or _check_numa_covers(resources, origins)


def _check_numa_covers(resources: Resources, origins: Origins) -> list[Problem]:
    """Warn where a topology leaves out CPUs or a part of the pool: policies cannot place these."""
    if not resources.numa_nodes:
        return []
    problems = []
    listed = {cpu for node in resources.numa_nodes for cpu in node.cpus}
    nowhere = set(resources.cpus.available).difference(listed)
    if nowhere:
        problems.append(
            Problem(
                "numa-cpu-unlisted",
                f"Available CPUs belong to no NUMA node: {format_cpus(nowhere)}",
                subject="topology",
                suggestion="Add them to the 'cpus' of their nodes (lscpu)",
                locations=origins.at("cpus", "available"),
                severity="WARNING",
            )
        )
    memory = resources.memory
    at, gaps = memory.pool_base, []
    for node in sorted(resources.numa_nodes, key=lambda node: node.memory_base):
        if node.memory_base > at and at < memory.pool_end:
            gaps.append((at, min(node.memory_base, memory.pool_end)))
        at = max(at, node.memory_base + node.memory_size)
    if at < memory.pool_end:
        gaps.append((at, memory.pool_end))
    if gaps:
        shown = ", ".join(f"{start:#x} - {end:#x} ({format_size(end - start)})" for start, end in gaps[:8])
        problems.append(
            Problem(
                "numa-pool-uncovered",
                "A part of the memory pool belongs to no NUMA node",
                subject="topology",
                explanation=(f"Memory without a node: {shown}",),
                suggestion="Correct 'memory-base' and 'memory-size' of the nodes, or the pool",
                locations=origins.at("memory", "memory-pool-bytes"),
                severity="WARNING",
            )
        )
    return problems


def _check_devices(resources: Resources, origins: Origins) -> list[Problem]:
    problems = []
    names: dict[str, int] = {}
    addresses: dict[str, int] = {}
    nodes = {node.node_id for node in resources.numa_nodes}
    for index, device in enumerate(resources.devices):
        if device.name in names:
            problems.append(
                Problem(
                    "device-duplicate",
                    f'Duplicate device name: "{device.name}"',
                    subject=device.name,
                    suggestion="Give each device a label of its own",
                    locations=origins.at("devices", names[device.name]) + origins.at("devices", index),
                )
            )
        names.setdefault(device.name, index)
        problems += _check_device_name(device, index, origins)
        if device.numa_node is not None and device.numa_node not in nodes:
            problems.append(
                Problem(
                    "numa-not-found",
                    f"NUMA node {device.numa_node} does not exist",
                    subject=device.name,
                    current_state=f"NUMA nodes: {format_cpus(nodes)}",
                    suggestion="Use one of the nodes of 'topology', or leave 'numa-node' out",
                    locations=origins.at("devices", index, "numa-node"),
                )
            )
        if device.pci_id is not None:
            problems += _check_pci_id(device, index, addresses, resources, origins)
        problems += _check_parts(
            device,
            index,
            origins,
            "sriov-vfs",
            "VF",
            0,
            device.sriov_vfs,
            device.host_reserved_vf,
            device.available_vfs,
        )
        problems += _check_parts(
            device,
            index,
            origins,
            "namespaces",
            "Namespace",
            1,
            device.namespaces,
            device.host_reserved_ns,
            device.available_ns,
        )
    return problems


def _check_device_name(device: Device, index: int, origins: Origins) -> list[Problem]:
    """Names come from anywhere in a blob, and become labels, node names and words of a command line."""
    name, kind = device.name, device.kind
    as_part = device_use(name) if "_vf" in name or "_ns" in name else None
    if as_part is not None and as_part != DeviceUse(name):
        why = f"It reads as {as_part}, a part of another device"
    elif not _plain(name, "._-") or len(name) > 63:
        why = "A name has 1 to 63 letters, digits, '.', '_' and '-', and begins with a letter or a digit"
    elif not _plain(kind, ",._+-") or len(kind) > 31:
        why = f"Its kind, {kind[:60]!r}, is no name of a node: 1 to 31 letters, digits and , . _ + -"
    else:
        return []
    return [
        Problem(
            "device-name",
            f"Device '{name[:60]}' cannot be called so",
            subject="devices",
            explanation=(why,),
            suggestion="Call it as it is called on the host, such as eth0: ethernet@0 { ... }",
            locations=origins.at("devices", index),
        )
    ]


def _plain(word: str, others: str) -> bool:
    """Say whether a word has ASCII letters and digits only, and behind the first one also ``others``."""
    return word.isascii() and word[:1].isalnum() and all(c.isalnum() or c in others for c in word)


def _check_pci_id(
    device: Device, index: int, addresses: dict[str, int], resources: Resources, origins: Origins
) -> list[Problem]:
    address = (device.pci_id or "").lower()
    if not _PCI_ID.fullmatch(address):
        return [
            Problem(
                "pci-id-form",
                f"pci-id '{(device.pci_id or '')[:60]}' is no PCI address",
                subject=device.name,
                suggestion='Write it as domain:bus:device.function, such as "0000:01:00.0" (lspci -D)',
                locations=origins.at("devices", index, "pci-id"),
            )
        ]
    first = addresses.setdefault(address, index)
    if first == index:
        return []
    return [
        Problem(
            "pci-id-duplicate",
            f"{resources.devices[first].name} and {device.name} have the same pci-id {address}",
            subject=device.name,
            suggestion="Correct one of the two addresses (lspci -D)",
            locations=origins.at("devices", first, "pci-id") + origins.at("devices", index, "pci-id"),
        )
    ]


def _check_parts(
    device: Device,
    index: int,
    origins: Origins,
    count_name: str,
    word: str,
    lowest: int,
    count: int | None,
    reserved: tuple[int, ...],
    available: tuple[int, ...],
) -> list[Problem]:
    """Check virtual functions (numbered from 0) or namespaces (numbered from 1) of a device."""
    suffix = "vf" if word == "VF" else "ns"
    reserved_name, available_name = (
        f"host-reserved-{suffix}",
        "available-vfs" if word == "VF" else "available-ns",
    )
    problems = []

    def problem(code: str, category: str, name: str, suggestion: str) -> None:
        problems.append(
            Problem(
                code,
                category,
                subject=device.name,
                suggestion=suggestion,
                locations=origins.at("devices", index, name),
            )
        )

    if count is None:
        if reserved or available:
            name = available_name if available else reserved_name
            problem("device-parts", f"'{name}' needs '{count_name}'", name, f"Add '{count_name} = <N>;'")
        return problems
    if count > MAX_PARTS:
        text = f"{count_name} = {count} is no number of {word}s"
        problem("device-part-count", text, count_name, f"Give how many the device has, {MAX_PARTS} at most")
        return problems
    highest = count - 1 + lowest
    for name, listed in ((reserved_name, reserved), (available_name, available)):
        outside = sorted({number for number in listed if not lowest <= number <= highest})
        if outside:
            problem(
                "device-part-range",
                f"{word} {format_cpus(outside)} exceeds {count_name} = {count} ({lowest}-{highest})",
                name,
                f"Use {lowest}-{highest}",
            )
        twice = _repeated(listed)
        if twice:
            problem(
                "device-part-duplicate",
                f"{word} {format_cpus(twice)} is listed twice",
                name,
                "List each once",
            )
    both = sorted(set(reserved) & set(available))
    if both:
        problem(
            "device-part-reserved",
            f"{word} {format_cpus(both)} is both host-reserved and available",
            available_name,
            f"Remove {format_cpus(both)} from '{available_name}'",
        )
    return problems
