# SPDX-License-Identifier: GPL-3.0-or-later
"""Flattened device trees (DTB and DTBO): bytes to a `Tree` and back.

The format is version 17 of the Devicetree Specification 0.4, chapter 5. This reader and writer are our own,
not pylibfdt's, for two reasons: pylibfdt cannot be installed into a virtual environment without SWIG and a
compiler, and its import costs as much as reading and validating a whole baseline. The tests check it against
dtc and libfdt in both directions.
"""

from __future__ import annotations

import struct

from zernel.devicetree.tree import Cells, Node, Property, Reference, Tree, Value
from zernel.errors import ZernelError, fail

MAGIC = 0xD00DFEED
MAX_BLOB_BYTES = 1 << 20
"""What the multikernel file system takes in one write."""

_HEADER = struct.Struct(">10I")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_MAX_DEPTH = 32
_MAX_NAME_BYTES = 255
"""The specification gives properties 31 bytes, but the properties of /__symbols__ have the names of labels,
which dtc does not bound."""


def u32(*numbers: int) -> bytes:
    """Return the numbers as 32-bit big-endian cells."""
    return struct.pack(f">{len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    """Return the numbers as 64-bit big-endian integers."""
    return struct.pack(f">{len(numbers)}Q", *numbers)


def strings(*texts: str) -> bytes:
    """Return the texts, each with a closing NUL."""
    return b"".join(text.encode() + b"\0" for text in texts)


def write(tree: Tree) -> bytes:
    """Return the blob of ``tree``.

    Labels go into ``/__symbols__``, as ``dtc -@`` writes them, and referenced nodes get phandles. Raise
    ValueError for what a blob cannot hold: a number over 32 bits in one cell, a reference that does not
    resolve.
    """
    writer = _Writer(tree)
    return writer.blob()


class _Writer:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.struct = bytearray()
        self.strings = bytearray()
        self.offsets: dict[str, int] = {}
        self.phandles: dict[int, int] = {}
        self.paths: dict[int, str] = {}

    def blob(self) -> bytes:
        self.number_references()
        self.node(self.tree.root, "")
        self.struct += u32(_END)
        reserved = bytes(16)
        struct_at = _HEADER.size + len(reserved)
        strings_at = struct_at + len(self.struct)
        total = strings_at + len(self.strings)
        header = _HEADER.pack(
            MAGIC, total, struct_at, strings_at, _HEADER.size, 17, 16, 0, len(self.strings), len(self.struct)
        )
        return header + reserved + bytes(self.struct) + bytes(self.strings)

    def number_references(self) -> None:
        stack = [(self.tree.root, "")]
        while stack:
            node, path = stack.pop()
            self.paths[id(node)] = path or "/"
            stack += [(child, f"{path}/{child.name}") for child in node.children]
            for found in node.properties:
                for value in found.values:
                    for item in value.items if isinstance(value, Cells) else ():
                        if isinstance(item, Reference):
                            self.phandles.setdefault(id(self.target(item)), len(self.phandles) + 1)

    def target(self, reference: Reference) -> Node:
        node = self.tree.resolve(reference)
        if node is None:
            raise ValueError(f"reference &{reference.label} does not resolve")
        return node

    def node(self, node: Node, path: str) -> None:
        """Write ``node``. The depth is bounded by the reader and by `zernel.devicetree.dts`."""
        self.struct += u32(_BEGIN_NODE) + _padded(strings("" if not path else node.name))
        for found in node.properties:
            self.property(found.name, b"".join(self.encode(value) for value in found.values))
        if id(node) in self.phandles and node.get("phandle") is None:
            self.property("phandle", u32(self.phandles[id(node)]))
        for child in node.children:
            self.node(child, f"{path}/{child.name}")
        if not path and self.tree.labels:
            self.struct += u32(_BEGIN_NODE) + _padded(strings("__symbols__"))
            for label, labelled in self.tree.labels.items():
                self.property(label, strings(self.paths[id(labelled)]))
            self.struct += u32(_END_NODE)
        self.struct += u32(_END_NODE)

    def property(self, name: str, value: bytes) -> None:
        if name not in self.offsets:
            self.offsets[name] = len(self.strings)
            self.strings += strings(name)
        self.struct += u32(_PROP, len(value), self.offsets[name]) + _padded(value)

    def encode(self, value: Value) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return strings(value)
        if isinstance(value, Reference):
            return strings(self.paths[id(self.target(value))])
        cells = bytearray()
        for item in value.items:
            number = self.phandles[id(self.target(item))] if isinstance(item, Reference) else item
            if number >= 1 << value.bits:
                raise ValueError(f"{number:#x} does not fit in a cell of {value.bits} bits")
            cells += number.to_bytes(value.bits // 8, "big")
        return bytes(cells)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def read(blob: bytes, file: str) -> Tree:
    """Return the tree of ``blob``; ``file`` names it in errors. Raises `ZernelError` for anything
    malformed."""
    try:
        return _read(blob, file)
    except (ValueError, struct.error, IndexError) as error:
        raise _malformed(file, str(error)) from None


def _malformed(file: str, what: str) -> ZernelError:
    return fail(
        "dtb-malformed",
        "Malformed device tree blob",
        subject=file,
        explanation=what[:1].upper() + what[1:],
        suggestion="Compile the blob again from its source",
    )


def _read(blob: bytes, file: str) -> Tree:
    if len(blob) < _HEADER.size:
        raise ValueError(f"{len(blob)} bytes are too few for a header")
    magic, total, struct_at, strings_at, _, version, compatible, _, strings_size, struct_size = (
        _HEADER.unpack_from(blob)
    )
    if magic != MAGIC:
        raise ValueError(f"the magic number is {magic:#010x}, not {MAGIC:#010x}")
    if total > len(blob):
        raise ValueError(f"the header says {total} bytes, there are {len(blob)}")
    if version < 17 or compatible > 17:
        raise ValueError(f"version {version} (compatible with {compatible}) is not supported")
    if struct_at % 4 or struct_at + struct_size > total or strings_at + strings_size > total:
        raise ValueError("the header points outside of the blob")
    names = blob[strings_at : strings_at + strings_size]
    return Tree(_read_nodes(blob[struct_at : struct_at + struct_size], names), file=file)


def _read_nodes(data: bytes, names: bytes) -> Node:
    at = 0
    stack: list[Node] = []
    root: Node | None = None
    # Properties share names: without this, a blob of 4 MiB could hold the same long one 100,000 times over.
    known: dict[int, str] = {}
    while True:
        (token,) = struct.unpack_from(">I", data, at)
        at += 4
        if token == _BEGIN_NODE:
            end = data.index(b"\0", at)
            node = Node(data[at:end].decode())
            at = (end + 4) & ~3
            if stack:
                stack[-1].children.append(node)
            elif root is None:
                root = node
            else:
                raise ValueError("there are two root nodes")
            stack.append(node)
            if len(stack) > _MAX_DEPTH:
                raise ValueError(f"nodes are nested deeper than {_MAX_DEPTH} levels")
        elif token == _PROP:
            length, offset = struct.unpack_from(">II", data, at)
            at += 8
            if at + length > len(data) or not stack:
                raise ValueError("a property lies outside of the tree")
            name = known.get(offset)
            if name is None:
                name = known[offset] = _name(names, offset)
            stack[-1].properties.append(Property(name, (data[at : at + length],)))
            at = (at + length + 3) & ~3
        elif token == _END_NODE:
            if not stack:
                raise ValueError("a node ends that never began")
            stack.pop()
        elif token == _END:
            break
        elif token != _NOP:
            raise ValueError(f"unknown token {token:#x}")
    if root is None or stack:
        raise ValueError("the tree ends within a node")
    root.name = "/"
    return root


def _name(names: bytes, offset: int) -> str:
    end = names.find(b"\0", offset, offset + _MAX_NAME_BYTES + 1)
    if end < 0:
        raise ValueError(
            f"the name of a property lies outside of the blob or is over {_MAX_NAME_BYTES} bytes"
        )
    return names[offset:end].decode()
