# SPDX-License-Identifier: GPL-3.0-or-later
"""What the wire formats have in common: what the kernel takes and shows, as device tree blobs.

There are two kernels' formats, `zernel.multikernel.wire_v1` and `zernel.multikernel.wire_v2`. Which one the
kernel has is told by what its ``device_tree`` shows: `zernel.multikernel.wire_probe` is the one place that
decides, and hands the wire out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeVar

from zernel.devicetree import fdt
from zernel.devicetree.model import Instance, Resources
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.errors import Problem
from zernel.multikernel.changes import Step

T = TypeVar("T")

OVERLAY_COMPATIBLE = "linux,multikernel-overlay"
HOST_COMPATIBLE = "linux,multikernel-host"
POLICIES = ("numa-nodes", "cpu-affinity", "memory-policy")
"""Properties of an instance's resources that say where it would like to be."""


class Wire(ABC):
    """One wire format: blobs for the kernel, and the model from the kernel's blobs."""

    name: str
    places_memory = False
    """Whether the kernel chooses where an instance's memory is. What is planned is a stand-in then."""
    physical_ids = False
    """Whether CPUs go by their physical ids, as nothing tells Linux's numbers for them."""

    @abstractmethod
    def create(self, instance: Instance, resources: Resources | None = None) -> bytes:
        """Return the overlay that creates ``instance``; ``resources`` has the devices' addresses."""

    @abstractmethod
    def remove(self, name: str) -> bytes:
        """Return the overlay that removes the instance called ``name``."""

    @abstractmethod
    def update(self, before: Instance, after: Instance, resources: Resources) -> bytes:
        """Return the overlay with the operations that lead from ``before`` to ``after``, and no other."""

    @abstractmethod
    def read_baseline(self, blob: bytes) -> Resources:
        """Return the inventory behind ``device_tree``; not `Resources.complete` where another program applied
        the baseline, as only the pool is known then. Raises `ZernelError`.
        """

    @abstractmethod
    def read_instance(self, name: str, number: int, blob: bytes) -> Instance | None:
        """Return the instance that its ``device_tree`` describes; None where that does not tell."""

    @abstractmethod
    def concerns(self, instance: str, blob: bytes) -> frozenset[str]:
        """Return the instances that a transaction is about; ``instance`` is the content of that file."""

    def created_by(self, name: str, number: int, blob: bytes) -> Instance | None:
        """Return the instance that an overlay creates, where the format lets overlays tell."""
        return None

    def followed(self, instance: Instance, blob: bytes, resources: Resources) -> Instance:
        """Return what ``instance`` is after the updates that an applied overlay holds for it."""
        return instance

    def refusals(self, steps: Iterable[Step], resources: Resources) -> list[Problem]:
        """Return what this format has no words for in ``steps``, before anything is written."""
        return []

    def renumbered(self, *, physical_ids: bool) -> str | None:
        """Return in words that what was recorded names CPUs by other numbers than those now; None: it does
        not."""
        if physical_ids == self.physical_ids:
            return None
        then, now = ("their physical ids", "Linux's numbers")[:: 1 if physical_ids else -1]
        return f"It names CPUs by {then}, and they go by {now} now"

    def step(self, step: Step, resources: Resources | None) -> bytes:
        """Return the overlay of a step. A removal needs no ``resources``."""
        if step.after is None:
            return self.remove(step.name)
        if step.before is None:
            return self.create(step.after, resources)
        assert resources is not None
        return self.update(step.before, step.after, resources)

    def expected(self, asked: Instance | None, shown: Instance | None) -> Instance | None:
        """Return ``asked`` as the kernel may show it: where it chooses the memory's place, with the place
        that it ``shown`` has."""
        if asked is None or shown is None or not self.places_memory:
            return asked
        return asked.but(memory_base=shown.memory_base)


def overlay(*fragments: Node) -> bytes:
    """Return the blob of an overlay; each fragment holds one node ``__overlay__``."""
    compatible = Property("compatible", (OVERLAY_COMPATIBLE,))
    return fdt.write(Tree(Node("/", properties=[compatible], children=[*fragments])))


def instance_head(instance: Instance) -> list[Property]:
    """Return the properties of an ``instance-create``: the name, and the id where one was chosen."""
    head = [Property("instance-name", (instance.name,))]
    if instance.id is not None:
        head.append(Property("id", (fdt.u32(instance.id),)))
    return head


def policies(instance: Instance) -> list[Property]:
    """Return the properties that say where an instance would like to be."""
    found = []
    # NUMA nodes are 32-bit numbers, unlike CPUs, as kerf writes them.
    if instance.numa_nodes:
        found.append(Property("numa-nodes", (fdt.u32(*instance.numa_nodes),)))
    for name, word in (("cpu-affinity", instance.cpu_affinity), ("memory-policy", instance.memory_policy)):
        if word is not None:
            found.append(Property(name, (word,)))
    return found


def with_policies(instance: Instance, resources: Node) -> Instance:
    """Return ``instance`` with the wishes that the kernel kept of it, none where it shows none."""
    return instance.but(
        numa_nodes=tuple(sorted(_wish(resources, "numa-nodes", Property.numbers) or ())),
        cpu_affinity=_wish(resources, "cpu-affinity", Property.text),
        memory_policy=_wish(resources, "memory-policy", Property.text),
    )


def wished(instance: Instance, blob: bytes) -> Instance | None:
    """Return ``instance`` with the wishes of the overlay that created it, None for one that did not."""
    operation = find(fdt.read(blob, "overlay").root, "instance-create")
    owned = operation.child("resources") if operation else None
    return with_policies(instance, owned) if owned else None


def _wish(resources: Node, name: str, read: Callable[[Property], T]) -> T | None:
    """Return a property that says where an instance would like to be; None when it is not of our form."""
    found = resources.get(name)
    try:
        return read(found) if found else None
    except WrongType:
        return None


def numbers(node: Node | None, name: str) -> tuple[int, ...]:
    """Return the 64-bit numbers of a property; raises `WrongType` when it is missing or holds others."""
    found = node.get(name) if node else None
    if found is None:
        raise WrongType(f"{name} is missing")
    return found.wide_numbers()


def find(root: Node, name: str) -> Node | None:
    """Return a node of this name, wherever it stands, or None."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.name == name:
            return node
        stack += node.children
    return None
