# SPDX-License-Identifier: GPL-3.0-or-later
"""The hardware that a multikernel host has to give: CPUs, memory, NUMA nodes, network, storage and GPU
devices.

Everything is read from /sys and /proc below a root that tests can redirect. What cannot be read is absent. A
baseline is proposed from it that leaves the host able to work: it keeps whole cores and a share of the
memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zernel.devicetree.model import PAGE_BYTES, Cpus, Device, Memory, NumaNode, Resources
from zernel.devicetree.units import exact_size, format_cpus, format_size, parse_size
from zernel.errors import ZernelError, fail
from zernel.topology import core_of, cpu_list, integer, pci_numa_node, text

_POOL_ALIGN = 2 << 20
"""Pools that are proposed begin and end on 2 MiB, the size of the page tables' large pages."""
_MIN_HOST_BYTES = 1 << 30
_IOMEM = re.compile(r"([0-9a-f]+)-([0-9a-f]+) : System RAM$")
_POOL_OPTION = re.compile(r"(?:^|\s)mkkernel_pool=([0-9a-fA-Fx]+[KMGT]?)@([0-9a-fA-Fx]+[KMGT]?)(?:\s|$)")
_NETWORK, _DISPLAY, _ACCELERATOR = "0x02", "0x03", "0x12"


@dataclass(frozen=True, slots=True)
class HostCpu:
    """A CPU: its socket and core, and the CPUs (itself included) that share its core."""

    number: int
    socket: int | None
    core: int | None
    siblings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HostNode:
    """A NUMA node: its CPUs and the range of addresses that its memory spans; size 0 where it has none."""

    number: int
    cpus: tuple[int, ...]
    memory_base: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A PCI device that may be given away. ``sriov_vfs`` and ``namespaces`` are None where it has none.

    ``in_use`` says that the host works with the device itself: a network interface that is up, the boot
    display, a disk of it that is mounted. ``used_namespaces`` are those of such disks.
    """

    name: str
    kind: str
    pci_id: str
    vendor: str | None
    driver: str | None
    numa_node: int | None
    sriov_vfs: int | None = None
    namespaces: tuple[int, ...] | None = None
    used_namespaces: tuple[int, ...] = ()
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a host has. ``ram`` are the ranges of memory as (first, first after); empty where only root may
    know.

    ``reserved_pool`` is the (base, size) that the kernel's ``mkkernel_pool=`` option set aside, if it did;
    ``multikernel`` says whether the running kernel has the multikernel file system.
    """

    cpus: tuple[HostCpu, ...]
    total_cpus: int
    memory_bytes: int
    ram: tuple[tuple[int, int], ...]
    nodes: tuple[HostNode, ...]
    devices: tuple[HostDevice, ...]
    reserved_pool: tuple[int, int] | None
    multikernel: bool


def discover(root: Path = Path("/")) -> Hardware:
    """Read the hardware from ``root``/sys and ``root``/proc; raises `ZernelError` without CPUs or memory."""
    online = cpu_list(root / "sys/devices/system/cpu/online")
    present = cpu_list(root / "sys/devices/system/cpu/present") or online
    memory = _memory_total(root / "proc/meminfo")
    if not online or memory is None:
        raise fail(
            "no-hardware",
            "The host's CPUs or memory cannot be read",
            explanation=f"{root / 'sys/devices/system/cpu/online'} and {root / 'proc/meminfo'} are needed",
            suggestion="Check that /sys and /proc are mounted",
        )
    cpus = tuple(_cpu(root, number) for number in online)
    ram = _ram(root / "proc/iomem")
    return Hardware(
        cpus,
        max(present) + 1,
        sum(end - start for start, end in ram) or memory,
        ram,
        _nodes(root),
        _devices(root),
        _reserved_pool(root / "proc/cmdline"),
        "multikernel" in (text(root / "proc/filesystems") or "").split(),
    )


# -- reading ------------------------------------------------------------------------------------------------


def _cpu(root: Path, number: int) -> HostCpu:
    directory = root / f"sys/devices/system/cpu/cpu{number}/topology"
    return HostCpu(
        number,
        integer(directory / "physical_package_id"),
        integer(directory / "core_id"),
        core_of(root, number) or (number,),
    )


def _memory_total(path: Path) -> int | None:
    """Return MemTotal of /proc/meminfo (kB) in bytes."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", text(path) or "", re.MULTILINE)
    return int(match.group(1)) << 10 if match else None


def _ram(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the ranges of System RAM of /proc/iomem; for others than root the kernel shows zeros."""
    found = []
    for line in (text(path) or "").splitlines():
        match = _IOMEM.match(line)
        if match:
            start, end = int(match.group(1), 16), int(match.group(2), 16) + 1
            if end > start + 1:
                found.append((start, end))
    return tuple(found)


