# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds every copy of a library that a process uses or will use, and where to put probes in it.

A uprobe is on an inode: one attachment covers all processes, present and future, that map it. So what is
looked for are inodes: of the libraries that the host's loader would find, and of those that processes have
mapped, whatever mount namespace they live in and whether or not the file still has a name.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zernel.errors import ZernelError, fail
from zernel.gpu.elf import SharedLibrary
from zernel.gpu.functions import LIBRARIES, Exports, Library

log = logging.getLogger(__name__)

_DELETED = " (deleted)"

# A libcuda's export of drivers 535 to 555: cmpl $0x321cba00,state(%rip); je. A uprobe on the cmpl must be
# single-stepped (about 10 us a hit on a virtual machine), one on the je is emulated (under 1 us). The stack
# is the same at both.
_THUNK = re.compile(rb"\x81\x3d....\x00\xba\x1c\x32\x74", re.DOTALL)
_THUNK_BYTES = 11
_THUNK_JUMP = 10

MAX_MAPS_BYTES = 16 << 20
"""Bytes of one process's maps that are read."""
MAX_STEP_S = 5.0
"""Seconds that one step takes at most, so that whoever waits for it stays responsive."""
MAX_CACHE_BYTES = 16 << 20
MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Inode:
    """What tells one library from another, however it is reached."""

    device: int
    number: int


@dataclass(frozen=True, slots=True)
class Copy:
    """One library that was found. ``path`` led to it then, see :func:`opened`; ``name`` is for people."""

    library: Library
    inode: Inode
    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where a uprobe goes: function, file offset, and whether that is past the thunk's compare."""

    function: str
    offset: int
    past_compare: bool


