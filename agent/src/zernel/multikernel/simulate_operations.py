# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations of overlays, as both versions of the simulated kernel have them.

An operation is done as a whole or not at all; that those before it stay done is the caller's business.
"""

from __future__ import annotations

from typing import TypeVar

from zernel.devicetree.tree import Node, Property

T = TypeVar("T")

UPDATES = ("memory-remove", "memory-add", "cpu-remove", "cpu-add", "device-remove", "device-add")
ORDER = {name: place for place, name in enumerate(("instance-create", *UPDATES, "instance-remove"))}
"""The kernel's order of the operations in one overlay."""


class Refused(Exception):
    """An operation that the kernel would not carry out; the text goes into the log only."""


def moved(owned: tuple[T, ...], items: tuple[T, ...], *, add: bool) -> tuple[T, ...]:
    """Return what is owned after items came or went; raises `Refused` unless each of them can."""
    if len(set(items)) != len(items) or any((item in owned) == add for item in items):
        raise Refused("listed twice, or owned already, or not owned")
    return (*owned, *items) if add else tuple(item for item in owned if item not in items)


def required(node: Node, name: str) -> Property:
    """Return a property; raises `Refused` when there is none."""
    found = node.get(name)
    if found is None:
        raise Refused(f"no {name}")
    return found


def wide(node: Node, name: str) -> tuple[int, ...]:
    """Return the 64-bit numbers of a property."""
    return required(node, name).wide_numbers()


def wide_one(node: Node, name: str) -> int:
    """Return the one 64-bit number of a property."""
    numbers = wide(node, name)
    if len(numbers) != 1:
        raise Refused(f"{name} holds {len(numbers)} numbers")
    return numbers[0]


def text(node: Node, name: str) -> str:
    """Return the one text of a property."""
    return required(node, name).text()
