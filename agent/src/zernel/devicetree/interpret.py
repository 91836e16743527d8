# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree in the kerf document's dialect to the model, with everything found wrong and where it stands.

Interpretation checks form (which nodes and properties there are, and what kind of value they hold); whether
the values make sense together is `zernel.devicetree.validate`'s business. All problems are collected: a
person who corrects a file should not have to run the command once for every mistake.
"""

from __future__ import annotations

from zernel.devicetree.model import (
    MAX_INSTANCE_ID,
    Cpus,
    Device,
    DeviceUse,
    Instance,
    Memory,
    NumaNode,
    Resources,
    System,
)
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.devicetree.units import device_use
from zernel.errors import Location, Problem
from zernel.record import Record

TYPE_CHECKING = False  # as typing's, whose import would cost a tenth of the whole command
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

INVENTORY_NODE = "zernel,inventory"
"""Where our own baseline blobs keep the full inventory beside what the kernel reads."""

_ROOT_NODES = ("resources", "instances", INVENTORY_NODE)

_INSTANCE_PROPERTIES = (
    "cpus",
    "memory-base",
    "memory-bytes",
    "devices",
    "numa-nodes",
    "cpu-affinity",
    "memory-policy",
)
_DEVICE_PROPERTIES = (
    "compatible",
    "pci-id",
    "sriov-vfs",
    "host-reserved-vf",
    "available-vfs",
    "namespaces",
    "host-reserved-ns",
    "available-ns",
    "numa-node",
    "label",
)


class Origins:
    """Where values stood: ("cpus", "available"), ("devices", 0, "pci-id"), ("instances", 2, "cpus") to a
    place.

    A key without the property's name is the node's place. Numbers count items in the model's order.
    """

    def __init__(self) -> None:
        self.places: dict[tuple[str | int, ...], tuple[Location, ...]] = {}

    def at(self, *key: str | int) -> tuple[Location, ...]:
        """Return the place of ``key``, or of the node around it, or nothing."""
        return self.places.get(key) or self.places.get(key[:-1], ())


class Interpretation(Record):
    """What a tree says. ``system`` is None when the inventory cannot be read at all."""

    system: System | None
    origins: Origins
    problems: list[Problem]
    has_instances: bool = False
    instances_at: tuple[Location, ...] = ()


def interpret(tree: Tree) -> Interpretation:
    """Read the document's dialect out of ``tree``. Never raises for what the tree holds."""
    return _Interpreter(tree).run()


