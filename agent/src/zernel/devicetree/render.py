# SPDX-License-Identifier: GPL-3.0-or-later
"""The model as a tree in the kerf document's dialect, and trees as normalised source that dtc compiles.

64-bit values are always written in two cells, and the version mark is ``/dts-v1/;``: the document's own forms
(one wide cell, ``/multikernel-v1/;``) are read, but dtc refuses them.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, count

from zernel.devicetree.model import Device, DeviceUse, Instance, Resources, System
from zernel.devicetree.tree import Cells, Node, Property, Reference, Tree, Value, as_label

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    from collections.abc import Container


def system_tree(system: System) -> Tree:
    """Return the tree of a valid system; reading it back gives an equal model."""
    labels: dict[str, Node] = {}
    root = Node("/", properties=[_text("compatible", "linux,multikernel-host")])
    root.children.append(resources_node(system.resources, labels))
    if system.instances:
        devices = dict(zip((device.name for device in system.resources.devices), labels, strict=True))
        used = {DeviceUse(name): label for name, label in devices.items()}
        endpoints = []
        for use in dict.fromkeys(use for instance in system.instances for use in instance.devices):
            if use not in used:
                endpoints.append(_endpoint(use, devices[use.device], labels))
                used[use] = endpoints[-1].labels[0]
        instances = [_instance(instance, used) for instance in system.instances]
        root.children += [Node("instances", children=instances), *endpoints]
    return Tree(root, labels)


def resources_node(resources: Resources, labels: dict[str, Node] | None = None) -> Node:
    """Return the node ``resources``; the devices' labels are added to ``labels``."""
    cpus, memory = resources.cpus, resources.memory
    children = [
        Node(
            "cpus",
            properties=[
                _cells("total", cpus.total),
                _cells("host-reserved", *cpus.host_reserved),
                _cells("available", *cpus.available),
            ],
        ),
        Node(
            "memory",
            properties=[
                _wide("total-bytes", memory.total_bytes),
                _wide("host-reserved-bytes", memory.host_reserved_bytes),
                _wide("memory-pool-base", memory.pool_base),
                _wide("memory-pool-bytes", memory.pool_bytes),
            ],
        ),
    ]
    if resources.devices:
        seen: Counter[str] = Counter()
        devices = Node("devices")
        names = {device.name for device in resources.devices}
        for device in resources.devices:
            node = _device(device, seen[device.kind])
            seen[device.kind] += 1
            devices.children.append(node)
            if labels is not None:
                label = as_label(device.name)
                node.labels = (label if label == device.name else _unused(label, names | labels.keys()),)
                labels[node.labels[0]] = node
        children.append(devices)
    if resources.numa_nodes:
        numa = Node("numa-nodes")
        for found in resources.numa_nodes:
            numa.children.append(
                Node(
                    f"node@{found.node_id:x}",
                    properties=[
                        _cells("node-id", found.node_id),
                        _wide("memory-base", found.memory_base),
                        _wide("memory-size", found.memory_size),
                        _cells("cpus", *found.cpus),
                    ],
                )
            )
        children.append(Node("topology", children=[numa]))
    return Node("resources", children=children)


def _device(device: Device, unit: int) -> Node:
    # A label exists in source only; the property keeps the name in a blob.
    properties = [_text("label", device.name)]
    if device.compatible is not None:
        properties.append(_text("compatible", device.compatible))
    if device.pci_id is not None:
        properties.append(_text("pci-id", device.pci_id))
    for count_name, number, parts in (
        (
            "sriov-vfs",
            device.sriov_vfs,
            (("host-reserved-vf", device.host_reserved_vf), ("available-vfs", device.available_vfs)),
        ),
        (
            "namespaces",
            device.namespaces,
            (("host-reserved-ns", device.host_reserved_ns), ("available-ns", device.available_ns)),
        ),
    ):
        if number is not None:
            properties.append(_cells(count_name, number))
        properties += [_cells(name, *numbers) for name, numbers in parts if numbers]
    if device.numa_node is not None:
        properties.append(_cells("numa-node", device.numa_node))
    return Node(f"{device.kind}@{unit:x}", (), properties)


