# SPDX-License-Identifier: GPL-3.0-or-later
"""The wire format of the first kernels (kerf 0.1.0).

An overlay has one ``fragment@0`` with ``instance-create``, ``instance-remove`` or the operations of an
update, and a baseline a flat ``/resources`` with 64-bit CPU numbers and one memory range. The kernel shows
the baseline as it was written, so it also carries the full inventory in a node of our own that the kernel
does not look at: what the kernel holds stays the single source of truth for host-reserved CPUs, totals and
topology.
"""

from __future__ import annotations

from zernel.devicetree import fdt
from zernel.devicetree.interpret import INVENTORY_NODE, interpret
from zernel.devicetree.kernel_forms import pool_only
from zernel.devicetree.model import MAX_CPU, Device, DeviceUse, Instance, Resources
from zernel.devicetree.render import resources_node
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.devicetree.units import device_use
from zernel.errors import fail
from zernel.multikernel.changes import Operation, operations
from zernel.multikernel.wire import (
    HOST_COMPATIBLE,
    Wire,
    find,
    instance_head,
    numbers,
    overlay,
    policies,
    with_policies,
)


class V1(Wire):
    """The first wire format."""

    name = "v1"

    def baseline(self, resources: Resources) -> bytes:
        """Return the blob for ``device_tree``."""
        pool = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*resources.cpus.available),)),
                Property("memory-base", (fdt.u64(resources.memory.pool_base),)),
                Property("memory-bytes", (fdt.u64(resources.memory.pool_bytes),)),
            ],
        )
        if resources.devices:
            pool.children.append(Node("devices", children=[_device(device) for device in resources.devices]))
        inventory = resources_node(resources)
        inventory.name = INVENTORY_NODE
        root = Node("/", properties=[Property("compatible", (HOST_COMPATIBLE,))], children=[pool, inventory])
        return fdt.write(Tree(root))

    def create(self, instance: Instance, resources: Resources | None = None) -> bytes:
        """Return the overlay that creates ``instance``."""
        owned = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*instance.cpus),)),
                Property("memory-base", (fdt.u64(instance.memory_base),)),
                Property("memory-bytes", (fdt.u64(instance.memory_bytes),)),
            ],
        )
        if instance.devices:
            labels = (use.label for use in instance.devices)
            owned.properties.append(Property("device-names", (fdt.strings(*labels),)))
        owned.properties += policies(instance)
        return _overlay(Node("instance-create", properties=instance_head(instance), children=[owned]))

    def remove(self, name: str) -> bytes:
        """Return the overlay that removes the instance called ``name``."""
        return _overlay(Node("instance-remove", properties=[Property("instance-name", (name,))]))

    def update(self, before: Instance, after: Instance, resources: Resources) -> bytes:
        """Return the overlay with the operations that lead from ``before`` to ``after``, and no other."""
        return _overlay(*(_operation(op, before.name, resources) for op in operations(before, after)))

    def read_baseline(self, blob: bytes) -> Resources:
        """Return the inventory that ``device_tree`` holds."""
        tree = fdt.read(blob, "device_tree")
        pool = tree.root.child("resources")
        try:
            cpus = numbers(pool, "cpus")
            (base,), (size,) = numbers(pool, "memory-base"), numbers(pool, "memory-bytes")
            if max(cpus, default=0) > MAX_CPU:
                raise WrongType("must hold numbers of CPUs")
        except (WrongType, ValueError):
            raise fail(
                "baseline-unknown-format",
                "The kernel's baseline is in a format that is not understood",
                explanation="/resources must hold cpus, memory-base and memory-bytes, each in 64 bits",
                suggestion="Apply a baseline with 'zernel init --input=FILE --apply'",
            ) from None
        found = interpret(tree).system if tree.root.child(INVENTORY_NODE) else None
        if found is not None:
            inventory = found.resources
            memory = inventory.memory
            if inventory.cpus.available == cpus and (memory.pool_base, memory.pool_bytes) == (base, size):
                return inventory
        unknown = "What the host keeps is not known: another program applied the baseline"
        return _pool_only(tree, cpus, base, size).but(unknown=unknown)

    def read_instance(self, name: str, number: int, blob: bytes) -> Instance | None:
        """Return the instance that a blob describes (its ``device_tree``, or the overlay that created it)."""
        root = fdt.read(blob, f"instances/{name}/device_tree").root
        resources = find(root, "resources")
        if resources is None:
            return None
        names = resources.get("device-names")
        try:
            cpus = numbers(resources, "cpus")
            (base,), (size,) = numbers(resources, "memory-base"), numbers(resources, "memory-bytes")
            uses = [device_use(text) or DeviceUse(text) for text in (names.texts() if names else ())]
        except (WrongType, ValueError):
            return None
        found = Instance(name, number, tuple(sorted(cpus)), base, size, tuple(uses))
        return with_policies(found, resources)

    def concerns(self, instance: str, blob: bytes) -> frozenset[str]:
        """Return the instance that the transaction names."""
        return frozenset((instance,))

    created_by = read_instance
    """An overlay that creates describes the instance as its ``device_tree`` does."""

    def followed(self, instance: Instance, blob: bytes, resources: Resources) -> Instance:
        """Return what ``instance`` is after the updates that an applied overlay holds for it."""
        devices = {device.pci_id: DeviceUse(device.name) for device in resources.devices if device.pci_id}
        content = find(fdt.read(blob, "overlay").root, "__overlay__")
        for node in content.children if content else ():
            named, (what, _, way) = node.get("mk,instance"), node.name.partition("-")
            try:
                if named is None or named.text() != instance.name:
                    continue
                add = way == "add"
                if what == "memory":
                    sizes = [numbers(region, "reg")[1] for region in node.children]
                    size = instance.memory_bytes + (sum(sizes) if add else -sum(sizes))
                    instance = instance.but(memory_bytes=size)
                elif what == "cpu":
                    cpus = {cpu for item in node.children for cpu in numbers(item, "reg")}
                    left = {*instance.cpus, *cpus} if add else set(instance.cpus) - cpus
                    instance = instance.but(cpus=tuple(sorted(left)))
                elif what == "device":
                    ids = [found.text() for item in node.children if (found := item.get("pci-id"))]
                    uses = [devices[pci_id] for pci_id in ids if pci_id in devices]
                    others = tuple(use for use in instance.devices if use not in uses)
                    instance = instance.but(devices=(*others, *uses) if add else others)
            except (WrongType, IndexError):
                continue  # another program's, in a form that is not understood
        return instance


