# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes and properties of a device tree, as read from source text or from a blob.

Both readers give the same shape: a property read from source keeps its typed values and its line; one read
from a blob has a single ``bytes`` value, because a blob does not say what its bytes mean. The accessors
(`numbers`, `number`, `text`, `references`) hide the difference.
"""

from __future__ import annotations

import struct

from zernel.errors import Location
from zernel.record import Record


class Reference(Record):
    """``&label`` in the source; ``line`` counts from 1."""

    label: str
    line: int = 0


def as_label(name: str) -> str:
    """Return ``name`` with what a label cannot hold replaced; a name that could be a label is returned as
    is."""
    label = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return f"_{label}" if label[:1].isdigit() else label


def is_made_of(label: str, name: str) -> bool:
    """Say whether a label is what `as_label` makes of a name; of one that could not be a label itself, also
    with a number behind it, which tells it from that of another name."""
    made = as_label(name)
    number = label.removeprefix(f"{made}_")
    return label == made or (made != name and number != label and number.isdecimal())


class Cells(Record):
    """One ``<...>`` list. ``bits`` is the width of a cell: 32 unless ``/bits/`` said otherwise."""

    items: tuple[int | Reference, ...]
    bits: int = 32


Value = Cells | Reference | str | bytes


MAX_NUMBERS = 1 << 16
"""Numbers in one property. No host has more CPUs (8,192), virtual functions or namespaces of one device."""


class WrongType(ValueError):
    """A property holds another kind of value than the one asked for. The text says which one it should
    hold."""


class Property(Record):
    """A property: ``name``, its comma-separated ``values``, and its line (0 when read from a blob)."""

    name: str
    values: tuple[Value, ...] = ()
    line: int = 0

    def numbers(self) -> tuple[int, ...]:
        """Return every cell of every list as unsigned integers, in order; raise `WrongType` for other
        values."""
        found: list[int] = []
        for value in self.values:
            if isinstance(value, Cells):
                for item in value.items:
                    if isinstance(item, Reference):
                        raise WrongType("must hold numbers, not references")
                    found.append(item)
            elif isinstance(value, bytes) and len(value) % 4 == 0:
                found += struct.unpack(f">{len(value) // 4}I", value)
            else:
                raise WrongType("must hold numbers in angle brackets")
            if len(found) > MAX_NUMBERS:
                raise WrongType(f"holds more than {MAX_NUMBERS} numbers")
        return tuple(found)

    def number(self) -> int:
        """Return the value of a 32- or 64-bit property.

        One cell or two mean the same number; one cell may hold more than 32 bits, because the kerf document
        writes ``<0x100000000>`` and ``<0x0 0x400000000>``. Raise `WrongType` for anything else.
        """
        cells = self.numbers()
        if len(cells) == 1:
            return cells[0]
        if len(cells) == 2 and (cells[0] == 0 or max(cells) < 1 << 32):
            return cells[0] << 32 | cells[1]
        if len(cells) == 2:
            raise WrongType("must hold one number: two cells are its upper and its lower 32 bits")
        raise WrongType(f"must hold one number, in one or two cells, not {len(cells)} cells")

    def wide_numbers(self) -> tuple[int, ...]:
        """Return the 64-bit big-endian integers of a blob's property (``u64[]`` of the kernel's formats)."""
        value = self.values[0] if len(self.values) == 1 else b"?"
        if not isinstance(value, bytes) or len(value) % 8:
            raise WrongType("must hold 64-bit numbers")
        return struct.unpack(f">{len(value) // 8}Q", value)

    def texts(self) -> tuple[str, ...]:
        """Return the strings of the property; raise `WrongType` when it does not hold strings alone."""
        found: list[str] = []
        for value in self.values:
            if isinstance(value, str):
                found += value.split("\0")  # what a blob makes of it
            elif isinstance(value, bytes) and value.endswith(b"\0"):
                try:
                    found += value[:-1].decode().split("\0")
                except UnicodeDecodeError:
                    raise WrongType("must hold text") from None
            else:
                raise WrongType("must hold text in double quotes")
        return tuple(found)

    def text(self) -> str:
        """Return the single string of the property."""
        texts = self.texts()
        if len(texts) != 1:
            raise WrongType(f"must hold one text, not {len(texts)}")
        return texts[0]

    def references(self) -> tuple[Reference, ...]:
        """Return the references of ``<&a>, <&b>``; raise `WrongType` when there is anything else."""
        found: list[Reference] = []
        for value in self.values:
            items = value.items if isinstance(value, Cells) else (value,)
            for item in items:
                if not isinstance(item, Reference):
                    raise WrongType("must hold references such as <&eth0>")
                found.append(item)
        return tuple(found)


class Node:
    """A node. ``properties`` and ``children`` keep the order and the duplicates of the source."""

    def __init__(
        self,
        name: str,
        labels: tuple[str, ...] = (),
        properties: list[Property] | None = None,
        children: list[Node] | None = None,
        line: int = 0,
    ) -> None:
        self.name = name
        self.labels = labels
        self.properties = [] if properties is None else properties
        self.children = [] if children is None else children
        self.line = line

    def get(self, name: str) -> Property | None:
        """Return the property called ``name``, or None."""
        return next((found for found in self.properties if found.name == name), None)

    def child(self, name: str) -> Node | None:
        """Return the first child called ``name`` (with its unit address), or None."""
        return next((found for found in self.children if found.name == name), None)

    @property
    def base_name(self) -> str:
        """The name without its unit address."""
        return self.name.partition("@")[0]


class Tree:
    """A whole device tree: its root, its labels, and for source text the file's name and lines."""

    def __init__(
        self,
        root: Node,
        labels: dict[str, Node] | None = None,
        file: str | None = None,
        lines: list[str] | None = None,
    ) -> None:
        self.root = root
        self.labels = {} if labels is None else labels
        self.file = file
        self.lines = [] if lines is None else lines
        self._paths: dict[str, Node] | None = None

    def find(self, path: str) -> Node | None:
        """Return the node at a full path such as ``/resources/devices/ethernet@0``, or None.

        Of nodes with the same path the first is meant.
        """
        if self._paths is None:
            # Indexed once: a walk for each path would be quadratic in the number of nodes.
            self._paths = {"/": self.root}
            stack = [("", self.root)]
            while stack:
                above, node = stack.pop()
                for child in node.children:
                    here = f"{above}/{child.name}"
                    if here not in self._paths:
                        self._paths[here] = child
                        stack.append((here, child))
        return self._paths.get(path)

    def resolve(self, reference: Reference) -> Node | None:
        """Return the node that ``&label`` or ``&{/path}`` names, or None."""
        label = reference.label
        return self.find(label[1:-1]) if label.startswith("{") else self.labels.get(label)

    def adopt_symbols(self) -> None:
        """Take ``/__symbols__``, where ``dtc -@`` keeps labels, out of the tree and give the labels back."""
        symbols = self.root.child("__symbols__")
        if symbols is None:
            return
        self.root.children.remove(symbols)
        found: dict[int, tuple[Node, list[str]]] = {}
        for symbol in symbols.properties:
            try:
                node = self.find(symbol.text())
            except WrongType:
                continue  # what refers to it says that it is not defined
            if node is not None and symbol.name not in self.labels:
                self.labels[symbol.name] = node
                found.setdefault(id(node), (node, []))[1].append(symbol.name)
        for node, labels in found.values():
            node.labels += tuple(labels)

    def location(self, line: int) -> tuple[Location, ...]:
        """Return the place of ``line`` for an error, as a tuple: empty when the tree has no source text."""
        if self.file is None:
            return ()
        if not 1 <= line <= len(self.lines):
            return (Location(self.file),)
        return (Location(self.file, line, self.lines[line - 1].strip()[:200]),)
