# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads BTF, the kernel's type information: enum values, struct members, kernel functions.

The format is that of Documentation/bpf/btf.rst. The kernel's own BTF has some 150,000 types in 6 MB, so one
pass notes where each type starts (about 60 ms) and everything else is read when asked for. Every offset
and count that comes from the data is checked against its bounds: damaged data raises ``ZernelError``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zernel.errors import ZernelError, fail

VMLINUX = Path("/sys/kernel/btf/vmlinux")

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_MAX_BYTES = 64 << 20  # ten times the kernel's own BTF today
_MAX_CHAIN = 32  # typedefs, const and volatile in front of a type
_MAX_NESTING = 8  # anonymous structs and unions inside each other

# 32-bit words after a type's three common ones: fixed, and per element of its list (vlen).
_EXTRA_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_ELEMENT_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
# Kinds that are looked up by name.
_NAMED = (STRUCT, UNION, ENUM, FUNC, DATASEC, ENUM64)
# How the names of the functions begin that sched_ext offers to BPF programs.
_SCX_FUNCTIONS = (b"scx_bpf_", b"__scx_bpf_", b"bpf_iter_scx_")
_SKIPPED = (CONST, VOLATILE, RESTRICT, TYPEDEF, TYPE_TAG)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct: its type's id, its offset in bytes; ``bits`` is 0 unless it is a bit field."""

    type_id: int
    offset: int
    bits: int = 0