def _overlay(*operations: Node) -> bytes:
    return overlay(Node("fragment@0", children=[Node("__overlay__", children=[*operations])]))


def _operation(operation: Operation, name: str, resources: Resources) -> Node:
    node = Node(operation.kind, properties=[Property("mk,instance", (name,))])
    if operation.memory is not None:
        node.children.append(Node("region@0", properties=[Property("reg", (fdt.u64(*operation.memory),))]))
    numa = {cpu: found.node_id for found in resources.numa_nodes for cpu in found.cpus}
    for cpu in operation.cpus:
        item = Node(f"cpu@{cpu:x}", properties=[Property("reg", (fdt.u64(cpu),))])
        if cpu in numa:
            item.properties.append(Property("numa-node", (fdt.u32(numa[cpu]),)))
        node.children.append(item)
    addresses = {device.name: device.pci_id for device in resources.devices}
    for number, use in enumerate(operation.devices):
        # Whole devices only: `zernel.multikernel.changes.check_in_place` refused the others.
        pci_id = addresses[use.label] or ""
        node.children.append(Node(f"pci@{number:x}", properties=[Property("pci-id", (pci_id,))]))
    return node


def _device(device: Device) -> Node:
    node = Node(device.name, properties=[Property("device-type", (device.kind,))])
    for name, text in (("compatible", device.compatible), ("pci-id", device.pci_id)):
        if text is not None:
            node.properties.append(Property(name, (text,)))
    return node


def _pool_only(tree: Tree, cpus: tuple[int, ...], base: int, size: int) -> Resources:
    container = find(tree.root, "devices")
    devices = tuple(Device(node.name, "device") for node in (container.children if container else ()))
    return pool_only(cpus, base, size, devices)
