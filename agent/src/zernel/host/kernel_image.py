# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads type information out of a kernel image that is not running.

A bzImage holds the kernel as a compressed ELF file (Documentation/arch/x86/boot.rst, fields
``payload_offset`` and ``payload_length`` of protocol 2.08); that file's section ``.BTF`` is what the kernel
shows as /sys/kernel/btf/vmlinux once it runs.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from pathlib import Path

from zernel import files
from zernel.errors import ZernelError, fail

NO_BTF = "kernel-image-no-btf"
"""The error code for a kernel without type information."""

_SECTOR = 512
_MAX_IMAGE = 1 << 30  # an uncompressed kernel with debug information
_PROGRAM_SECONDS = 120

MAX_KERNEL = 512 << 20
"""Bytes of a decompressed kernel. Debian's have 60 MB; debug information is not in a bzImage."""


def btf_of_image(path: Path) -> bytes:
    """Return the BTF data in a bzImage or an ELF kernel.

    :raises ZernelError: ``kernel-image`` with the reason, when it cannot be read or is no kernel;
        ``kernel-image-no-btf`` for a kernel that has none.
    """
    try:
        too_large = path.stat().st_size > _MAX_IMAGE
        data = b"" if too_large else files.read_regular(path, _MAX_IMAGE)
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    if too_large:
        raise _unreadable(path, "it is far larger than a kernel")
    compressed = data[:4] != b"\x7fELF"
    if compressed:
        data = _payload(path, data)
    found = _section(path, data, b".BTF")
    if found is None and not compressed and _section(path, data, b".init.text") is None:
        # Every kernel has that section for what it frees after its start; no other program has.
        raise _unreadable(path, "it is an ELF file, and not a kernel")
    if found is None:
        raise fail(
            NO_BTF,
            "The kernel image has no BTF type information",
            subject=str(path),
            suggestion="Use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    return found


def _unreadable(path: Path, why: str) -> ZernelError:
    return fail(
        "kernel-image",
        "The kernel image cannot be read",
        subject=str(path),
        explanation=why,
        suggestion="Give the vmlinuz of an x86-64 kernel",
    )


def _payload(path: Path, image: bytes) -> bytes:
    """Return the decompressed ELF file of a bzImage."""
    if (
        len(image) < 0x250
        or image[0x202:0x206] != b"HdrS"
        or struct.unpack_from("<H", image, 0x206)[0] < 0x208
    ):
        raise _unreadable(path, "it is neither a bzImage nor an ELF file")
    sectors = image[0x1F1] or 4  # 0 means 4, as long ago
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * _SECTOR + offset
    if not 4 <= length <= len(image) - start:
        raise _unreadable(path, "its header places the kernel outside the file")
    return _decompress(path, image[start : start + length])


def _decompress(path: Path, data: bytes) -> bytes:
    """Decompress by magic. Four bytes that hold the size may follow the compressed stream.

    Nothing is taken beyond `MAX_KERNEL`: a small file may stand for any amount of memory.
    """
    try:
        if data.startswith(b"\x1f\x8b"):
            kernel = zlib.decompressobj(31).decompress(data, MAX_KERNEL + 1)
        elif data.startswith(b"\xfd7zXZ\x00"):
            kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, MAX_KERNEL + 1)
        elif data.startswith(b"]\x00\x00"):
            kernel = lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, MAX_KERNEL + 1)
        elif data.startswith(b"BZh"):
            kernel = bz2.BZ2Decompressor().decompress(data, MAX_KERNEL + 1)
        else:
            kernel = _decompress_by_program(path, data)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise _unreadable(path, f"its compressed part is damaged: {error}") from error
    if len(kernel) > MAX_KERNEL:
        raise _unreadable(path, f"its compressed part is larger than {MAX_KERNEL >> 20} MiB, as no kernel is")
    return kernel


def _decompress_by_program(path: Path, data: bytes) -> bytes:
    """Return what zstd or lz4 make of ``data``, up to one byte more than a kernel may have."""
    program = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(data[:4])
    if program is None:
        raise _unreadable(path, f"its compression (magic {data[:4].hex()}) is not known")
    if shutil.which(program) is None:
        raise fail(
            "kernel-image",
            f"The kernel image is compressed with {program}",
            subject=str(path),
            explanation=f"There is no program '{program}' on this host",
            suggestion=f"Install the package {program}",
        )
    slow = threading.Event()

    def give_up(process: subprocess.Popen[bytes]) -> None:
        slow.set()
        process.kill()

    # Files for input and errors: with one pipe only, neither side can wait for the other.
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as complaints:
        source.write(data)
        source.seek(0)
        with subprocess.Popen(
            [program, "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=complaints
        ) as process:
            assert process.stdout is not None
            limit = threading.Timer(_PROGRAM_SECONDS, give_up, (process,))
            limit.daemon = True
            limit.start()
            try:
                kernel = process.stdout.read(MAX_KERNEL + 1)
            finally:
                limit.cancel()
                process.kill()
        complaints.seek(0)
        said = complaints.read(1000).decode(errors="replace").strip()
    if slow.is_set():
        raise _unreadable(path, f"{program} took more than {_PROGRAM_SECONDS:.0f} s")
    # Its exit status says nothing: it fails at the trailing size, after it has written everything.
    if not kernel.startswith(b"\x7fELF"):
        raise _unreadable(path, f"{program}: {said or 'no ELF file came out of it'}")
    return kernel


def _section(path: Path, elf: bytes, wanted: bytes) -> bytes | None:
    """Return a section of a 64-bit little-endian ELF file."""
    if len(elf) < 64 or elf[:6] != b"\x7fELF\x02\x01":
        raise _unreadable(path, "what it holds is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    if size < 64 or table + size * count > len(elf) or names_index >= count:
        raise _unreadable(path, "its section table is damaged")

    def header(index: int) -> tuple[int, int, int]:
        at = table + index * size
        (name,) = struct.unpack_from("<I", elf, at)
        offset, length = struct.unpack_from("<QQ", elf, at + 24)
        return name, offset, length

    _, names, names_length = header(names_index)
    strings = elf[names : names + names_length]
    for index in range(count):
        name, offset, length = header(index)
        if strings[name : strings.find(b"\0", name)] == wanted:
            if offset + length > len(elf):
                raise _unreadable(path, "its section .BTF lies outside the file")
            return elf[offset : offset + length]
    return None
