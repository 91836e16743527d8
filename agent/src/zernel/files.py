# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are replaced whole or not at all, and reads and locks that cannot hang."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from zernel.errors import fail

LOCK_SECONDS = 10.0
"""How long a command waits for another one that holds the lock."""


def read_regular(path: Path, limit: int) -> bytes:
    """Return up to ``limit`` bytes of a regular file; a FIFO or a device, which may never end, is refused.

    :raises OSError: where it cannot be read, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        with os.fdopen(fd, "rb", closefd=False) as file:
            # None: one of /proc that has nothing to say now.
            return file.read(limit) or b""
    finally:
        os.close(fd)


def read_text(path: Path) -> str | None:
    """Return the text of a file, or None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None


def replace(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file by fsync and rename: readers and crashes see the old text or the new, never a part.

    Missing directories above it are made (0755). A file that is replaced keeps its mode and owner;
    ``mode`` is for a new one. Raises OSError, with the old file still in place.
    """
    import tempfile  # 8 ms with what it imports, which reading and locking do without

    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as stream:
            data = content if isinstance(content, bytes) else content.encode(errors="surrogateescape")
            stream.write(data)
            stream.flush()
            try:
                there = path.stat()
            except FileNotFoundError:
                os.fchmod(stream.fileno(), mode)
            else:
                os.fchmod(stream.fileno(), there.st_mode & 0o7777)
                os.fchown(stream.fileno(), there.st_uid, there.st_gid)
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # that of a write, such as ENOSPC, names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file that may be missing, durably."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _sync_directory(path.parent)


@contextlib.contextmanager
def locked(path: Path, others: str = "is at work") -> Iterator[None]:
    """Hold an exclusive flock on ``path``, which is made when missing and never removed.

    ``others`` completes "Another command ...", for the error.

    The kernel drops the lock with the process, so that a killed run leaves nothing to clean up. A file that
    exists is locked on a file system that takes no writes, too.

    :raises ZernelError: ``locked``, with the holder's pid, when another holds it for ``LOCK_SECONDS``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not path.exists():
            raise
        fd = os.open(path, os.O_RDONLY | flags)
    try:
        _acquire(fd, path, others)
        with contextlib.suppress(OSError):  # it is for the error alone: a full disk must not cost the lock
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Say whether another command holds the lock now; False where that cannot be told (no file, no right)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _acquire(fd: int, path: Path, others: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                raise fail(
                    "locked",
                    f"Another command {others}: pid {holder or 'unknown'}",
                    explanation=f"It has held {path} for more than {LOCK_SECONDS:g} seconds",
                    suggestion="Wait for it, or see what it does: "
                    + (f"ps -p {holder} -f" if holder.isdecimal() else f"fuser -v {path}"),
                ) from None
            time.sleep(0.02)


def _sync_directory(path: Path) -> None:
    """Make a rename or removal in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
