# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels' own flat forms of /resources, as input.

=======  ========================================================================================
``v1``   ``cpus`` (32-bit, later 64-bit numbers), ``memory-base``, ``memory-bytes``, ``devices/NAME``
``v2``   ``cpus`` (64-bit), ``memory@N`` with ``size`` (a request) or ``reg`` (base and size of what
         there is), ``numa-node-id``, ``/aliases``; PCI devices of a live tree stand under the host
         bridges at the root, in the PCI binding
=======  ========================================================================================

They describe the pool and nothing else. What the host keeps is what is below and between it; a warning
says so. What the model has no place for is an error: memory without an address, or in several pieces.
"""

from __future__ import annotations

from itertools import pairwise

from zernel.devicetree.model import MAX_CPU, Cpus, Device, Memory, Resources
from zernel.devicetree.reading import Reader
from zernel.devicetree.tree import Cells, Node, Property, Tree, WrongType
from zernel.devicetree.units import format_cpus, format_size

_BRIDGE = "multikernel,pci-host-bridge"
_V1 = ("cpus", "memory-base", "memory-bytes")


def dialect(resources: Node) -> str | None:
    """Return ``v1`` or ``v2`` where /resources is flat, None where it is the document's form."""
    if resources.child("cpus") or resources.child("memory"):
        return None
    if memory_nodes(resources):
        return "v2"
    return "v1" if any(resources.get(name) for name in _V1) else None


def memory_nodes(node: Node) -> tuple[str, ...]:
    """Return the names of the nodes ``memory@N``."""
    return tuple(child.name for child in node.children if child.base_name == "memory" != child.name)


def aliases(tree: Tree) -> dict[int, str]:
    """Return the names that /aliases gives to nodes, by the nodes' id()."""
    container = tree.root.child("aliases")
    names: dict[int, str] = {}
    for found in container.properties if container else ():
        try:
            target = tree.find(found.text())
        except WrongType:
            continue
        if target is not None:
            names.setdefault(id(target), found.name)
    return names


def is_bridge(node: Node) -> bool:
    """Say whether a node of the root is a host bridge of a live tree."""
    found = node.get("compatible")
    try:
        return found is not None and _BRIDGE in found.texts()
    except WrongType:
        return False