def _nodes(root: Path) -> tuple[HostNode, ...]:
    spans = _node_spans(root / "proc/zoneinfo")
    found = []
    for directory in (root / "sys/devices/system/node").glob("node[0-9]*"):
        number = int(directory.name[4:])
        start, end = spans.get(number, (0, 0))
        found.append(HostNode(number, cpu_list(directory / "cpulist"), start, end - start))
    return tuple(sorted(found, key=lambda node: node.number))


def _node_spans(path: Path) -> dict[int, tuple[int, int]]:
    """Return where each node's memory begins and ends, from the zones of /proc/zoneinfo."""
    spans: dict[int, tuple[int, int]] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for zone in re.split(r"^(?=Node \d+, zone)", text(path) or "", flags=re.MULTILINE):
        node = re.match(r"Node (\d+), zone", zone)
        spanned = re.search(r"^\s+spanned\s+(\d+)", zone, re.MULTILINE)
        present = re.search(r"^\s+present\s+(\d+)", zone, re.MULTILINE)
        start = re.search(r"^\s+start_pfn:\s+(\d+)", zone, re.MULTILINE)
        if node and spanned and start and present and int(present.group(1)):
            base = int(start.group(1)) * page
            end = base + int(spanned.group(1)) * page
            lowest, highest = spans.get(int(node.group(1)), (base, end))
            spans[int(node.group(1))] = (min(lowest, base), max(highest, end))
    return spans


def _reserved_pool(path: Path) -> tuple[int, int] | None:
    match = _POOL_OPTION.search(text(path) or "")
    if match is None:
        return None
    try:
        size, base = (parse_size(found, "mkkernel_pool") for found in match.groups())
    except ZernelError:
        return None
    return base, size


def _devices(root: Path) -> tuple[HostDevice, ...]:
    """Return NICs, NVMe controllers, GPUs and accelerators among the PCI devices, without virtual
    functions."""
    found: list[HostDevice] = []
    controllers = _nvme_controllers(root)
    busy = _busy_disks(root)
    directory = root / "sys/bus/pci/devices"
    for device in sorted(directory.iterdir()) if directory.is_dir() else ():
        pci_class = text(device / "class") or ""
        if (device / "physfn").exists():
            continue
        namespaces: tuple[int, ...] | None = None
        used: tuple[int, ...] = ()
        if device.name in controllers:
            name, kind = controllers[device.name], "storage"
            namespaces = _namespaces(root / "sys/class/nvme" / name)
            used = tuple(number for number in namespaces if f"{name}n{number}" in busy)
            in_use = bool(used)
        elif pci_class.startswith(_NETWORK):
            # A virtio device has its interfaces one directory deeper.
            interfaces = sorted([*device.glob("net/*"), *device.glob("virtio*/net/*")])
            in_use = any(text(interface / "operstate") == "up" for interface in interfaces)
            name, kind = interfaces[0].name if interfaces else "", "ethernet"
        elif pci_class.startswith((_DISPLAY, _ACCELERATOR)):
            name, kind = "", "gpu" if pci_class.startswith(_DISPLAY) else "accelerator"
            in_use = integer(device / "boot_vga") == 1
        else:
            continue
        driver = device / "driver"
        found.append(
            HostDevice(
                re.sub(r"[^A-Za-z0-9]", "_", name) or f"{kind}{sum(item.kind == kind for item in found)}",
                kind,
                device.name,
                text(device / "vendor"),
                driver.resolve().name if driver.is_symlink() else None,
                pci_numa_node(root, device.name),
                integer(device / "sriov_totalvfs") or None,
                namespaces,
                used,
                in_use,
            )
        )
    return tuple(found)


def _nvme_controllers(root: Path) -> dict[str, str]:
    """Return the NVMe controllers' names by PCI address."""
    links = (
        (controller / "device", controller.name) for controller in (root / "sys/class/nvme").glob("nvme*")
    )
    return {link.resolve().name: name for link, name in links if link.exists()}


def _namespaces(controller: Path) -> tuple[int, ...]:
    """Return the namespace ids of an NVMe controller; with multipath its disks are called nvme0c0n1."""
    pattern = re.compile(r"nvme\d+(?:c\d+)?n(\d+)$")
    matches = (pattern.match(item.name) for item in controller.glob("nvme*"))
    return tuple(sorted({int(match.group(1)) for match in matches if match}))


