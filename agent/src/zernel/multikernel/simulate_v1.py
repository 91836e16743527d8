# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel's first version: the baseline is shown as it was written, and replaced as a whole.

Where the kernel's behaviour is not known (the content of an instance's ``device_tree`` and of a transaction's
``resources``), it keeps to the overlay's own properties. What the facts leave open is refused: memory that is
not added or removed at an end of the instance's one range, and the removal of the last CPU. There is no undo.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from zernel.devicetree import fdt
from zernel.devicetree.model import PAGE_BYTES
from zernel.devicetree.tree import Node, Property, Tree
from zernel.devicetree.units import device_use, format_cpus
from zernel.multikernel.simulate import SimulatedInstance, SimulatedMultikernel, SimulatedTransaction
from zernel.multikernel.simulate_operations import UPDATES, Refused, moved, required, text, wide, wide_one
from zernel.multikernel.simulated_kexec import refused


@dataclass(slots=True, kw_only=True)
class InstanceV1(SimulatedInstance):
    """An instance with one range of memory."""

    memory_base: int
    memory_bytes: int


@dataclass(slots=True)
class _Pool:
    cpus: frozenset[int] = frozenset()
    base: int = 0
    size: int = 0
    devices: frozenset[str] = frozenset()
    addresses: dict[str, str] = field(default_factory=dict)
    """Devices by their PCI address."""


class SimulatedV1(SimulatedMultikernel):
    """The first version."""

    def __init__(self, faults: list[str] | None = None) -> None:
        self.baseline = b""
        self.pool: _Pool | None = None
        self.owned: dict[str, InstanceV1] = {}
        super().__init__(faults)

    @property
    def instances(self) -> Mapping[str, SimulatedInstance]:
        """The instances there are, by name."""
        return self.owned

    def root_files(self) -> dict[str, Callable[[], list[str] | bytes]]:
        """Return ``device_tree``: the baseline as it was written."""
        return {"device_tree": lambda: self.baseline}

    def instance_tree(self, name: str) -> bytes:
        """Return what the instance owns, in the form of the overlay that created it."""
        instance = self.owned[name]
        resources = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*instance.cpus),)),
                Property("memory-base", (fdt.u64(instance.memory_base),)),
                Property("memory-bytes", (fdt.u64(instance.memory_bytes),)),
            ],
        )
        if instance.devices:
            resources.properties.append(Property("device-names", (fdt.strings(*instance.devices),)))
        resources.properties += instance.wishes
        properties = [
            Property("compatible", ("linux,multikernel-instance",)),
            Property("instance-name", (instance.name,)),
            Property("id", (fdt.u32(instance.id),)),
        ]
        return fdt.write(Tree(Node("/", properties=properties, children=[resources])))

    def set_baseline(self, blob: bytes, root: Node) -> None:
        """Replace the pool; EBUSY while instances own parts of the old one."""
        resources = root.child("resources") or Node("")
        devices = (resources.child("devices") or Node("")).children
        pool = _Pool(
            frozenset(wide(resources, "cpus")),
            wide_one(resources, "memory-base"),
            wide_one(resources, "memory-bytes"),
            frozenset(node.name for node in devices),
            {found.text(): node.name for node in devices if (found := node.get("pci-id"))},
        )
        misaligned = (pool.base | pool.size) % PAGE_BYTES
        if not pool.cpus or not pool.size or misaligned or pool.base + pool.size > 1 << 64:
            raise Refused("bad pool")
        if self.owned:
            raise refused(errno.EBUSY)
        self.baseline, self.pool = blob, pool

    def operations(self, root: Node) -> list[tuple[str, Node]]:
        """Return the operations of the first fragment: further ones are not looked at."""
        fragment = root.child("fragment@0")
        content = fragment.child("__overlay__") if fragment else None
        if content is None:
            raise Refused("no overlay")
        return [("", node) for node in content.children]

    def undo(self, transaction: SimulatedTransaction) -> None:
        """Refuse: this version has no undo."""
        raise refused(errno.EPERM)

    def operate(self, target: str, operation: Node, transaction: SimulatedTransaction) -> None:
        """Carry out one operation."""
        update = operation.base_name in UPDATES
        name = text(operation, "mk,instance" if update else "instance-name")
        transaction.instance = name
        if operation.base_name == "instance-create":
            instance = self.create(name, operation)
            transaction.resources = (
                f"cpus={format_cpus(instance.cpus)}"
                f" memory-base={instance.memory_base:#x} memory-bytes={instance.memory_bytes:#x}"
            )
        elif operation.base_name == "instance-remove":
            found = self.owned.get(name)
            if found is None or found.status != "ready":
                raise Refused(f"{name} is not there, or busy")
            del self.owned[name]
        elif update:
            if self.pool is None or name not in self.owned:
                raise Refused(f"{name} is not there")
            instance = changed(self.owned[name], operation, self.pool.addresses)
            self.check_free(instance, self.pool)
            self.owned[name] = instance
            transaction.resources = f"{transaction.resources} {operation.base_name}".strip()
        else:
            raise Refused(f"unknown operation {operation.name}")

    def create(self, name: str, operation: Node) -> InstanceV1:
        resources = operation.child("resources")
        if self.pool is None or resources is None or name in self.owned or not name or "/" in name:
            raise Refused(f"cannot create {name}")
        names = resources.get("device-names")
        instance = InstanceV1(
            name=name,
            id=self.choose_id(operation.get("id")),
            cpus=wide(resources, "cpus"),
            memory_base=wide_one(resources, "memory-base"),
            memory_bytes=wide_one(resources, "memory-bytes"),
            devices=names.texts() if names else (),
            wishes=self.wishes(resources),
        )
        self.check_free(instance, self.pool)
        self.owned[name] = instance
        return instance

    def check_free(self, instance: InstanceV1, pool: _Pool) -> None:
        cpus = set(instance.cpus)
        if not cpus or len(cpus) != len(instance.cpus) or not cpus <= pool.cpus:
            raise Refused("cpus")
        start, end = instance.memory_base, instance.memory_base + instance.memory_bytes
        if (start | end) % PAGE_BYTES or start == end or start < pool.base or end > pool.base + pool.size:
            raise Refused("memory")
        for device in instance.devices:
            use = device_use(device)
            if device not in pool.devices and (use is None or use.device not in pool.devices):
                raise Refused(f"device {device}")
        for other in self.owned.values():
            if other.name == instance.name:
                continue
            shares_memory = start < other.memory_base + other.memory_bytes and other.memory_base < end
            if shares_memory or cpus.intersection(other.cpus) or set(instance.devices) & set(other.devices):
                raise Refused(f"shared with {other.name}")


