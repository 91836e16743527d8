# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts: what is mounted where, mount(2), umount2(2) and statfs(2)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from zernel.record import Record

MNT_DETACH = 2
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8


class Mount(Record):
    """One line of /proc/self/mountinfo: where, which file system type, which source."""

    path: str
    fstype: str
    source: str


def mount_at(path: Path) -> Mount | None:
    """Return what is mounted exactly at ``path`` (the topmost mount), or None.

    Reads /proc/self/mountinfo (proc_pid_mountinfo(5)) and does not touch the mount itself: a FUSE mount whose
    server died answers no call.
    """
    wanted = str(resolved(path))
    found = None
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.rstrip("\n").partition(" - ")
            where = _unescaped(fields.split(" ")[4])
            if where == wanted:
                fstype, source = rest.split(" ")[:2]
                found = Mount(where, fstype, _unescaped(source))
    return found


def resolved(path: Path) -> Path:
    """Return ``path`` absolute and without symbolic links, without a call into what is mounted there.

    Path.resolve() calls lstat(2) on the last component, which a FUSE mount may never answer; readlink(2) of a
    mount's root ends in the kernel.
    """
    for _ in range(40):  # as many links as the kernel follows (path_resolution(7))
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
        path = absolute.parent.resolve() / absolute.name
        try:
            path = path.parent / path.readlink()
        except OSError:
            break
    return path


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def mount(source: str, path: Path, fstype: str, flags: int, options: str) -> None:
    """Call mount(2); raises OSError."""
    _check(
        _libc().mount(
            source.encode(), os.fsencode(path), fstype.encode(), ctypes.c_ulong(flags), options.encode()
        ),
        path,
    )


def unmount(path: Path, flags: int = 0) -> None:
    """Call umount2(2); raises OSError."""
    _check(_libc().umount2(os.fsencode(path), flags), path)


def filesystem_magic(path: Path) -> int:
    """Return ``f_type`` of statfs(2), which Python's os.statvfs leaves out."""
    # struct statfs of 64-bit Linux is 120 bytes and begins with f_type as a long.
    buffer = (ctypes.c_long * 16)()
    _check(_libc().statfs(os.fsencode(path), buffer), path)
    return int(buffer[0])