def _busy_disks(root: Path) -> set[str]:
    """Return the NVMe disks that are mounted, swapped to, or held by another device (LVM, RAID, dm-crypt)."""
    used: set[str] = set()
    for table in ("proc/mounts", "proc/swaps"):
        lines = (text(root / table) or "").splitlines()
        used.update(line.split()[0].removeprefix("/dev/") for line in lines if line.startswith("/dev/"))
    held = (root / "sys/class/block").glob("nvme*/holders/*")
    used.update(holder.parent.parent.name for holder in held)
    return {match.group(1) for name in used if (match := re.match(r"(nvme\d+n\d+)", name))}


# -- proposing ----------------------------------------------------------------------------------------------


def propose(
    hardware: Hardware,
    *,
    host_cpus: tuple[int, ...] | None = None,
    pool_bytes: int | None = None,
    pool_base: int | None = None,
) -> Resources:
    """Return a baseline for the host.

    Without a wish the host keeps an eighth of its CPUs, in whole cores, and half of its memory, at least 1
    GiB; the pool is what ``mkkernel_pool=`` reserved, or else lies at the end of the largest range of memory.
    Raises `ZernelError` when nothing is left to give away, or nothing for the host.
    """
    online = tuple(cpu.number for cpu in hardware.cpus)
    reserved = host_cpus if host_cpus is not None else _host_cpus(hardware)
    unknown = sorted(set(reserved).difference(online))
    available = tuple(number for number in online if number not in reserved)
    if unknown or not available or not reserved:
        raise fail(
            "host-cpus",
            "The host's CPUs cannot be split",
            explanation=(
                f"CPUs online: {format_cpus(online)}",
                f"To be kept by the host: {format_cpus(reserved)}",
                *((f"Not online: {format_cpus(unknown)}",) if unknown else ()),
            ),
            suggestion="Keep at least one CPU for the host, and leave at least one to give away",
        )
    base, size = _pool(hardware, pool_bytes, pool_base)
    nodes = _numa_nodes(hardware)
    return Resources(
        Cpus(hardware.total_cpus, tuple(reserved), available),
        Memory(hardware.memory_bytes, hardware.memory_bytes - size, base, size),
        tuple(
            _baseline_device(device, {node.node_id for node in nodes})
            for device in hardware.devices
            if _can_be_given(device)
        ),
        nodes,
    )