class Btf:
    """BTF data, read on demand. Type ids are those of the data; 0 is void."""

    def __init__(self, data: bytes, source: str = "BTF") -> None:
        """Index ``data``; ``source`` names it in errors."""
        self._source = source
        if len(data) < _HEADER.size:
            raise self._damaged("it is shorter than a header")
        magic, version, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise self._damaged(
                f"magic {magic:#06x} version {version} is not BTF version 1 of this byte order"
            )
        if len(data) > _MAX_BYTES:
            raise self._damaged(f"{len(data)} bytes are more than the {_MAX_BYTES} read here")
        types, strings = header + type_off, header + str_off
        if header < _HEADER.size or types % 4 or type_len % 4:
            raise self._damaged("its header places types off a 4-byte boundary")
        if types + type_len > len(data) or strings + str_len > len(data) or not str_len:
            raise self._damaged("its header places types or strings outside the data")
        self._strings = bytes(data[strings : strings + str_len])
        if self._strings[0] or self._strings[-1]:
            raise self._damaged("its strings are not terminated")
        self._words = memoryview(bytes(data[types : types + type_len])).cast("I")
        self._starts, self._by_kind = self._index()

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX) -> Btf:
        """Read the running kernel's BTF.

        :raises ZernelError: ``no-btf`` when the kernel has none.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise fail(
                "no-btf",
                "This kernel gives no BTF type information",
                explanation=f"{path}: {error.strerror}",
                suggestion="Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as every Debian kernel is",
            ) from error
        return cls(data, str(path))

    def __len__(self) -> int:
        """Return the number of types, void among them."""
        return len(self._starts)

    def kind(self, type_id: int) -> int:
        """Return the type's kind; 0 for void."""
        return (self._words[self._start(type_id) + 1] >> 24) & 0x1F if type_id else 0

    def name(self, type_id: int) -> str:
        """Return the type's name, empty for an anonymous type."""
        return self._string(self._words[self._start(type_id)]) if type_id else "void"

    def find(self, name: str, kind: int) -> int | None:
        """Return the id of the first type of that name; ``kind`` is one of those that ``_NAMED`` lists."""
        return next(iter(self._named(kind, self._offsets(_whole(name)))), None)

    def has_function(self, name: str) -> bool:
        """Tell whether the data has a function of that name (a kfunc, in a kernel's BTF)."""
        return self.find(name, FUNC) is not None

    def resolve(self, type_id: int) -> int:
        """Return the type behind typedefs, const, volatile, restrict and type tags."""
        for _ in range(_MAX_CHAIN):
            if self.kind(type_id) not in _SKIPPED:
                return type_id
            type_id = self._words[self._start(type_id) + 2]
        raise self._damaged(f"type {type_id} does not end")

    def size(self, type_id: int) -> int:
        """Return the size in bytes of an integer, enum, struct, union, pointer, array or section."""
        elements = 1
        for _ in range(_MAX_CHAIN):
            type_id = self.resolve(type_id)
            kind, start = self.kind(type_id), self._start(type_id)
            if kind != ARRAY:
                break
            elements *= self._words[start + 5]
            type_id = self._words[start + 3]
        if kind == PTR:
            return 8 * elements
        if kind in (INT, ENUM, ENUM64, STRUCT, UNION, DATASEC, FLOAT):
            return self._words[start + 2] * elements
        raise self._damaged(f"type {type_id} of kind {kind} has no size")

    def members(self, type_id: int) -> dict[str, Member]:
        """Return the named members of a struct or union, those of anonymous ones inside it included."""
        return dict(self._members(type_id, 0, 0))

    def has_member(self, struct_name: str, member: str) -> bool:
        """Tell whether ``struct struct_name`` exists and has that member."""
        type_id = self.find(struct_name, STRUCT)
        return type_id is not None and member in self.members(type_id)

    def enum_value(self, name: str, enum: str | None = None) -> int | None:
        """Return an enumerator's value, of 32 or 64 bits, or None if there is none of that name.

        Without ``enum`` the first enumeration that has the name counts.
        """
        words, starts = self._words, self._starts
        names = self._offsets(_whole(name))
        for kind, step in ((ENUM, 2), (ENUM64, 3)):
            ids = self._by_kind[kind]
            if enum is not None:
                ids = self._named(kind, self._offsets(_whole(enum)))
            for type_id in ids:
                start = starts[type_id]
                for at in range(start + 3, start + 3 + step * (words[start + 1] & 0xFFFF), step):
                    if words[at] in names:
                        return self._value(start, at, wide=kind == ENUM64)
        return None

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Return name → (offset, size) of the variables in a data section such as ``.rodata``."""
        found = self.find(section, DATASEC)
        if found is None:
            return {}
        start = self._start(found)
        result = {}
        for at in range(start + 3, start + 3 + 3 * self._vlen(start), 3):
            variable, offset, size = self._words[at : at + 3]
            result[self.name(variable)] = (offset, size)
        return result

    def malformed_kfuncs(self) -> list[str]:
        """Return sched_ext's kernel functions whose prototype shows an argument that callers cannot pass.

        Kernels from 7.0 on give some kfuncs an implicit last argument ``struct bpf_prog_aux *``. A right BTF
        has ``NAME`` without it and ``NAME_impl`` with it; an older pahole leaves it in ``NAME``, and then no
        BPF program that calls NAME can be loaded.
        """
        found = set()
        for func in self._named(FUNC, self._offsets(*_SCX_FUNCTIONS)):
            name = self.name(func)
            parameters = self._parameters(func)
            if not name.endswith("_impl") and parameters and self._is_program_pointer(parameters[-1][1]):
                found.add(name)
        return sorted(found)

    # -- below: the data's format

    def _index(self) -> tuple[list[int], dict[int, list[int]]]:
        """Return where each type starts, in words, and the ids of each kind that is looked up by name."""
        words, total = self._words, len(self._words)
        by_kind: dict[int, list[int]] = {kind: [] for kind in _NAMED}
        # A type's second word holds its kind and count of elements: the same few thousand words come again
        # and again, so what they mean is remembered. This loop is most of the time that reading takes.
        known: dict[int, tuple[int, list[int] | None]] = {}
        starts = [0]
        at = 0
        while at + 3 <= total:
            info = words[at + 1]
            try:
                size, ids = known[info]
            except KeyError:
                kind = (info >> 24) & 0x1F
                if not 0 < kind <= ENUM64:
                    raise self._damaged(f"type {len(starts)} is of the unknown kind {kind}") from None
                size = 3 + _EXTRA_WORDS.get(kind, 0) + _ELEMENT_WORDS.get(kind, 0) * (info & 0xFFFF)
                ids = by_kind.get(kind)
                known[info] = size, ids
            if ids is not None:
                ids.append(len(starts))
            starts.append(at)
            at += size
        if at != total:
            raise self._damaged(f"type {len(starts) - 1} goes past the end")
        return starts, by_kind

    def _start(self, type_id: int) -> int:
        if not 0 < type_id < len(self._starts):
            raise self._damaged(f"there is no type {type_id}")
        return self._starts[type_id]

    def _vlen(self, start: int) -> int:
        return self._words[start + 1] & 0xFFFF

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise self._damaged(f"a name is at {offset}, outside the strings")
        return self._strings[offset : self._strings.index(0, offset)].decode("utf-8", "replace")

    def _offsets(self, *beginnings: bytes) -> set[int]:
        """Return where the strings are that begin so; one that ends in a zero byte is a whole string."""
        found = set()
        for beginning in beginnings:
            # The zero byte that ends the string before: string 0 is empty, so there always is one.
            at = self._strings.find(b"\0" + beginning)
            while at >= 0:
                found.add(at + 1)
                at = self._strings.find(b"\0" + beginning, at + 1)
        return found

    def _named(self, kind: int, offsets: set[int]) -> list[int]:
        """Return the ids of the types of that kind whose names are at one of the offsets."""
        words, starts = self._words, self._starts
        return [type_id for type_id in self._by_kind[kind] if words[starts[type_id]] in offsets]

    def _value(self, start: int, at: int, *, wide: bool) -> int:
        words, bits = self._words, 64 if wide else 32
        value = words[at + 1] | (words[at + 2] << 32 if wide else 0)
        signed = words[start + 1] >> 31  # kind_flag
        return value - (1 << bits) if signed and value >> (bits - 1) else value

    def _members(self, type_id: int, base: int, depth: int) -> Iterator[tuple[str, Member]]:
        if depth > _MAX_NESTING:
            raise self._damaged(f"type {type_id} contains itself, or too deep a nest of anonymous types")
        words, start = self._words, self._start(type_id)
        bit_fields = words[start + 1] >> 31  # kind_flag: the offset holds a size in its upper 8 bits
        for at in range(start + 3, start + 3 + 3 * self._vlen(start), 3):
            name, inner, place = self._string(words[at]), words[at + 1], words[at + 2]
            bits, bit = (place >> 24, place & 0xFFFFFF) if bit_fields else (0, place)
            if name:
                yield name, Member(inner, base + bit // 8, bits)
            elif self.kind(self.resolve(inner)) in (STRUCT, UNION):
                yield from self._members(self.resolve(inner), base + bit // 8, depth + 1)

    def _parameters(self, func: int) -> list[tuple[str, int]]:
        words = self._words
        start = self._start(words[self._start(func) + 2])
        if (words[start + 1] >> 24) & 0x1F != FUNC_PROTO:
            raise self._damaged(f"function {self.name(func)} has no prototype")
        elements = range(start + 3, start + 3 + 2 * self._vlen(start), 2)
        return [(self._string(words[at]), words[at + 1]) for at in elements]

    def _is_program_pointer(self, type_id: int) -> bool:
        pointer = self.resolve(type_id)
        if self.kind(pointer) != PTR:
            return False
        target = self.resolve(self._words[self._start(pointer) + 2])
        return self.kind(target) == STRUCT and self.name(target) == "bpf_prog_aux"

    def _damaged(self, why: str) -> ZernelError:
        return fail(
            "btf-damaged",
            f"{self._source} is not BTF that can be read",
            explanation=why,
            suggestion="Rebuild the kernel or BPF object that it belongs to",
        )


def _whole(name: str) -> bytes:
    return name.encode() + b"\0"


def malformed_kfuncs(path: Path = VMLINUX) -> list[str]:
    """Return the sched_ext kfuncs that the running kernel's BTF describes wrongly; empty when it is right."""
    return Btf.of_kernel(path).malformed_kfuncs()
