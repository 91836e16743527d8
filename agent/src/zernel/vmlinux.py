# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's ELF file out of an image that is not running: a bzImage (Debian's vmlinuz) or a vmlinux.

A bzImage holds the kernel as a compressed ELF file (Documentation/arch/x86/boot.rst, fields
``payload_offset`` and ``payload_length`` of protocol 2.08), compressed with what CONFIG_KERNEL_GZIP, _BZIP2,
_LZMA, _XZ, _LZ4 or _ZSTD chose.
"""

from __future__ import annotations

import bz2
import io
import lzma
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from zernel import files
from zernel.errors import ZernelError, fail
from zernel.record import Record

_SECTOR = 512
_MAX_IMAGE = 1 << 30  # an uncompressed kernel with debug information
_PROGRAM_SECONDS = 120

MAX_KERNEL = 512 << 20
"""Bytes of a decompressed kernel. Debian's have 60 MB; debug information is not in a bzImage."""

_BZIMAGE_HEADER = 0x250  # up to payload_length
_ELF_HEADER = 64
_PIECE = 64 << 10

# e_type, e_machine and p_type of elf(5).
_ET_EXEC, _EM_X86_64 = 2, 62
_PT_LOAD, _PT_INTERP = 1, 3
_MAX_SEGMENTS = 64


class Image(Record):
    """A kernel's ELF file, and how the image held it: gzip, xz, ..., or None for an image that is that file
    itself."""

    elf: bytes
    compression: str | None


class Layout(Record):
    """What an ELF kernel asks of a machine: its entry point, and the bytes from the first physical address
    that it occupies to the last, memory without content (.bss) included."""

    entry: int
    memory_bytes: int


def read(path: Path) -> Image:
    """Return the ELF file in a kernel image.

    :raises ZernelError: ``kernel-image`` with the reason, when it cannot be read or holds no ELF file.
    """
    try:
        if path.stat().st_size > _MAX_IMAGE:
            raise unreadable(path, "it is far larger than a kernel")
        head = files.read_regular(path, _BZIMAGE_HEADER)
        is_elf = head[:4] == b"\x7fELF"
        if not is_elf and not _is_bzimage(head):
            raise unreadable(path, "it is neither a bzImage nor an ELF file")
        data = files.read_regular(path, _MAX_IMAGE)
    except OSError as error:
        raise unreadable(path, str(error.strerror)) from error
    return Image(data, None) if is_elf else _decompress(path, _payload(path, data))


def unreadable(path: Path, why: str) -> ZernelError:
    """Return the error for an image that cannot be used; ``why`` completes "because"."""
    return fail(
        "kernel-image",
        "The kernel image cannot be read",
        subject=str(path),
        explanation=why,
        suggestion="Give the vmlinuz of an x86-64 kernel",
    )


def layout(path: Path, elf: bytes) -> Layout:
    """Return the memory layout of an x86-64 kernel.

    :raises ZernelError: ``kernel-image``, for an ELF file that is damaged, is for another machine, or is a
        program, a library or a module.
    """
    _require_elf64(path, elf)
    kind, machine = struct.unpack_from("<HH", elf, 16)
    if machine != _EM_X86_64:
        raise unreadable(path, f"it is an ELF file for another machine (e_machine {machine}, x86-64 is 62)")
    entry, table = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    if size != 56 or count > _MAX_SEGMENTS or table + size * count > len(elf):
        raise unreadable(path, "its program headers are damaged")
    segments = [struct.unpack_from("<IIQQQQQ", elf, table + size * index) for index in range(count)]
    if any(kind == _PT_INTERP for kind, *_ in segments) or kind != _ET_EXEC:
        raise unreadable(path, "it is an ELF file, and not a kernel")
    # Every kernel has that section for what it frees after its start; no other program has.
    if section(path, elf, b".init.text") is None:
        raise unreadable(path, "it is an ELF file, and not a kernel")
    loaded = [segment for segment in segments if segment[0] == _PT_LOAD]
    for _, _, offset, _, _, in_file, in_memory in loaded:
        if offset + in_file > len(elf) or in_file > in_memory:
            raise unreadable(path, "a segment lies outside the file")
    if not loaded:
        raise unreadable(path, "it has no segment to load")
    first = min(segment[4] for segment in loaded)
    end = max(segment[4] + segment[6] for segment in loaded)
    return Layout(entry, end - first)


def section(path: Path, elf: bytes, wanted: bytes) -> bytes | None:
    """Return a section of a 64-bit little-endian ELF file, or None where there is none of that name."""
    for name, offset, length in _sections(path, elf):
        if name == wanted:
            if offset + length > len(elf):
                raise unreadable(path, f"its section {wanted.decode()} lies outside the file")
            return elf[offset : offset + length]
    return None


