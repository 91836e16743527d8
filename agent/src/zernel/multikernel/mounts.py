# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts: what is mounted where, mount(2), umount2(2) and statfs(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
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
    for _, mount in _mounts("self"):
        if mount.path == wanted:
            found = mount
    return found


def first_path(path: Path) -> Path:
    """Return one path for the file system that is mounted at ``path``, whichever of its mounts that names:
    that of the mount with the lowest number. ``path`` itself where nothing is mounted there.

    A bind mount and a second mount show the same device number (the third field of mountinfo).
    """
    wanted = str(resolved(path))
    places = list(_places())
    device = next((device for device, place in reversed(places) if place == wanted), None)
    return next((Path(place) for found, place in places if found == device), Path(wanted))


def mount_of(descriptor: int, process: int | str = "self") -> Mount | None:
    """Return the mount that an open descriptor of ``process`` is on, or None where it is mounted no more.

    What was opened cannot be replaced by another mount behind the caller's back, as a path can. The number
    of the mount stands in /proc/PID/fdinfo (proc_pid_fdinfo(5)).
    """
    lines = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
    wanted = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), None)
    return next((mount for number, mount in _mounts(process) if number == wanted), None)


def _places() -> Iterator[tuple[str, str]]:
    """Yield the device number and the path of every mount whose root is its file system's, lowest first."""
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        found = [line.split(" ", 5)[:5] for line in lines]
    for _, _, device, root, where in sorted(found, key=lambda fields: int(fields[0])):
        if root == "/":
            yield device, _unescaped(where)


def _mounts(process: int | str) -> Iterator[tuple[str, Mount]]:
    """Yield the mounts that a process sees, each with its number."""
    with Path(f"/proc/{process}/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.rstrip("\n").partition(" - ")
            number, _, _, _, where = fields.split(" ")[:5]
            fstype, source = rest.split(" ")[:2]
            yield number, Mount(_unescaped(where), fstype, _unescaped(source))


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


def filesystem_magic(place: Path | int) -> int:
    """Return ``f_type`` of statfs(2), or of fstatfs(2) for a descriptor; Python's os.statvfs leaves it
    out."""
    # struct statfs of 64-bit Linux is 120 bytes and begins with f_type as a long.
    buffer = (ctypes.c_long * 16)()
    if isinstance(place, int):
        _check(_libc().fstatfs(place, buffer), Path(f"descriptor {place}"))
    else:
        _check(_libc().statfs(os.fsencode(place), buffer), place)
    return int(buffer[0])
