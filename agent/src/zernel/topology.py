# SPDX-License-Identifier: GPL-3.0-or-later
"""How this host's CPUs are built: sockets, cores and SMT siblings, and where its PCI devices are attached.

Everything is read from /sys below a root that tests can redirect. What cannot be read is absent.
"""

from __future__ import annotations

from pathlib import Path

from zernel.devicetree.model import MAX_CPU, Resources
from zernel.record import Record

_CPUS = "sys/devices/system/cpu"
_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"  # PCI base class of GPUs: VGA 0x0300, 3D 0x0302


class Topology(Record):
    """Sockets and cores by CPU number.

    ``siblings`` are the CPUs of a CPU's core, itself included, ascending; ``sockets`` the kernel's
    physical_package_id. A CPU that is in neither counts as a core of its own. ``unknown`` says in words why
    some are not known, ``foreign`` that this is because the baseline describes another machine, or has other
    numbers for CPUs than Linux.
    """

    siblings: dict[int, tuple[int, ...]]
    sockets: dict[int, int]
    unknown: str | None = None
    foreign: bool = False


UNKNOWN = Topology({}, {}, "The CPUs' sockets and cores were not read")


def read(resources: Resources, root: Path = Path("/")) -> Topology:
    """Return the sockets and cores of a baseline's CPUs, from ``root``/sys/devices/system/cpu.

    Where the host has another number of CPUs than the baseline, the baseline is another machine's (that of a
    simulation, for example), and nothing is taken from the host.
    """
    if resources.physical_ids:
        return Topology({}, {}, "CPUs are known by their physical ids only", foreign=True)
    present = cpu_list(root / _CPUS / "present")
    possible = cpu_list(root / _CPUS / "possible")
    total = resources.cpus.total
    if not present:
        return Topology({}, {}, f"{root / _CPUS / 'present'} cannot be read")
    if total not in (len(present), max(present) + 1, max(possible, default=-1) + 1):
        why = f"the baseline has {total} CPUs and this host {len(present)}: it is another machine's"
        return Topology({}, {}, why, foreign=True)
    siblings: dict[int, tuple[int, ...]] = {}
    sockets: dict[int, int] = {}
    wanted = sorted({*resources.cpus.available, *resources.cpus.host_reserved})
    for cpu in wanted:
        if cpu in siblings:
            continue  # each core is read once, for all of its CPUs
        core = core_of(root, cpu)
        if cpu not in core:
            continue
        socket = integer(root / _CPUS / f"cpu{cpu}/topology/physical_package_id")
        for sibling in core:
            siblings[sibling] = core
            if socket is not None and socket >= 0:
                sockets[sibling] = socket
    if text(root / _CPUS / "smt/control") == "notsupported":
        # Of a CPU that is offline the kernel shows no topology, not even in its siblings' lists, which hold
        # CPUs that are online only. A processor without SMT is all that is said of it.
        for cpu in set(wanted).intersection(present) - siblings.keys():
            siblings[cpu] = (cpu,)
    missing = [cpu for cpu in wanted if cpu not in siblings]
    if not missing:
        return Topology(siblings, sockets)
    from zernel.devicetree.units import format_cpus

    why = f"the kernel does not tell it of CPUs {format_cpus(missing)}: it forgets that of CPUs taken offline"
    return Topology(siblings, sockets, why)


def locate_devices(resources: Resources, root: Path = Path("/")) -> Resources:
    """Return the inventory with the NUMA nodes of devices filled in from PCI sysfs.

    What the baseline itself says stands. A node that is not in the baseline's topology says nothing about it.
    """
    known = {node.node_id for node in resources.numa_nodes}
    devices = []
    for device in resources.devices:
        if device.numa_node is None and device.pci_id is not None:
            node = pci_numa_node(root, device.pci_id)
            device = device.but(numa_node=node if node in known else None)
        devices.append(device)
    return resources.but(devices=tuple(devices))


def nvidia_gpus(root: Path = Path("/")) -> list[str]:
    """Return the PCI addresses of NVIDIA GPUs, whatever drives them."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [
        device.name
        for device in devices
        if text(device / "vendor") == _NVIDIA and (text(device / "class") or "").startswith(_DISPLAY_CLASS)
    ]


def pci_numa_node(root: Path, address: str) -> int | None:
    """Return the NUMA node that a PCI device is attached to; None where the kernel knows none (-1)."""
    if "/" in address:
        return None
    node = integer(root / "sys/bus/pci/devices" / address.lower() / "numa_node")
    return node if node is not None and node >= 0 else None


def core_of(root: Path, cpu: int) -> tuple[int, ...]:
    """Return the online CPUs of a CPU's core, ascending; empty where the kernel does not say.

    thread_siblings_list is the old name of core_cpus_list (Linux 5.3) and still there.
    """
    topology = root / _CPUS / f"cpu{cpu}/topology"
    return cpu_list(topology / "core_cpus_list") or cpu_list(topology / "thread_siblings_list")


def text(path: Path) -> str | None:
    """Return a file's text without the white space around it, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def integer(path: Path) -> int | None:
    """Return the number that a file holds, or None."""
    try:
        return int(text(path) or "", 0)
    except ValueError:
        return None


def cpu_list(path: Path) -> tuple[int, ...]:
    """Return the CPUs of a sysfs list such as ``0-3,8``; empty when it cannot be read."""
    cpus: list[int] = []
    for part in (text(path) or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal() and len(part) < 32:
            cpus += range(int(first), min(int(last or first), MAX_CPU) + 1)
    return tuple(cpus)
