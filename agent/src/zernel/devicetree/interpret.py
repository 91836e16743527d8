# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree to the model, with everything found wrong and where it stands.

The kerf document's dialect is read here; the flat forms of the kernels are in
`zernel.devicetree.kernel_forms`.

Interpretation checks form (which nodes and properties there are, and what kind of value they hold); whether
the values make sense together is `zernel.devicetree.validate`'s business. All problems are collected: a
person who corrects a file should not have to run the command once for every mistake.
"""

from __future__ import annotations

from zernel.devicetree.model import (
    MAX_INSTANCE_ID,
    MAX_NUMA_NODES,
    Cpus,
    Device,
    DeviceUse,
    Instance,
    Memory,
    NumaNode,
    Resources,
    System,
)
from zernel.devicetree.reading import Interpretation, Reader, TooManyProblems
from zernel.devicetree.tree import Node, Property, Tree, is_made_of
from zernel.devicetree.units import device_use

INVENTORY_NODE = "zernel,inventory"
"""Where our own baseline blobs keep the full inventory beside what the kernel reads."""

_ROOT_NODES = ("resources", "instances", INVENTORY_NODE)

MAX_DEVICES = 8192

_INSTANCE_PROPERTIES = (
    "cpus",
    "memory-base",
    "memory-bytes",
    "devices",
    "device-names",
    "numa-nodes",
    "cpu-affinity",
    "memory-policy",
)
_FLAT_DEVICE_PROPERTIES = ("device-type", "device-name", "vendor-id", "device-id")
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


_texts = Property.texts


def interpret(tree: Tree) -> Interpretation:
    """Read the document's dialect out of ``tree``. Never raises for what the tree holds."""
    tree.adopt_symbols()
    reader = _Interpreter(tree)
    try:
        return reader.run()
    except TooManyProblems as stopped:
        return Interpretation(None, reader.origins, stopped.problems)


def is_overlay(tree: Tree) -> bool:
    """Say whether the tree is an overlay: fragments that change another tree."""
    return any(node.child("__overlay__") for node in tree.root.children)


