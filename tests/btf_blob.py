# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds BTF data (Documentation/bpf/btf.rst of the kernel) type by type, for tests of its readers."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = range(9, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)
VOID = 0


class BtfBlob:
    """Each method adds a type and returns its id."""

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._count = 0

    def add(
        self, kind: int, name: str = "", last: int = 0, rest: bytes = b"", vlen: int = 0, flag: bool = False
    ) -> int:
        """Add any type: ``last`` is its third word (a size or a type), ``rest`` what follows."""
        info = vlen | kind << 24 | flag << 31
        self._types += struct.pack("<III", self.string(name), info, last) + rest
        self._count += 1
        return self._count

    def string(self, text: str) -> int:
        """Add a string and return where it is."""
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text.encode()) - 1

    def integer(self, name: str = "int", size: int = 4) -> int:
        return self.add(INT, name, size, struct.pack("<I", size * 8))

    def pointer(self, to: int) -> int:
        return self.add(PTR, "", to)

    def array(self, of: int, length: int) -> int:
        return self.add(ARRAY, rest=struct.pack("<III", of, of, length))

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, bits: bool = False
    ) -> int:
        """Members are (name, type, offset in bits); with ``bits`` the top byte of the offset is a width."""
        rest = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.add(kind, name, size, rest, len(members), bits)

    def enum(self, name: str, *values: tuple[str, int], signed: bool = False) -> int:
        rest = b"".join(struct.pack("<II", self.string(n), v & 0xFFFFFFFF) for n, v in values)
        return self.add(ENUM, name, 4, rest, len(values), signed)

    def enum64(self, name: str, *values: tuple[str, int], signed: bool = False) -> int:
        rest = b"".join(
            struct.pack("<III", self.string(n), v & 0xFFFFFFFF, v >> 32 & 0xFFFFFFFF) for n, v in values
        )
        return self.add(ENUM64, name, 8, rest, len(values), signed)

    def function(self, name: str, *parameters: tuple[str, int], result: int = VOID) -> int:
        rest = b"".join(struct.pack("<II", self.string(n), t) for n, t in parameters)
        proto = self.add(FUNC_PROTO, "", result, rest, len(parameters))
        return self.add(FUNC, name, proto, vlen=1)

    def section(self, name: str, *variables: tuple[str, int, int, int]) -> int:
        """Variables are (name, type, offset, size)."""
        ids = [self.add(VAR, n, t, struct.pack("<I", 1)) for n, t, _, _ in variables]
        rest = b"".join(
            struct.pack("<III", i, offset, size)
            for i, (_, _, offset, size) in zip(ids, variables, strict=True)
        )
        return self.add(DATASEC, name, 0, rest, len(variables))

    def bytes(self) -> bytes:
        """Return the whole: header, types, strings."""
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings)
        )
        return header + bytes(self._types) + bytes(self._strings)


def kernel(malformed: bool) -> bytes:
    """Return a kernel's BTF with one right kfunc, and one that is ``malformed`` or right as well."""
    blob = BtfBlob()
    task = blob.pointer(blob.struct("task_struct", 8, ("pid", blob.integer(), 0)))
    aux = blob.pointer(blob.add(CONST, last=blob.struct("bpf_prog_aux", 4)))
    u64 = blob.integer("u64", 8)
    blob.function("scx_bpf_task_cpu", ("p", task))
    blob.function("scx_bpf_kick_cpu_impl", ("cpu", u64), ("aux", aux))
    blob.function("scx_bpf_kick_cpu", ("cpu", u64), *([("aux", aux)] if malformed else []))
    # Not a kfunc of sched_ext: the same last argument is its own business.
    blob.function("bpf_verify", ("aux", aux))
    return blob.bytes()