def changed(instance: InstanceV1, operation: Node, addresses: dict[str, str]) -> InstanceV1:
    """Return the instance after one operation; ``addresses`` are the pool's devices by PCI address.

    Raises `Refused`. Whether what is added is free and in the pool is left to the caller.
    """
    what, _, way = operation.base_name.partition("-")
    if not operation.children:
        raise Refused("an operation of nothing")
    if what == "memory":
        for region in operation.children:
            instance = _memory(instance, region, add=way == "add")
        return instance
    if what == "cpu":
        cpus = tuple(number for item in operation.children for number in required(item, "reg").wide_numbers())
        return replace(instance, cpus=tuple(sorted(moved(instance.cpus, cpus, add=way == "add"))))
    ids = [required(item, "pci-id").text() for item in operation.children]
    if not set(ids) <= set(addresses):
        raise Refused("a device that the pool does not have")
    names = tuple(addresses[pci_id] for pci_id in ids)
    return replace(instance, devices=moved(instance.devices, names, add=way == "add"))


def _memory(instance: InstanceV1, region: Node, *, add: bool) -> InstanceV1:
    numbers = required(region, "reg").wide_numbers()
    if len(numbers) != 2 or numbers[1] == 0:
        raise Refused("a region that is none")
    start, size = numbers
    base, end = instance.memory_base, instance.memory_base + instance.memory_bytes
    at_end, at_start = (end, base) if add else (end - size, base + size)
    if start == at_end and (add or start > base):
        return replace(instance, memory_bytes=instance.memory_bytes + (size if add else -size))
    if start + size == at_start and (add or start + size < end):
        grown = instance.memory_bytes + (size if add else -size)
        return replace(instance, memory_base=start if add else start + size, memory_bytes=grown)
    raise Refused("not at an end of the instance's memory")