@contextmanager
def opened(copy: Copy) -> Iterator[int]:
    """Open the very file that was found, for reading, and give its descriptor.

    The process that maps it decides what ``copy.path`` leads to, and can change that at any moment. So the
    path is used this once; whatever is done with the library is done through the descriptor.

    :raises ZernelError: ``library-replaced`` when the path leads to another file now.
    :raises OSError: when it cannot be opened any more.
    """
    # O_NONBLOCK: a file of another's making may be a pipe.
    fd = os.open(copy.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or Inode(status.st_dev, status.st_ino) != copy.inode:
            raise fail(
                "library-replaced",
                "another file has taken its place since it was found",
                subject=copy.name,
                suggestion="Nothing needs to be done: what is there now is found in the next round",
            )
        yield fd
    finally:
        os.close(fd)


def targets(fd: int, name: str, exports: Exports) -> list[Target]:
    """Return where to probe an open library, in the order of ``exports``; what it lacks is left out.

    :param name: how errors call it.
    :raises ZernelError: when it is no library, or lacks a function that is needed.
    """
    library = SharedLibrary(fd, name)
    offsets = library.functions(exports.functions)
    missing = [function for function in exports.needed if function not in offsets]
    if missing:
        raise fail(
            "library-exports",
            f"it does not export {', '.join(missing)}",
            subject=name,
            suggestion="Check that the file is the library its name says; reinstall its package",
        )
    found = []
    for function in exports.functions:
        if function in offsets:
            offset = offsets[function]
            past = bool(_THUNK.match(library.read(offset, _THUNK_BYTES)))
            found.append(Target(function, offset + (_THUNK_JUMP if past else 0), past))
    return found


def installed(library: Library, root: Path = Path("/")) -> list[Copy]:
    """Return the copies that the host's own loader would find, each inode once."""
    copies: dict[Inode, Copy] = {}
    usual = (f"/{directory}/{library.soname}" for directory in library.directories)
    for path in (*loader_cache(root, library.soname), *usual):
        copy = _copy(library, root / path.lstrip("/"), path)
        if copy:
            copies.setdefault(copy.inode, copy)
    return list(copies.values())


def with_installed(found: dict[Inode, Copy], root: Path = Path("/")) -> dict[Inode, Copy]:
    """Return the libraries that are installed, then those of ``found`` that are not among them.

    The host's own come first, so that the copies that a user makes cannot take all the room there is. They
    go by their own path, which stays when the process that uses it ends.
    """
    own = {copy.inode: copy for library in LIBRARIES for copy in installed(library, root)}
    return own | {inode: copy for inode, copy in found.items() if inode not in own}


class ProcessScan:
    """Goes through the processes in slices, so that one slice's time is bounded on a host with many."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._pending: list[int] = []
        self._found: dict[Inode, Copy] = {}

    def start(self) -> None:
        """Begin a new round, unless one is under way."""
        if not self._pending:
            self._pending = sorted(
                int(entry.name) for entry in self._proc.iterdir() if entry.name.isdecimal()
            )
            self._found = {}

    def step(self, budget_s: float) -> dict[Inode, Copy] | None:
        """Read processes for ``budget_s`` seconds of CPU time, and no longer than ``MAX_STEP_S``.

        Return what the round found once it is over, else None.
        """
        # CPU time: on a busy machine most of the time passes while others run.
        cpu_end, end = time.thread_time() + budget_s, time.monotonic() + MAX_STEP_S
        while self._pending:
            for copy in self._copies_of(self._pending.pop()):
                self._found.setdefault(copy.inode, copy)
            if time.thread_time() >= cpu_end or time.monotonic() >= end:
                break
        return self._found if not self._pending else None

    def _copies_of(self, pid: int) -> Iterator[Copy]:
        seen: set[tuple[str, str]] = set()
        for library, span, device, number, name in mapped(self._proc / str(pid)):
            if (device, number) in seen:
                continue
            seen.add((device, number))
            # map_files opens the very inode: right in any mount namespace, and for a deleted file.
            copy = _copy(library, self._proc / str(pid) / "map_files" / span, f"{name} of process {pid}")
            if copy:
                yield copy


def mapped(process: Path) -> Iterator[tuple[Library, str, str, str, str]]:
    """Yield (library, address range, device, inode number, path) of each mapping in /proc/PID of one.

    Nothing when the process is gone, or is another user's and this one may not look.
    """
    try:
        with (process / "maps").open("rb") as stream:
            data = stream.read(MAX_MAPS_BYTES)
    except OSError:
        return
    # Most processes map none of them.
    libraries = [library for library in LIBRARIES if library.stem.encode() in data]
    if not libraries:
        return
    for line in data.split(b"\n"):
        # 7f00-7f01 r--p 00000000 fd:00 123  /usr/lib/x86_64-linux-gnu/libcuda.so.535.261.03
        fields = line.split(None, 5)
        for library in libraries:
            if len(fields) == 6 and library.stem.encode() in fields[5]:
                span, _, _, device, number, path = (os.fsdecode(field) for field in fields)
                path = path.removesuffix(_DELETED)
                if library.names.match(path.rpartition("/")[2]):
                    # maps pads addresses with zeros, names in map_files do not.
                    start, _, end = span.partition("-")
                    yield library, f"{int(start, 16):x}-{int(end, 16):x}", device, number, path


def _copy(library: Library, path: Path, name: str) -> Copy | None:
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Copy(library, Inode(found.st_dev, found.st_ino), path, name)


def loader_cache(root: Path, soname: str) -> list[str]:
    """Return the paths that the loader's cache (/etc/ld.so.cache) has for ``soname``."""
    try:
        with (root / "etc/ld.so.cache").open("rb") as stream:
            return cached_paths(stream.read(MAX_CACHE_BYTES), soname)
    except OSError:
        return []


def cached_paths(data: bytes, soname: str) -> list[str]:
    """Return the paths for ``soname`` in the bytes of an ld.so.cache (glibc's format 1.1)."""
    start = data.find(b"glibc-ld.so.cache1.1")
    if start < 0 or len(data) < start + 48:
        return []
    (count,) = struct.unpack_from("<I", data, start + 20)
    # An entry: flags, name, path (both offsets from the start of this format), OS version, capabilities.
    entries = data[start + 48 : start + 48 + 24 * count]
    paths = []
    for _, key, value, _, _ in struct.iter_unpack("<iIIIQ", entries[: len(entries) // 24 * 24]):
        if data.startswith(soname.encode() + b"\0", start + key):
            path = data[start + value : start + value + MAX_PATH_BYTES].partition(b"\0")[0]
            paths.append(os.fsdecode(path))
    return paths


def usable(copy: Copy, exports: Exports) -> tuple[list[Target], str | None]:
    """Return the targets in ``copy``, and None or the reason why it cannot be probed."""
    try:
        with opened(copy) as fd:
            return targets(fd, copy.name, exports), None
    except (ZernelError, OSError) as error:
        return [], reason(error)


def reason(error: ZernelError | OSError) -> str:
    """Return why a library cannot be probed, as part of a sentence."""
    if isinstance(error, ZernelError):
        return error.problems[0].category
    return error.strerror or str(error)