class _Interpreter:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.origins = Origins()
        self.problems: list[Problem] = []
        self.device_names: dict[int, str] = {}
        self.phandles: dict[int, Node] = {}

    def run(self) -> Interpretation:
        root = self.tree.root
        inventory = root.child(INVENTORY_NODE) if self.tree.file is None else None
        resources_node = inventory or root.child("resources")
        resources = None
        if resources_node is None:
            self.problem(
                "no-resources",
                "Baseline must contain /resources (hardware inventory)",
                suggestion="Describe the host's CPUs, memory and devices in a node named 'resources'",
            )
        else:
            self.once(root, "resources")
            resources = self.resources(resources_node)
        container = root.child("instances")
        endpoints = self.endpoints(root)
        instances: list[Instance] = []
        if container is not None:
            self.once(root, "instances")
            for node in container.children:
                found = self.instance(node, len(instances), endpoints)
                if found is not None:
                    instances.append(found)
        return Interpretation(
            System(resources, tuple(instances)) if resources is not None else None,
            self.origins,
            self.problems,
            bool(container and container.children),
            self.tree.location(container.children[0].line) if container and container.children else (),
        )

    # -- inventory ------------------------------------------------------------------------------------------

    def resources(self, node: Node) -> Resources | None:
        sections = ("cpus", "memory", "devices", "topology")
        for section in sections:
            self.once(node, section)
        # Flat properties are reported below, as the missing nodes that they stand for.
        self.known(node, (found.name for found in node.properties), nodes=sections)
        cpus_node, memory_node = node.child("cpus"), node.child("memory")
        for name, found in (("cpus", cpus_node), ("memory", memory_node)):
            if found is None:
                flat = node.get(name) or node.get(f"{name}-base")
                why = "The kernel's own flat form is for blobs" if flat else f"There is no node '{name}'"
                self.problem(
                    f"no-{name}",
                    f"/resources must contain '{name}'",
                    at=flat.line if flat else node.line,
                    explanation=why,
                    suggestion=f"Add a node '{name} {{ ... }};' to 'resources'",
                )
        devices = self.devices(node.child("devices"))
        numa_nodes = self.numa_nodes(node.child("topology"))
        cpus = self.cpus(cpus_node) if cpus_node else None
        memory = self.memory(memory_node) if memory_node else None
        if cpus is None or memory is None:
            return None
        return Resources(cpus, memory, devices, numa_nodes)

    def cpus(self, node: Node) -> Cpus | None:
        self.known(node, ("total", "host-reserved", "available"))
        total = self.number(node, "total", ("cpus",), required=True)
        reserved = self.numbers(node, "host-reserved", ("cpus",), required=True)
        available = self.numbers(node, "available", ("cpus",), required=True)
        if total is None or reserved is None or available is None:
            return None
        return Cpus(total, tuple(sorted(reserved)), tuple(sorted(available)))

    def memory(self, node: Node) -> Memory | None:
        names = ("total-bytes", "host-reserved-bytes", "memory-pool-base", "memory-pool-bytes")
        self.known(node, names)
        values = [self.number(node, name, ("memory",), required=True) for name in names]
        known = [value for value in values if value is not None]
        return Memory(*known) if len(known) == len(names) else None

    def devices(self, container: Node | None) -> tuple[Device, ...]:
        devices: list[Device] = []
        for node in container.children if container else ():
            key = ("devices", len(devices))
            self.origins.places[key] = self.tree.location(node.line)
            self.known(node, _DEVICE_PROPERTIES)
            label = self.text(node, "label", key)
            name = node.labels[0] if node.labels else label or node.name.replace("@", "")
            self.device_names[id(node)] = name
            devices.append(
                Device(
                    name,
                    node.base_name,
                    self.text(node, "compatible", key),
                    self.text(node, "pci-id", key),
                    self.number(node, "sriov-vfs", key),
                    tuple(sorted(self.numbers(node, "host-reserved-vf", key) or ())),
                    tuple(sorted(self.numbers(node, "available-vfs", key) or ())),
                    self.number(node, "namespaces", key),
                    tuple(sorted(self.numbers(node, "host-reserved-ns", key) or ())),
                    tuple(sorted(self.numbers(node, "available-ns", key) or ())),
                    self.number(node, "numa-node", key),
                )
            )
        return tuple(devices)

    def numa_nodes(self, topology: Node | None) -> tuple[NumaNode, ...]:
        container = topology.child("numa-nodes") if topology else None
        if topology is not None:
            self.known(topology, (), nodes=("numa-nodes",))
        found: list[NumaNode] = []
        for node in container.children if container else ():
            key = ("numa-nodes", len(found))
            self.origins.places[key] = self.tree.location(node.line)
            self.known(node, ("node-id", "memory-base", "memory-size", "cpus"))
            node_id = self.number(node, "node-id", key, required=True)
            base = self.number(node, "memory-base", key, required=True)
            size = self.number(node, "memory-size", key, required=True)
            cpus = self.numbers(node, "cpus", key, required=True)
            if node_id is not None and base is not None and size is not None and cpus is not None:
                found.append(NumaNode(node_id, base, size, tuple(sorted(cpus))))
        return tuple(found)

    # -- instances ------------------------------------------------------------------------------------------

    def endpoints(self, root: Node) -> dict[str, DeviceUse]:
        """Return what each label of a virtual function or namespace at the root stands for."""
        found: dict[str, DeviceUse] = {}
        for node in root.children:
            if node.name in _ROOT_NODES:
                continue
            if not any(node.get(name) for name in ("parent", "vf-id", "namespace-id")):
                self.unknown("Node", node.name, node.line, _ROOT_NODES[:2])
                continue
            parents = self.targets(node, "parent")
            if not parents:
                self.problem(
                    "no-parent",
                    "A device reference must name its parent",
                    subject=node.name,
                    at=node.line,
                    suggestion="Add 'parent = <&eth0>;' with the label of a device in /resources/devices",
                )
                continue
            label, parent = parents[0]
            device = self.device_names.get(id(parent)) if parent else None
            if device is None:
                self.dangling(node.name, label, node.line)
                continue
            key = ("endpoints", len(found))
            vf, namespace = self.number(node, "vf-id", key), self.number(node, "namespace-id", key)
            if (vf is None) == (namespace is None):
                self.problem(
                    "bad-device-reference",
                    "A device reference must have either a vf-id or a namespace-id",
                    subject=node.name,
                    at=node.line,
                    suggestion="Keep one of 'vf-id = <1>;' and 'namespace-id = <1>;'",
                )
                continue
            for name in node.labels or (node.name,):
                found[name] = DeviceUse(device, vf, namespace)
        return found

    def instance(self, node: Node, index: int, endpoints: dict[str, DeviceUse]) -> Instance | None:
        key = ("instances", index)
        self.origins.places[key] = self.tree.location(node.line)
        self.known(node, ("id",), node.name, nodes=("resources",))
        number = self.number(node, "id", key, subject=node.name)
        if number is not None and not 1 <= number <= MAX_INSTANCE_ID:
            self.problem(
                "id-out-of-range",
                f"Instance id {number} is out of range",
                subject=node.name,
                at=self.line_of(node, "id"),
                explanation=f"Ids run from 1 to {MAX_INSTANCE_ID}; 0 is the host",
                suggestion="Leave the id out: a free one is chosen",
            )
        resources = node.child("resources")
        if resources is None:
            self.problem(
                "no-resources",
                "Instance has no resources",
                subject=node.name,
                at=node.line,
                suggestion="Add 'resources { cpus = <...>; memory-base = <...>; memory-bytes = <...>; };'",
            )
            return None
        self.known(resources, _INSTANCE_PROPERTIES, node.name)
        cpus = self.numbers(resources, "cpus", key, required=True, subject=node.name)
        base = self.number(resources, "memory-base", key, required=True, subject=node.name)
        size = self.number(resources, "memory-bytes", key, required=True, subject=node.name)
        numa = self.numbers(resources, "numa-nodes", key, subject=node.name) or ()
        affinity = self.text(resources, "cpu-affinity", key, node.name)
        policy = self.text(resources, "memory-policy", key, node.name)
        devices = self.instance_devices(node, resources, key, endpoints)
        if cpus is None or base is None or size is None:
            return None
        return Instance(
            node.name, number, tuple(sorted(cpus)), base, size, devices, tuple(sorted(numa)), affinity, policy
        )

    def instance_devices(
        self, node: Node, resources: Node, key: tuple[str | int, ...], endpoints: dict[str, DeviceUse]
    ) -> tuple[DeviceUse, ...]:
        uses: list[DeviceUse] = []
        self.note(resources, "devices", key)
        names = set(self.device_names.values())
        for label, target in self.targets(resources, "devices", node.name):
            if label in endpoints:
                uses.append(endpoints[label])
            elif target is not None and id(target) in self.device_names:
                uses.append(DeviceUse(self.device_names[id(target)]))
            else:
                use = device_use(label)
                # A reference to nothing on a known device lacks its node; on an unknown device, the device is
                # what is missing, and validation says which ones there are.
                if use is None or use.device in names:
                    self.dangling(node.name, label, self.line_of(resources, "devices"), use)
                else:
                    uses.append(use)
        return tuple(uses)

    # -- values ---------------------------------------------------------------------------------------------

    def targets(self, node: Node, name: str, subject: str | None = None) -> list[tuple[str, Node | None]]:
        """Return the labels that a property refers to, each with its node; in a blob, through phandles."""
        found = node.get(name)
        if found is None:
            return []
        if found.values and isinstance(found.values[0], bytes):
            if not self.phandles:
                self.phandles = _phandles(self.tree.root)
            nodes = [
                self.phandles.get(number) for number in self.value(found, Property.numbers, subject) or ()
            ]
            return [(item.labels[0] if item and item.labels else "?", item) for item in nodes]
        references = self.value(found, Property.references, subject) or ()
        return [(reference.label, self.tree.labels.get(reference.label)) for reference in references]

    def value(self, found: Property, read: Callable[[Property], T], subject: str | None) -> T | None:
        try:
            return read(found)
        except WrongType as error:
            self.problem(
                "wrong-type",
                f"Property '{found.name}' {error}",
                subject=subject,
                at=found.line,
                suggestion="See docs/examples/baseline.dts for the form of every property",
            )
            return None

    def note(self, node: Node, name: str, key: tuple[str | int, ...]) -> Property | None:
        """Return the property, and remember where it stands."""
        found = node.get(name)
        if found is not None:
            self.origins.places[(*key, name)] = self.tree.location(found.line)
        return found

    def read(
        self,
        form: Callable[[Property], T],
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        required: bool,
        subject: str | None,
    ) -> T | None:
        found = self.note(node, name, key)
        if found is not None:
            return self.value(found, form, subject or node.name)
        if required:
            self.missing(node, name, subject)
        return None

    def number(
        self,
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        *,
        required: bool = False,
        subject: str | None = None,
    ) -> int | None:
        return self.read(Property.number, node, name, key, required, subject)

    def numbers(
        self,
        node: Node,
        name: str,
        key: tuple[str | int, ...],
        *,
        required: bool = False,
        subject: str | None = None,
    ) -> tuple[int, ...] | None:
        return self.read(Property.numbers, node, name, key, required, subject)

    def text(
        self, node: Node, name: str, key: tuple[str | int, ...], subject: str | None = None
    ) -> str | None:
        return self.read(Property.text, node, name, key, False, subject)

    # -- problems -------------------------------------------------------------------------------------------

    def line_of(self, node: Node, name: str) -> int:
        found = node.get(name)
        return found.line if found else node.line

    def problem(
        self,
        code: str,
        category: str,
        *,
        subject: str | None = None,
        at: int | None = None,
        explanation: str | None = None,
        suggestion: str | None = None,
        severity: str = "ERROR",
    ) -> None:
        self.problems.append(
            Problem(
                code,
                category,
                subject=subject,
                explanation=(explanation,) if explanation else (),
                suggestion=suggestion,
                locations=self.tree.location(at or 0),
                severity=severity,
            )
        )

    def missing(self, node: Node, name: str, subject: str | None) -> None:
        self.problem(
            "missing-property",
            f"Property '{name}' is missing",
            subject=subject or node.name,
            at=node.line,
            suggestion=f"Add '{name} = <...>;' to the node '{node.name}'",
        )

    def dangling(self, subject: str, label: str, line: int, use: DeviceUse | None = None) -> None:
        suggestion = "Define the label, or correct the reference"
        if use is not None and use.vf is not None:
            definition = f"ethernet-vf@{use.vf} {{ parent = <&{use.device}>; vf-id = <{use.vf}>; }};"
            suggestion = f"Define it: {label}: {definition}"
        elif use is not None and use.namespace is not None:
            number = use.namespace
            definition = f"nvme-ns@{number} {{ parent = <&{use.device}>; namespace-id = <{number}>; }};"
            suggestion = f"Define it: {label}: {definition}"
        self.problem(
            "dangling-reference",
            f"Dangling phandle reference: {label} not defined",
            subject=subject,
            at=line,
            suggestion=suggestion,
        )

    def once(self, node: Node, name: str) -> None:
        """Report a section that is written twice; the first one is read."""
        for again in [child for child in node.children if child.name == name][1:]:
            self.problem(
                "duplicate-node",
                f"Node '{name}' appears twice",
                at=again.line,
                suggestion="Merge the two nodes into one",
            )

    def known(
        self, node: Node, names: Iterable[str], subject: str | None = None, nodes: tuple[str, ...] = ()
    ) -> None:
        """Warn about properties and nodes that nothing reads: most are misspelled."""
        allowed = (*names, "phandle", "linux,phandle")
        for found in node.properties:
            if found.name not in allowed:
                self.unknown("Property", found.name, found.line, allowed, subject or node.name)
        for child in node.children:
            if child.name not in nodes:
                self.unknown("Node", child.name, child.line, nodes, subject or node.name)

    def unknown(
        self, what: str, name: str, line: int, allowed: tuple[str, ...], subject: str | None = None
    ) -> None:
        from difflib import get_close_matches  # 3 ms: only where there is something to say

        close = get_close_matches(name, allowed, 1)
        self.problem(
            f"unknown-{what.lower()}",
            f"{what} '{name}' is unknown and has no effect",
            subject=subject,
            at=line,
            suggestion=f"Did you mean '{close[0]}'?" if close else "Remove it",
            severity="WARNING",
        )


def _phandles(root: Node) -> dict[int, Node]:
    found: dict[int, Node] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        stack += node.children
        handle = node.get("phandle")
        if handle is not None and handle.values and isinstance(handle.values[0], bytes):
            found[int.from_bytes(handle.values[0], "big")] = node
    return found