def _require_elf64(path: Path, elf: bytes) -> None:
    if len(elf) < _ELF_HEADER or elf[:6] != b"\x7fELF\x02\x01":
        raise unreadable(path, "what it holds is no 64-bit ELF file")


def _sections(path: Path, elf: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each section's name, offset and length."""
    _require_elf64(path, elf)
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    if size < 64 or table + size * count > len(elf) or names_index >= count:
        raise unreadable(path, "its section table is damaged")

    def header(index: int) -> tuple[int, int, int]:
        at = table + index * size
        (name,) = struct.unpack_from("<I", elf, at)
        offset, length = struct.unpack_from("<QQ", elf, at + 24)
        return name, offset, length

    _, names, names_length = header(names_index)
    strings = elf[names : names + names_length]
    for index in range(count):
        name, offset, length = header(index)
        yield strings[name : strings.find(b"\0", name)], offset, length


def _is_bzimage(head: bytes) -> bool:
    version = int.from_bytes(head[0x206:0x208], "little")
    return len(head) >= _BZIMAGE_HEADER and head[0x202:0x206] == b"HdrS" and version >= 0x208


def _payload(path: Path, image: bytes) -> bytes:
    """Return the compressed ELF file of a bzImage."""
    sectors = image[0x1F1] or 4  # 0 means 4, as long ago
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * _SECTOR + offset
    if not 4 <= length <= len(image) - start:
        raise unreadable(path, "its header places the kernel outside the file")
    return image[start : start + length]


def _decompress(path: Path, data: bytes) -> Image:
    """Decompress by magic. Four bytes that hold the size may follow the compressed stream."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return Image(_kernel(path, _inflate(zlib.decompressobj(31), data)), "gzip")
        if data.startswith(b"\xfd7zXZ\x00"):
            return Image(_kernel(path, _inflate(lzma.LZMADecompressor(lzma.FORMAT_XZ), data)), "xz")
        if data.startswith(b"]\x00\x00"):
            return Image(_kernel(path, _inflate(lzma.LZMADecompressor(lzma.FORMAT_ALONE), data)), "lzma")
        if data.startswith(b"BZh"):
            return Image(_kernel(path, _inflate(bz2.BZ2Decompressor(), data)), "bzip2")
        return _decompress_by_program(path, data)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise unreadable(path, f"its compressed part is damaged: {error}") from error


def _kernel(path: Path, pieces: Iterable[bytes]) -> bytes:
    """Return what the pieces make up, of which no more is kept than a kernel may have.

    A small file may stand for any amount of memory, so the first bytes must be those of a kernel.
    """
    kernel = io.BytesIO()  # what it holds is taken out of it without a copy
    looked = False
    for piece in pieces:
        kernel.write(piece)
        if kernel.tell() > MAX_KERNEL:
            size = f"{MAX_KERNEL >> 20} MiB"
            raise unreadable(path, f"its compressed part is larger than {size}, as no kernel is")
        if not looked and kernel.tell() >= _ELF_HEADER:
            _require_elf64(path, bytes(kernel.getbuffer()[:_ELF_HEADER]))
            looked = True
    return kernel.getvalue()


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflate(decompressor: _Decompressor, data: bytes) -> Iterator[bytes]:
    """Yield what comes out in pieces; raises EOFError when the stream does not end."""
    for start in range(0, len(data), _PIECE):
        fed = data[start : start + _PIECE]
        while piece := decompressor.decompress(fed, _PIECE):
            yield piece
            if decompressor.eof:
                return
            fed = getattr(decompressor, "unconsumed_tail", b"")  # zlib's alone does not keep that itself
        if decompressor.eof:
            return
    raise EOFError("it ends too early")


def _decompress_by_program(path: Path, data: bytes) -> Image:
    """Decompress what zstd or lz4 can."""
    program = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(data[:4])
    if program is None:
        raise unreadable(path, f"its compression (magic {data[:4].hex()}) is not known")
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
        source.write(data[:-4])  # without the size that the kernel's build appends, at which both would fail
        source.seek(0)
        with subprocess.Popen(
            [program, "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=complaints
        ) as process:
            stdout = process.stdout
            assert stdout is not None
            limit = threading.Timer(_PROGRAM_SECONDS, give_up, (process,))
            limit.daemon = True
            limit.start()
            try:
                kernel = _kernel(path, iter(lambda: stdout.read(_PIECE), b""))
                process.wait()
            finally:
                limit.cancel()
                process.kill()
        complaints.seek(0)
        said = complaints.read(1000).decode(errors="replace").strip()
    if slow.is_set():
        raise unreadable(path, f"{program} took more than {_PROGRAM_SECONDS:.0f} s")
    if process.returncode != 0 or not kernel.startswith(b"\x7fELF"):
        raise unreadable(path, f"{program}: {said or 'no ELF file came out of it'}")
    return Image(kernel, program)