def pci_devices(tree: Tree) -> list[tuple[Node, str]]:
    """Return the PCI devices of a live tree, each with its address; raises `WrongType` for a malformed one.

    Bus, device and function are in the first cell of ``reg``; what has no vendor is a bridge on the way down.
    """
    found = []
    for bridge in tree.root.children:
        if not is_bridge(bridge):
            continue
        number = bridge.get("linux,pci-domain")
        domain = number.number() if number else 0
        stack = list(bridge.children)
        while stack:
            node = stack.pop()
            reg = node.get("reg")
            if reg is None or node.get("vendor-id") is None:
                stack += node.children
                continue
            cells = reg.numbers()
            if not cells:
                raise WrongType("must hold the address of a PCI device")
            bus, slot, function = cells[0] >> 16 & 0xFF, cells[0] >> 11 & 0x1F, cells[0] >> 8 & 7
            found.append((node, f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
    return sorted(found, key=lambda item: item[1])


def pci_name(address: str) -> str:
    """Return what the kernel calls the device with this PCI address, where it has no alias."""
    return "pci_" + address.lower().replace(":", "_").replace(".", "_")


def live_devices(reader: Reader, names: dict[int, str]) -> tuple[Device, ...]:
    """Return the PCI devices of a live tree, with the aliases in ``names``."""
    try:
        found = pci_devices(reader.tree)
    except WrongType as error:
        reader.problem(
            "bad-device",
            f"A device below a host bridge {error}",
            suggestion="Check that this tree is the kernel's own",
        )
        return ()
    return tuple(
        Device(names.get(id(node)) or pci_name(address), "pci", pci_id=address) for node, address in found
    )


def resources(reader: Reader, node: Node, devices: tuple[Device, ...]) -> Resources | None:
    """Return the inventory that the flat form of /resources tells, with a warning of what it does not."""
    names = ("cpus", "cpus-available", *_V1[1:])
    reader.known(node, names, nodes=("devices", *memory_nodes(node)))
    pool_cpus = cpus(reader, node, ("cpus",), None)
    pool = memory(reader, node, ("memory",), None)
    if pool_cpus is None or pool is None:
        return None
    base, size = pool
    known = pool_only(pool_cpus, base, size, devices)
    reader.problem(
        "pool-only",
        "This form of a baseline holds the pool only, not the host",
        at=node.line,
        explanation=f"Taken as the host's: CPUs {format_cpus(known.cpus.host_reserved)},"
        f" and the memory below {base:#x} ({format_size(base)})",
        suggestion="Describe the whole host: zernel show --hardware proposes a baseline",
        severity="WARNING",
    )
    return known


def pool_only(cpus: tuple[int, ...], base: int, size: int, devices: tuple[Device, ...]) -> Resources:
    """Return the inventory of which only the pool is known: what lies below and between it is the host's.

    ``cpus`` are at most `MAX_CPU`, ``base`` and ``size`` in bytes.
    """
    total = max(cpus, default=0) + 1
    reserved = tuple(sorted(set(range(total)).difference(cpus)))
    return Resources(
        Cpus(total, reserved, tuple(sorted(cpus))), Memory(base + size, base, base, size), devices
    )


def cpus(
    reader: Reader, node: Node, key: tuple[str | int, ...], subject: str | None
) -> tuple[int, ...] | None:
    """Return the CPUs of a flat ``cpus`` property, ascending, or None with a problem."""
    found = reader.read(cpu_numbers, node, "cpus", key, True, subject)
    if found and max(found) > MAX_CPU:
        reader.problem(
            "cpu-not-found",
            f"CPU {max(found)} cannot exist: Linux numbers CPUs from 0 to {MAX_CPU}",
            subject=subject,
            at=reader.line_of(node, "cpus"),
            suggestion="Check whether the numbers have 32 or 64 bits: /bits/ 64 <4 5 6 7>",
        )
        return None
    return tuple(sorted(found)) if found is not None else None


def cpu_numbers(found: Property) -> tuple[int, ...]:
    """Return CPU numbers of 64 bits, or of 32 as the first kernels take them.

    Pairs of cells whose first is 0 are numbers of 64 bits: as single cells, CPU 0 would be there many times.
    Two cells <0 N> could be both; they are CPU N, because CPU 0 is the one that no host gives away.
    """
    cells = found.numbers()
    if all(isinstance(value, Cells) and value.bits == 64 for value in found.values):
        return cells
    if cells and len(cells) % 2 == 0 and not any(cells[::2]):
        return cells[1::2]
    return cells


def memory(
    reader: Reader, node: Node, key: tuple[str | int, ...], subject: str | None
) -> tuple[int, int] | None:
    """Return base and size in bytes of the memory of /resources or of an instance, or None with a problem."""
    names = memory_nodes(node)
    if not names:
        base = reader.number(node, "memory-base", key, required=True, subject=subject)
        size = reader.number(node, "memory-bytes", key, required=True, subject=subject)
        return (base, size) if base is not None and size is not None else None
    pieces: list[tuple[int, int]] = []
    requested = 0
    for child in node.children:
        if child.name not in names:
            continue
        reader.known(child, ("reg", "size", "numa-node-id"), subject)
        reg = child.get("reg")
        if reg is not None:
            cells = reader.value(reg, _range, subject or child.name)
            if cells is None:
                return None
            pieces.append(cells)
        else:
            size = reader.number(child, "size", key, required=True, subject=subject)
            if size is None:
                return None
            requested += size
    return _one_piece(reader, node, subject, pieces, requested)


def _one_piece(
    reader: Reader, node: Node, subject: str | None, pieces: list[tuple[int, int]], requested: int
) -> tuple[int, int] | None:
    if requested:
        reader.problem(
            "memory-without-address",
            "The memory has no address, which Zernel needs",
            subject=subject,
            at=node.line,
            explanation=f"{format_size(requested)} are asked for in memory@N nodes with a size only:"
            " the kernel places them, and until then nobody can say whether they overlap",
            suggestion="Write memory-pool-base and memory-pool-bytes as docs/examples/baseline.dts does",
        )
        return None
    pieces.sort()
    for (base, size), (following, _) in pairwise(pieces):
        if base + size != following:
            shown = ", ".join(f"{start:#x} - {start + length:#x}" for start, length in pieces[:8])
            reader.problem(
                "memory-in-pieces",
                "The memory lies in several pieces; Zernel manages one",
                subject=subject,
                at=node.line,
                explanation=f"Memory: {shown}",
                suggestion="Use one piece as the pool, and leave the others to the host",
            )
            return None
    return pieces[0][0], sum(size for _, size in pieces)


def _range(found: Property) -> tuple[int, int]:
    """Return base and size of a ``reg``: two numbers of 64 bits."""
    cells = found.numbers()
    if len(cells) == 2:
        return cells[0], cells[1]
    if len(cells) == 4 and max(cells) < 1 << 32:
        return cells[0] << 32 | cells[1], cells[2] << 32 | cells[3]
    raise WrongType("must hold a base and a size, of 64 bits each")
