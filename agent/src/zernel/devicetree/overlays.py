# SPDX-License-Identifier: GPL-3.0-or-later
"""What an overlay makes of a system: for validating one before anybody writes it to a kernel.

Both wire formats are read: ``fragment@0/__overlay__`` with the operations of v1, and fragments with a
``target-path`` as v2 has them. Operations are taken in the kernel's order: create, CPUs, devices,
remove.
"""

from __future__ import annotations

from zernel.devicetree import kernel_forms
from zernel.devicetree.free import first_fit, free_memory
from zernel.devicetree.model import Device, DeviceUse, Instance, System
from zernel.devicetree.reading import Interpretation, Reader, TooManyProblems
from zernel.devicetree.tree import Node, Property, Tree
from zernel.devicetree.units import device_use, format_cpus, format_size

_texts = Property.texts
_ORDER = ("instance-create", "cpu-remove", "cpu-add", "device-remove", "device-add", "instance-remove")


def overlaid(tree: Tree, base: System) -> Interpretation:
    """Return the system that the overlay in ``tree`` makes of ``base``, with what cannot be done.

    Changes of memory are refused: a region of its own has no place in the model, which has one per instance.
    """
    applied = _Overlay(tree, base)
    try:
        return applied.run()
    except TooManyProblems as stopped:
        return Interpretation(None, applied.origins, stopped.problems, dialect="overlay")