def _host_cpus(hardware: Hardware) -> tuple[int, ...]:
    """Return an eighth of the CPUs, at least one, rounded up to whole cores, lowest first."""
    wanted = max(1, (len(hardware.cpus) + 7) // 8)
    online = {cpu.number for cpu in hardware.cpus}
    kept: set[int] = set()
    for cpu in hardware.cpus:
        if len(kept) >= wanted:
            break
        kept.update(online.intersection(cpu.siblings))
    # On a single core with two threads, whole cores would leave nothing: split the core.
    return tuple(sorted(kept)) if len(kept) < len(online) else (min(online),)


def _pool(hardware: Hardware, size: int | None, base: int | None) -> tuple[int, int]:
    """Return base and size of the memory pool."""
    if base is None and hardware.reserved_pool is not None:
        reserved_base, reserved_size = hardware.reserved_pool
        if size is None or size <= reserved_size:
            return reserved_base, size or reserved_size
    largest = max(hardware.ram, key=lambda block: block[1] - block[0], default=None)
    if base is None and largest is None:
        raise fail(
            "no-memory-map",
            "The host's memory map cannot be read",
            explanation="/proc/iomem shows addresses to root only",
            suggestion="Run as root, or say where the pool begins: --pool-base=ADDRESS",
        )
    start, end = largest or (0, hardware.memory_bytes)
    if base is not None:
        # A wish for a place: the range of memory around it bounds the size.
        start, end = base, _end_of_memory(hardware, base)
    most = hardware.memory_bytes - min(_MIN_HOST_BYTES, hardware.memory_bytes // 2)
    wanted = size if size is not None else min(hardware.memory_bytes // 2, (end - start) * 3 // 4, most)
    if size is None:
        wanted = wanted // _POOL_ALIGN * _POOL_ALIGN
    lowest = (end - wanted) // _POOL_ALIGN * _POOL_ALIGN
    room = "Largest range" if base is None else "Memory from there"
    if wanted < PAGE_BYTES or wanted > most or wanted > end - start or (base is None and lowest < start):
        raise fail(
            "pool-too-large" if size is not None else "no-memory",
            f"A memory pool of {format_size(wanted)} cannot be set aside",
            explanation=(
                f"Memory: {format_size(hardware.memory_bytes)}",
                f"The host keeps at least: {format_size(hardware.memory_bytes - most)}",
                f"{room}: {format_size(end - start)} at {start:#x}",
            ),
            suggestion=_smaller_pool(min(most, end - start) // _POOL_ALIGN * _POOL_ALIGN),
        )
    return (base if base is not None else lowest), wanted


def _end_of_memory(hardware: Hardware, base: int) -> int:
    """Return where the range of memory around ``base`` ends; raises `ZernelError` if no pool can begin there.

    Without the memory map, all that is known is that memory begins at 0 and how much there is.
    """
    ranges = hardware.ram or ((0, hardware.memory_bytes),)
    # What a pool can use of each: whole pages.
    usable = [
        (-(-first // PAGE_BYTES) * PAGE_BYTES, last // PAGE_BYTES * PAGE_BYTES) for first, last in ranges
    ]
    usable = [(first, last) for first, last in usable if first < last]
    end = next((last for first, last in usable if first <= base < last), None)
    if end is not None and base % PAGE_BYTES == 0:
        return end
    largest = max(usable, key=lambda block: block[1] - block[0], default=(0, 0))
    nearest = base // PAGE_BYTES * PAGE_BYTES
    possible = any(first <= nearest < last for first, last in usable)
    raise fail(
        "pool-base",
        f"A memory pool cannot begin at {base:#x}",
        explanation=(
            "It begins on a page of 4KB (0x1000), in the host's memory",
            *(f"Memory: {first:#x} - {last:#x} ({format_size(last - first)})" for first, last in usable),
        ),
        suggestion=f"Use --pool-base={nearest if possible else largest[0]:#x}, or leave it out",
    )


def _smaller_pool(most: int) -> str:
    if most >= PAGE_BYTES:
        return f"Use at most --pool-size={exact_size(most)}"
    return "Let the pool begin at a lower address, or leave --pool-base out"


def _numa_nodes(hardware: Hardware) -> tuple[NumaNode, ...]:
    return tuple(
        NumaNode(node.number, node.memory_base, node.memory_bytes, node.cpus)
        for node in hardware.nodes
        if node.cpus or node.memory_bytes
    )


def _can_be_given(device: HostDevice) -> bool:
    """Say whether anything of the device is left to give: what the host works with stays the host's."""
    if device.namespaces is not None:
        return len(device.namespaces) > len(device.used_namespaces)
    return not device.in_use or (device.sriov_vfs or 0) > 1


def _baseline_device(device: HostDevice, nodes: set[int]) -> Device:
    """Return the device for a baseline with these NUMA nodes. The host keeps the first virtual function, and
    the disks it works with."""
    vfs, namespaces = device.sriov_vfs or 0, device.namespaces or ()
    return Device(
        device.name,
        device.kind,
        compatible=device.driver,
        pci_id=device.pci_id,
        sriov_vfs=device.sriov_vfs,
        host_reserved_vf=(0,) if vfs else (),
        available_vfs=tuple(range(1, vfs)),
        namespaces=max(namespaces) if namespaces else None,
        host_reserved_ns=device.used_namespaces,
        available_ns=tuple(number for number in namespaces if number not in device.used_namespaces),
        numa_node=device.numa_node if device.numa_node in nodes else None,
    )


# -- showing ------------------------------------------------------------------------------------------------


def as_data(hardware: Hardware) -> dict[str, Any]:
    """Return the hardware for JSON and YAML."""
    data = asdict(hardware)
    data["ram"] = [{"base": start, "bytes": end - start} for start, end in hardware.ram]
    pool = hardware.reserved_pool
    data["reserved_pool"] = {"base": pool[0], "bytes": pool[1]} if pool else None
    return data


def describe(hardware: Hardware) -> list[str]:
    """Return the hardware as text."""
    sockets = {cpu.socket for cpu in hardware.cpus}
    cores = {cpu.siblings for cpu in hardware.cpus}
    online = format_cpus(cpu.number for cpu in hardware.cpus)
    lines = [
        "This host:",
        f"  CPUs: {online} online (cores: {len(cores)}, sockets: {len(sockets)})",
        f"  Memory: {format_size(hardware.memory_bytes)}",
    ]
    for node in hardware.nodes:
        lines.append(
            f"  NUMA node {node.number}: CPUs {format_cpus(node.cpus)}, {format_size(node.memory_bytes)}"
        )
    for device in hardware.devices:
        use = ", in use by the host" if device.in_use else ""
        lines.append(f"  {device.name}: {device.kind} {device.pci_id}, driver {device.driver or 'none'}{use}")
    return lines
