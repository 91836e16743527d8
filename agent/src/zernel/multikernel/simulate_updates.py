# SPDX-License-Identifier: GPL-3.0-or-later
"""How the simulated kernel carries out the operations of an update.

An operation is done as a whole or not at all; that those before it stay done is the caller's business. What
the facts leave open is refused: memory that is not added or removed at an end of the instance's one range,
and the removal of the last CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from zernel.devicetree.tree import Node, Property

if TYPE_CHECKING:
    from zernel.multikernel.simulate import SimulatedInstance

T = TypeVar("T")

UPDATES = ("memory-remove", "memory-add", "cpu-remove", "cpu-add", "device-remove", "device-add")
ORDER = {name: place for place, name in enumerate(("instance-create", *UPDATES, "instance-remove"))}
"""The kernel's order of the operations in one overlay."""


class Refused(Exception):
    """An operation that the kernel would not carry out; the text goes into the log only."""


def changed(instance: SimulatedInstance, operation: Node, addresses: dict[str, str]) -> SimulatedInstance:
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
        cpus = tuple(
            number for item in operation.children for number in _property(item, "reg").wide_numbers()
        )
        return replace(instance, cpus=tuple(sorted(_moved(instance.cpus, cpus, add=way == "add"))))
    ids = [_property(item, "pci-id").text() for item in operation.children]
    if not set(ids) <= set(addresses):
        raise Refused("a device that the pool does not have")
    names = tuple(addresses[pci_id] for pci_id in ids)
    return replace(instance, devices=_moved(instance.devices, names, add=way == "add"))


def _moved(owned: tuple[T, ...], items: tuple[T, ...], *, add: bool) -> tuple[T, ...]:
    if len(set(items)) != len(items) or any((item in owned) == add for item in items):
        raise Refused("listed twice, or owned already, or not owned")
    return (*owned, *items) if add else tuple(item for item in owned if item not in items)


def _memory(instance: SimulatedInstance, region: Node, *, add: bool) -> SimulatedInstance:
    numbers = _property(region, "reg").wide_numbers()
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


def _property(node: Node, name: str) -> Property:
    found = node.get(name)
    if found is None:
        raise Refused(f"no {name}")
    return found
