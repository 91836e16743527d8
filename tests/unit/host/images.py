# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds small kernel images with type information, good and malformed."""

from __future__ import annotations

import struct

PTR, STRUCT, FUNC, FUNC_PROTO, INT = 2, 4, 12, 13, 1


def btf(*, malformed: bool) -> bytes:
    """BTF with the kernel functions scx_bpf_good(int) and scx_bpf_other; malformed, the latter shows an
    implicit ``struct bpf_prog_aux *`` (Documentation/bpf/btf.rst)."""
    strings = b"\0"
    types: list[bytes] = []

    def text(name: str) -> int:
        nonlocal strings
        offset = len(strings)
        strings += name.encode() + b"\0"
        return offset

    def add(name: str, kind: int, count: int, size_or_type: int, extra: bytes = b"") -> int:
        types.append(struct.pack("<III", text(name) if name else 0, kind << 24 | count, size_or_type) + extra)
        return len(types)

    def function(name: str, *parameters: int) -> None:
        pairs = b"".join(struct.pack("<II", text(f"p{i}"), t) for i, t in enumerate(parameters))
        add(name, FUNC, 1, add("", FUNC_PROTO, len(parameters), 0, pairs))

    number = add("int", INT, 0, 4, struct.pack("<I", 32))
    aux = add("", PTR, 0, add("bpf_prog_aux", STRUCT, 0, 8))
    function("scx_bpf_good", number)
    function("scx_bpf_other", number, *([aux] if malformed else []))
    function("scx_bpf_other_impl", number, aux)
    body = b"".join(types)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return header + body + strings


def elf(
    sections: dict[str, bytes],
    *segments: tuple[int, int, int, int, int],
    kind: int = 2,
    machine: int = 62,
) -> bytes:
    """A 64-bit ELF file (by default ET_EXEC for x86-64). A segment is p_type, p_offset, p_paddr, p_filesz,
    p_memsz."""
    table = b"".join(
        struct.pack("<IIQQQQQQ", p, 5, at, 0, to, size, memory, 1) for p, at, to, size, memory in segments
    )
    begin = 64 + len(table)
    names = b"\0"
    headers = [bytes(64)]
    body = b""
    for name, data in {**sections, ".shstrtab": b""}.items():
        offset = len(names)
        names += name.encode() + b"\0"
        data = names if name == ".shstrtab" else data
        headers.append(struct.pack("<IIQQQQIIQQ", offset, 1, 0, 0, begin + len(body), len(data), 0, 0, 1, 0))
        body += data
    start = b"\x7fELF\x02\x01\x01" + bytes(9)
    start += struct.pack(
        "<HHIQQQIHHHHHH",
        *(kind, machine, 1, 0x1000000, 64, begin + len(body), 0, 64, 56, len(segments)),
        *(64, len(headers), len(headers) - 1),
    )
    return start + table + body + b"".join(headers)


def kernel(memory: int = 1 << 20, **changes: int) -> bytes:
    """An ELF kernel of two segments that takes ``memory`` bytes; a page of each is in the file."""
    code = bytes(range(256)) * 32
    page = 0x1000
    at = 64 + 2 * 56
    segments = [(1, at, 0x1000000, page, page), (1, at + page, 0x1001000, page, memory - page)]
    return elf({".text": code[:page], ".init.text": code[page:]}, *segments, **changes)


def bzimage(payload: bytes) -> bytes:
    """A bzImage around a compressed kernel (Documentation/arch/x86/boot.rst)."""
    image = bytearray(2 * 512 + 64)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<II", image, 0x248, 64, len(payload) + 4)
    return bytes(image) + payload + struct.pack("<I", 0)