def _unused(label: str, labels: Container[str]) -> str:
    """Return ``label``, or where another name became the same one, it with a number."""
    choices = chain((label,), (f"{label}_{number}" for number in count(2)))
    return next(choice for choice in choices if choice not in labels)


def _endpoint(use: DeviceUse, device: str, labels: dict[str, Node]) -> Node:
    """Return the node that stands for a part of a device; ``device`` is the device's label."""
    name, number, key = (
        ("ethernet-vf", use.vf, "vf-id") if use.vf is not None else ("nvme-ns", use.namespace, "namespace-id")
    )
    node = Node(
        f"{name}-{use.device}@{number or 0:x}",
        (_unused(as_label(use.label), labels),),
        [Property("parent", (Cells((Reference(device),)),)), _cells(key, number or 0)],
    )
    labels[node.labels[0]] = node
    return node


def _instance(instance: Instance, labels: dict[DeviceUse, str]) -> Node:
    """Return an instance's node; ``labels`` says which label stands for what is used of a device."""
    properties = [
        _cells("cpus", *instance.cpus),
        _wide("memory-base", instance.memory_base),
        _wide("memory-bytes", instance.memory_bytes),
    ]
    if instance.devices:
        values: tuple[Value, ...] = tuple(Cells((Reference(labels[use]),)) for use in instance.devices)
        properties.append(Property("devices", values))
    if instance.numa_nodes:
        properties.append(_cells("numa-nodes", *instance.numa_nodes))
    if instance.cpu_affinity is not None:
        properties.append(_text("cpu-affinity", instance.cpu_affinity))
    if instance.memory_policy is not None:
        properties.append(_text("memory-policy", instance.memory_policy))
    node = Node(instance.name, children=[Node("resources", properties=properties)])
    if instance.id is not None:
        node.properties.append(_cells("id", instance.id))
    return node


def _cells(name: str, *numbers: int) -> Property:
    return Property(name, (Cells(numbers),))


def _wide(name: str, number: int) -> Property:
    return Property(name, (Cells((number >> 32, number & 0xFFFFFFFF)),))


def _text(name: str, text: str) -> Property:
    return Property(name, (text,))


def source(tree: Tree) -> str:
    """Return the tree as normalised source text."""
    lines = ["/dts-v1/;", ""]
    _write_node(tree.root, 0, lines)
    return "\n".join(lines) + "\n"


def _write_node(node: Node, depth: int, lines: list[str]) -> None:
    indent = "\t" * depth
    labels = "".join(f"{label}: " for label in node.labels)
    lines.append(f"{indent}{labels}{node.name} {{")
    for found in node.properties:
        wide = found.name.endswith(("-bytes", "-base", "-size"))
        values = ", ".join(_write_value(value, wide) for value in found.values)
        lines.append(f"{indent}\t{found.name}{f' = {values}' if values else ''};")
    for child in node.children:
        if lines[-1] != f"{indent}{labels}{node.name} {{":
            lines.append("")
        _write_node(child, depth + 1, lines)
    lines.append(f"{indent}}};")


def _write_value(value: Value, wide: bool) -> str:
    if isinstance(value, str):
        return f'"{"".join(_escaped(character) for character in value)}"'
    if isinstance(value, bytes):
        return f"[{value.hex(' ')}]"
    if isinstance(value, Reference):
        return f"&{value.label}"
    cells = " ".join(
        f"&{item.label}" if isinstance(item, Reference) else f"{item:#x}" if wide else str(item)
        for item in value.items
    )
    return f"<{cells}>" if value.bits == 32 else f"/bits/ {value.bits} <{cells}>"


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    # Anything beyond printable ASCII goes byte by byte, as dtc reads it.
    if " " <= character <= "~":
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
