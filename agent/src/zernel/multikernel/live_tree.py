# SPDX-License-Identifier: GPL-3.0-or-later
"""The trees that kernels of the second version show: of the pool, and of an instance.

A pool is there when the tree has ``cpus-available``, memory or devices. Before that it lists the host's
online CPUs. CPUs are physical ids. ``/aliases`` names the devices (`zernel.devicetree.kernel_forms`).
"""

from __future__ import annotations

from zernel.devicetree import fdt, kernel_forms
from zernel.devicetree.model import PAGE_BYTES
from zernel.devicetree.tree import Node, Tree, WrongType
from zernel.errors import ZernelError
from zernel.multikernel.wire import find, numbers
from zernel.record import Record


class Piece(Record):
    """One piece of memory: its address, its bytes, and its NUMA node where the kernel tells."""

    base: int
    size: int
    node: int | None = None


class LiveDevice(Record):
    """A device: what the tree calls it, and its PCI address where it has one."""

    name: str
    pci_id: str | None = None


class Pool(Record):
    """A pool as the kernel shows it: CPUs by physical id, memory, and the devices that no instance has.

    ``granule`` is the unit in which memory is added to an instance, None where the kernel does not tell.
    """

    cpus: tuple[int, ...]
    pieces: tuple[Piece, ...]
    devices: tuple[LiveDevice, ...]
    granule: int | None = None

    @property
    def bytes(self) -> int:
        """How much memory it has."""
        return sum(piece.size for piece in self.pieces)

    @property
    def base(self) -> int | None:
        """Where its memory begins when that lies in one piece, else None."""
        for one, following in zip(self.pieces, self.pieces[1:], strict=False):
            if one.base + one.size != following.base:
                return None
        return self.pieces[0].base if self.pieces else None

    @property
    def where(self) -> str:
        """Its memory, for a person."""
        shown = [f"{one.base:#x} - {one.base + one.size:#x}" for one in self.pieces[:8]]
        return ", ".join([*shown, *(["..."] if len(self.pieces) > 8 else [])]) or "none"


class LiveInstance(Record):
    """An instance as the kernel shows it: CPUs by physical id, memory as one range, devices."""

    cpus: tuple[int, ...]
    base: int
    size: int
    devices: tuple[LiveDevice, ...]
    resources: Node


def form(blob: bytes) -> str | None:
    """Return which kernel shows this ``device_tree``: ``v1``, ``v2``, or None where it does not tell."""
    try:
        resources = fdt.read(blob, "device_tree").root.child("resources") if blob else None
    except ZernelError:
        return None
    if resources is None:
        return None
    # Memory in one property is the first version's. Without any memory it is a second one's before there is
    # a pool: the first shows the baseline as it was written, and takes none without memory.
    return "v1" if resources.get("memory-base") or resources.get("memory-bytes") else "v2"


def pool(blob: bytes) -> Pool | None:
    """Return the pool that ``device_tree`` shows, or None when there is none, or none that is understood."""
    try:
        tree = fdt.read(blob, "device_tree") if blob else None
        resources = tree.root.child("resources") if tree else None
        if tree is None or resources is None:
            return None
        pieces = _pieces(resources)
        devices = _devices(tree, resources)
        if not pieces and not devices and resources.get("cpus-available") is None:
            return None
        cpus = numbers(resources, "cpus") if resources.get("cpus") else ()
        granule = numbers(tree.root, "memory-granule") if tree.root.get("memory-granule") else ()
    except (ZernelError, WrongType):
        return None
    unit = granule[0] if len(granule) == 1 and granule[0] % PAGE_BYTES == 0 else 0
    return Pool(tuple(sorted(cpus)), pieces, devices, unit or None)


def instance(blob: bytes) -> LiveInstance | None:
    """Return the instance that its ``device_tree`` shows, or None for one that is not understood."""
    try:
        tree = fdt.read(blob, "device_tree")
        resources = find(tree.root, "resources")
        if resources is None:
            return None
        devices, cpus = _devices(tree, resources), numbers(resources, "cpus")
        memory = Pool((), _pieces(resources), ())
        if memory.pieces:
            base, size = memory.base, memory.bytes
        else:
            (base,), (size,) = numbers(resources, "memory-base"), numbers(resources, "memory-bytes")
    except (ZernelError, WrongType, ValueError):
        return None
    return None if base is None else LiveInstance(tuple(sorted(cpus)), base, size, devices, resources)


def _pieces(resources: Node) -> tuple[Piece, ...]:
    found = []
    names = kernel_forms.memory_nodes(resources)
    for node in resources.children:
        if node.name not in names:
            continue
        reg = numbers(node, "reg")
        if len(reg) != 2 or reg[1] == 0 or sum(reg) > 1 << 64:
            raise WrongType("must hold a base and a size")
        numa = node.get("numa-node-id")
        found.append(Piece(*reg, numa.number() if numa else None))
    return tuple(sorted(found, key=lambda piece: piece.base))


def _devices(tree: Tree, resources: Node) -> tuple[LiveDevice, ...]:
    names = kernel_forms.aliases(tree)
    found = []
    container = resources.child("devices")
    for node in container.children if container else ():
        address = node.get("pci-id")
        found.append(LiveDevice(names.get(id(node), node.name), address.text().lower() if address else None))
    for node, pci_id in kernel_forms.pci_devices(tree):
        name = names.get(id(node)) or kernel_forms.pci_name(pci_id)
        found.append(LiveDevice(name, pci_id))
    return tuple(sorted(found, key=lambda device: (device.pci_id or "", device.name)))
