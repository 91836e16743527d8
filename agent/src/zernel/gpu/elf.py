# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a shared library's file an exported function starts: what a uprobe needs to know.

Reads 64-bit little-endian x86-64 ELF through the dynamic segment, as the loader does, so that stripped
libraries work. The file may be anybody's (a process can map any file under any name): every size is bounded,
every place is checked, and what does not fit is a :class:`ZernelError`, never more work.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from zernel.errors import ZernelError, fail

MAX_SEGMENTS = 64
MAX_DYNAMIC_BYTES = 64 << 10
MAX_SYMBOLS = 1 << 16
"""Exported symbols that are looked at; libcuda has about 850."""
MAX_STRINGS_BYTES = 8 << 20

MAX_NAME_BYTES = 128
"""Longer names match nothing."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")

_X86_64 = 62
_PT_LOAD, _PT_DYNAMIC = 1, 2
_EXECUTABLE = 1
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 4, 5, 6, 10, 0x6FFFFEF5
_STT_FUNC = 2


class SharedLibrary:
    """An open library; the descriptor stays the caller's."""

    def __init__(self, fd: int, name: str) -> None:
        """Read the headers.

        :param name: how errors call the file.
        :raises ZernelError: ``elf-invalid`` when this is no x86-64 library.
        """
        self._fd = fd
        self._name = name
        self._size = os.fstat(fd).st_size
        ident, _, machine, _, _, phoff, _, _, _, phentsize, phnum, *_ = _HEADER.unpack(
            self.read(0, _HEADER.size)
        )
        if ident[:6] != b"\x7fELF\x02\x01" or machine != _X86_64:
            raise self._invalid("it is not a 64-bit x86 ELF file")
        if phentsize != _SEGMENT.size or phnum > MAX_SEGMENTS:
            raise self._invalid("its segment table is out of bounds")
        self._segments = list(_SEGMENT.iter_unpack(self.read(phoff, phnum * _SEGMENT.size)))

    def functions(self, names: Iterable[str]) -> dict[str, int]:
        """Return the file offset of the first instruction of those ``names`` that are exported functions.

        Versions of a symbol are not told apart: the first definition counts.
        :raises ZernelError: ``elf-invalid`` when the symbol table is damaged.
        """
        wanted = {name.encode(): name for name in names}
        dynamic = self._dynamic()
        missing = [tag for tag in (_DT_SYMTAB, _DT_STRTAB, _DT_STRSZ) if tag not in dynamic]
        if missing:
            raise self._invalid("it has no dynamic symbol table")
        size = min(dynamic[_DT_STRSZ], MAX_STRINGS_BYTES)
        strings = self.read(self._offset(dynamic[_DT_STRTAB]), size)
        count = self._symbol_count(dynamic)
        table = self.read(self._offset(dynamic[_DT_SYMTAB]), count * _SYMBOL.size)
        found: dict[str, int] = {}
        for name_at, info, _, section, value, _ in _SYMBOL.iter_unpack(table):
            if info & 0xF != _STT_FUNC or not section or name_at >= len(strings):
                continue
            # Bounded: a damaged table may hold no end of a name for megabytes.
            name = wanted.get(strings[name_at : name_at + MAX_NAME_BYTES].partition(b"\0")[0])
            if name is not None and name not in found:
                found[name] = self._offset(value, executable=True)
        return found

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes of the file at ``offset``.

        :raises ZernelError: ``elf-invalid`` when the file ends before.
        """
        if offset < 0 or offset + size > 1 << 62:
            raise self._invalid("it points outside itself")
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise self._invalid(f"it cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise self._invalid("it ends too early")
        return data

    def _dynamic(self) -> dict[int, int]:
        """Return the dynamic segment as tag: value; the first of a repeated tag."""
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_DYNAMIC:
                size = min(size, MAX_DYNAMIC_BYTES) & ~0xF
                entries: dict[int, int] = {}
                for tag, value in struct.iter_unpack("<QQ", self.read(offset, size)):
                    if tag == 0:
                        break
                    entries.setdefault(tag, value)
                return entries
        raise self._invalid("it has no dynamic segment")

    def _offset(self, address: int, *, executable: bool = False) -> int:
        """Return where in the file the byte lies that is loaded at ``address``."""
        for kind, flags, offset, start, _, size, _, _ in self._segments:
            if (
                kind == _PT_LOAD
                and start <= address < start + size
                and (flags & _EXECUTABLE or not executable)
            ):
                place = int(offset + address - start)
                if place >= self._size:
                    raise self._invalid("it ends too early")
                return place
        raise self._invalid("it points outside its segments")

    def _symbol_count(self, dynamic: dict[int, int]) -> int:
        """Return the number of dynamic symbols, which only the hash tables tell."""
        if _DT_HASH in dynamic:
            count: int = struct.unpack("<II", self.read(self._offset(dynamic[_DT_HASH]), 8))[1]
        elif _DT_GNU_HASH in dynamic:
            count = self._gnu_hash_count(self._offset(dynamic[_DT_GNU_HASH]))
        else:
            raise self._invalid("it has no symbol hash table")
        if count > MAX_SYMBOLS:
            raise self._invalid(f"it has more than {MAX_SYMBOLS} symbols")
        return count

    def _gnu_hash_count(self, at: int) -> int:
        """Return one more than the last symbol that a chain of the GNU hash table reaches."""
        buckets, first, bloom_words, _ = struct.unpack("<IIII", self.read(at, 16))
        if max(buckets, first, bloom_words) > MAX_SYMBOLS:
            raise self._invalid(f"it has more than {MAX_SYMBOLS} symbols")
        at += 16 + 8 * bloom_words
        last = max(struct.unpack(f"<{buckets}I", self.read(at, 4 * buckets)), default=0)
        if last < first:
            return int(first)
        chains = at + 4 * buckets
        while last < MAX_SYMBOLS:
            (value,) = struct.unpack("<I", self.read(chains + 4 * (last - first), 4))
            last += 1
            if value & 1:
                return int(last)
        raise self._invalid(f"it has more than {MAX_SYMBOLS} symbols")

    def _invalid(self, why: str) -> ZernelError:
        return fail(
            "elf-invalid",
            f"The library cannot be probed: {why}",
            subject=self._name,
            suggestion="Check that the file is the library its name says; reinstall its package",
        )