class _Interpreter(Reader):
    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.dialect = "kerf"
        self.device_names: dict[int, str] = {}
        self.known_names: set[str] = set()
        self.aliases: dict[int, str] = {}

    def run(self) -> Interpretation:
        root = self.tree.root
        inventory = None if self.tree.lines else root.child(INVENTORY_NODE)
        resources_node = inventory or root.child("resources")
        resources = None
        if is_overlay(self.tree):
            self.problem(
                "is-overlay",
                "This is an overlay: it changes a tree and is none itself",
                suggestion="Validate it with its baseline: zernel validate --baseline=FILE OVERLAY",
            )
            return Interpretation(None, self.origins, self.problems)
        if resources_node is None:
            self.problem(
                "no-resources",
                "Baseline must contain /resources (hardware inventory)",
                suggestion="Describe the host's CPUs, memory and devices in a node named 'resources'",
            )
        else:
            self.once(root, "resources")
            resources = self.resources(resources_node)
        self.known_names = set(self.device_names.values())
        container = root.child("instances")
        endpoints = self.endpoints(root)
        instances: list[Instance] = []
        if container is not None:
            self.once(root, "instances")
            for node in self.bounded(container, MAX_INSTANCE_ID):
                found = self.instance(node, len(instances), endpoints)
                if found is not None:
                    instances.append(found)
        return Interpretation(
            System(resources, tuple(instances)) if resources is not None else None,
            self.origins,
            self.problems,
            bool(container and container.children),
            self.tree.location(container.children[0].line) if container and container.children else (),
            self.dialect,
        )

    def bounded(self, container: Node | None, most: int) -> list[Node]:
        """Return the nodes in ``container``; beyond ``most`` of them, report it and return the first."""
        nodes = container.children if container else []
        if container and len(nodes) > most:
            self.problem(
                "too-many-nodes",
                f"'{container.name}' holds {len(nodes)} nodes; at most {most} are possible",
                at=container.line,
                suggestion="Check that this is the right file",
            )
        return nodes[:most]

    # -- inventory ------------------------------------------------------------------------------------------

    def resources(self, node: Node) -> Resources | None:
        if node.child("cpus") is None and node.child("memory") is None:
            from zernel.devicetree import kernel_forms  # rare: the document's form needs none of it

            if dialect := kernel_forms.dialect(node):
                self.dialect = dialect
                self.aliases = kernel_forms.aliases(self.tree)
                devices = self.devices(node.child("devices"))
                devices += kernel_forms.live_devices(self, self.aliases)
                return kernel_forms.resources(self, node, devices)
        sections = ("cpus", "memory", "devices", "topology")
        for section in sections:
            self.once(node, section)
        self.known(node, (), nodes=sections)
        cpus_node, memory_node = node.child("cpus"), node.child("memory")
        for name, found in (("cpus", cpus_node), ("memory", memory_node)):
            if found is None:
                self.problem(
                    f"no-{name}",
                    f"/resources must contain '{name}'",
                    at=node.line,
                    explanation=f"There is no node '{name}'",
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
        flat = self.dialect != "kerf"
        for node in self.bounded(container, MAX_DEVICES):
            key = ("devices", len(devices))
            self.origins.lines[key] = node.line
            self.known(node, _DEVICE_PROPERTIES + _FLAT_DEVICE_PROPERTIES * flat)
            name = self.device_name(node, self.text(node, "label", key))
            self.device_names[id(node)] = name
            devices.append(
                Device(
                    name,
                    (self.text(node, "device-type", key) if flat else None) or node.base_name,
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

    def device_name(self, node: Node, label: str | None) -> str:
        """Return what a device is called: its label, or in a flat form its alias or its node's name."""
        if node.labels:
            # What we write keeps a name that is no label in the property, and a label made of it on the node.
            return label if label and is_made_of(node.labels[0], label) else node.labels[0]
        if self.dialect != "kerf":
            return self.aliases.get(id(node)) or node.name.replace("@", "")
        return label or node.name.replace("@", "")

    def numa_nodes(self, topology: Node | None) -> tuple[NumaNode, ...]:
        container = topology.child("numa-nodes") if topology else None
        if topology is not None:
            self.known(topology, (), nodes=("numa-nodes",))
        found: list[NumaNode] = []
        for node in self.bounded(container, MAX_NUMA_NODES):
            key = ("numa-nodes", len(found))
            self.origins.lines[key] = node.line
            self.known(node, ("node-id", "memory-base", "memory-size", "cpus"))
            node_id = self.number(node, "node-id", key, required=True)
            base = self.number(node, "memory-base", key, required=True)
            size = self.number(node, "memory-size", key, required=True)
            cpus = self.numbers(node, "cpus", key, required=True)
            if node_id is not None and base is not None and size is not None and cpus is not None:
                found.append(NumaNode(node_id, base, size, tuple(sorted(cpus))))
        return tuple(found)

    # -- instances ------------------------------------------------------------------------------------------

    def endpoints(self, root: Node) -> dict[int, DeviceUse]:
        """Return what each node of a virtual function or namespace at the root stands for, by its id()."""
        found: dict[int, DeviceUse] = {}
        for node in root.children:
            if node.name in _ROOT_NODES or (self.dialect != "kerf" and self.of_a_kernel(node)):
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
                self.dangling(node.name, label, self.line_of(node, "parent"), known=parent is not None)
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
            found[id(node)] = DeviceUse(device, vf, namespace)
        return found

    def of_a_kernel(self, node: Node) -> bool:
        """Say whether a node of the root is one that kernels' own trees have."""
        from zernel.devicetree import kernel_forms

        return node.name == "aliases" or kernel_forms.is_bridge(node)

    def instance(self, node: Node, index: int, endpoints: dict[int, DeviceUse]) -> Instance | None:
        key = ("instances", index)
        self.origins.lines[key] = node.line
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
        cpus: tuple[int, ...] | None
        if self.dialect != "kerf":
            from zernel.devicetree import kernel_forms

            self.known(resources, _INSTANCE_PROPERTIES, node.name, kernel_forms.memory_nodes(resources))
            cpus = kernel_forms.cpus(self, resources, key, node.name)
            base, size = kernel_forms.memory(self, resources, key, node.name) or (None, None)
        else:
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
        self, node: Node, resources: Node, key: tuple[str | int, ...], endpoints: dict[int, DeviceUse]
    ) -> tuple[DeviceUse, ...]:
        uses: list[DeviceUse] = []
        self.note(resources, "devices", key)
        for label, target in self.targets(resources, "devices", node.name):
            if target is not None and id(target) in endpoints:
                uses.append(endpoints[id(target)])
            elif target is not None and id(target) in self.device_names:
                uses.append(DeviceUse(self.device_names[id(target)]))
            else:
                use = device_use(label) if target is None else None
                # A reference to nothing on a known device lacks its node; on an unknown device, the device is
                # what is missing, and validation says which ones there are.
                if use is None or use.device in self.known_names:
                    line = self.line_of(resources, "devices")
                    self.dangling(node.name, label, line, use, known=target is not None)
                else:
                    uses.append(use)
        names = self.read(_texts, resources, "device-names", key, False, node.name) or ()
        return (*uses, *(device_use(name) or DeviceUse(name) for name in names))