class _Overlay(Reader):
    def __init__(self, tree: Tree, base: System) -> None:
        super().__init__(tree)
        self.resources = base.resources
        self.instances = list(base.instances)

    def run(self) -> Interpretation:
        operations: list[tuple[Node, str | None]] = []
        for fragment in self.tree.root.children:
            body = fragment.child("__overlay__")
            path = self.text(fragment, "target-path", ())
            # v2's targets: /instances to create and remove, /instances/NAME to change one.
            target = path.removeprefix("/instances").removeprefix("/") if path else None
            if path and not path.startswith("/instances"):
                target = None
            operations += [(node, target) for node in body.children] if body else []
        if not operations:
            self.problem("overlay-empty", "The overlay changes nothing", suggestion="Add an operation to it")
        for node, _ in operations:
            if node.base_name not in _ORDER:
                self.problem(
                    "overlay-operation",
                    f"Operation '{node.name}' cannot be validated",
                    at=node.line,
                    explanation=f"Understood are: {', '.join(_ORDER)}",
                    suggestion="Change the instance with zernel, which validates what the kernel is sent",
                )
        known = [item for item in operations if item[0].base_name in _ORDER]
        for node, target in sorted(known, key=lambda item: _ORDER.index(item[0].base_name)):
            if node.base_name == "instance-create":
                self.create(node, placed=target is None)
            else:
                self.change(node, target)
        system = System(self.resources, tuple(self.instances))
        return Interpretation(system, self.origins, self.problems, bool(self.instances), (), "overlay")

    def create(self, node: Node, *, placed: bool) -> None:
        """Add the instance that it creates; not ``placed``: the kernel chooses where its memory is."""
        key = ("instances", len(self.instances))
        self.origins.lines[key] = node.line
        name = self.text(node, "instance-name", key)
        if name is None:
            self.missing(node, "instance-name", None)
            return
        owned = node.child("resources")
        if owned is None:
            self.problem(
                "no-resources",
                "Instance has no resources",
                subject=name,
                at=node.line,
                suggestion="Add a node 'resources' to the operation",
            )
            return
        cpus = kernel_forms.cpus(self, owned, key, name)
        memory = kernel_forms.memory(self, owned, key, name) if placed else self.placed(owned, key, name)
        names = self.read(_texts, owned, "device-names", key, False, name) or ()
        if cpus is None or memory is None:
            return
        devices = tuple(device_use(text) or DeviceUse(text) for text in names)
        numa = tuple(sorted(self.numbers(owned, "numa-nodes", key, subject=name) or ()))
        affinity = self.text(owned, "cpu-affinity", key, name)
        policy = self.text(owned, "memory-policy", key, name)
        number = self.number(node, "id", key, subject=name)
        self.instances.append(Instance(name, number, cpus, *memory, devices, numa, affinity, policy))

    def placed(self, owned: Node, key: tuple[str | int, ...], name: str) -> tuple[int, int] | None:
        """Return a free place for the memory of an instance, as base and size; a problem where there is none.

        Which one the kernel takes is not known before; that there is one is what can be validated.
        """
        size = self.number(owned, "memory-bytes", key, required=True, subject=name)
        if size is None:
            return None
        gaps = free_memory(self.resources.memory, tuple(self.instances))
        base = first_fit(gaps, size)
        if base is None:
            largest = max((end - start for start, end in gaps), default=0)
            self.problem(
                "not-enough-memory",
                f"{format_size(size)} of memory cannot be given in one piece",
                subject=name,
                at=self.line_of(owned, "memory-bytes"),
                explanation=f"Largest free block: {format_size(largest)}",
                suggestion=f"Ask for {format_size(largest)} or less" if largest else "Free some memory first",
            )
            return None
        return base, size

    def change(self, node: Node, target: str | None) -> None:
        key = "instance-name" if node.base_name == "instance-remove" else "mk,instance"
        name = self.text(node, key, ()) or target or None
        index = next((at for at, found in enumerate(self.instances) if found.name == name), None)
        if index is None:
            self.problem(
                "instance-not-found",
                f"There is no instance '{name}'" if name else f"'{node.name}' names no instance",
                at=node.line,
                explanation=f"Instances: {', '.join(found.name for found in self.instances) or 'none'}",
                suggestion=f"Name one of them in '{key}'",
            )
            return
        if node.base_name == "instance-remove":
            del self.instances[index]
        elif node.base_name.startswith("cpu-"):
            self.change_cpus(node, index)
        else:
            self.change_devices(node, index)

    def change_cpus(self, node: Node, index: int) -> None:
        instance = self.instances[index]
        numbers = [self.number(item, "reg", (), required=True) for item in node.children]
        cpus = [number for number in numbers if number is not None]
        if node.base_name == "cpu-add":
            self.instances[index] = instance.but(cpus=tuple(sorted((*instance.cpus, *cpus))))
            return
        missing = set(cpus).difference(instance.cpus)
        if missing:
            self.problem(
                "cpu-not-owned",
                f"CPUs {format_cpus(missing)} are not the instance's",
                subject=instance.name,
                at=node.line,
                explanation=f"Its CPUs: {format_cpus(instance.cpus)}",
                suggestion=f"Take away some of {format_cpus(instance.cpus)}",
            )
        self.instances[index] = instance.but(cpus=tuple(sorted(set(instance.cpus).difference(cpus))))

    def change_devices(self, node: Node, index: int) -> None:
        instance = self.instances[index]
        by_address: dict[str, Device] = {
            device.pci_id.lower(): device for device in self.resources.devices if device.pci_id
        }
        for item in node.children:
            address = self.text(item, "pci-id", ())
            device = by_address.get((address or "").lower())
            use = DeviceUse(device.name) if device else None
            adds = node.base_name == "device-add"
            if use is None or (not adds and use not in instance.devices):
                self.problem(
                    "device-not-found",
                    f"No device with pci-id '{(address or '')[:60]}'"
                    + ("" if adds else f" belongs to {instance.name}"),
                    subject=instance.name,
                    at=item.line,
                    explanation=f"Devices: {', '.join(by_address) or 'none with a pci-id'}",
                    suggestion="Use the pci-id of a device of the baseline (lspci -D)",
                )
                continue
            kept = tuple(owned for owned in instance.devices if owned != use)
            instance = instance.but(devices=(*instance.devices, use) if adds else kept)
        self.instances[index] = instance
