# SPDX-License-Identifier: GPL-3.0-or-later
"""A small FUSE server that speaks the kernel's protocol on /dev/fuse itself.

The protocol is that of include/uapi/linux/fuse.h, version 7.31 (Linux 5.4); newer kernels keep speaking it.
No library is used: Debian 12 and 13 package different ones (python3-fusepy is unmaintained, python3-pyfuse3
needs trio, mfusepy is not packaged), and a simulated kernel file system needs a dozen requests.

The server is single-threaded and lets the kernel cache nothing but what never changes, the names in the root
and the attributes of directories: a directory which appears during a write is seen by the next lookup, as
with kernfs.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

from zernel.errors import fail
from zernel.multikernel import mounts

MAX_WRITE = 128 << 10
"""Largest write request. The kernel splits larger writes; `FileSystem.write` must put them together."""

# Request numbers (enum fuse_opcode).
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _SYMLINK, _MKNOD, _MKDIR, _UNLINK = 1, 2, 3, 4, 6, 8, 9, 10
_RMDIR, _RENAME, _LINK, _OPEN, _READ, _WRITE, _STATFS, _RELEASE = 11, 12, 13, 14, 15, 16, 17, 18
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _CREATE, _INTERRUPT = 26, 27, 28, 29, 35, 36
_DESTROY, _BATCH_FORGET, _RENAME2 = 38, 42, 45
_NO_ANSWER = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_EMPTY_ANSWER = (_RELEASEDIR, _DESTROY)
_NOT_PERMITTED = (_SYMLINK, _MKNOD, _UNLINK, _RENAME, _LINK, _CREATE, _RENAME2)

_BIG_WRITES, _ATOMIC_O_TRUNC = 1 << 5, 1 << 3
_FOPEN_DIRECT_IO = 1
_ROOT = 1
_WRITE_HEADER_BYTES = 40
_UNCHANGED_SECONDS = 3600
_TOP = PurePosixPath("/")

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")


class FileSystem(Protocol):
    """What the server serves. Paths are absolute; every method may raise OSError with an errno."""

    def attributes(self, path: PurePosixPath) -> tuple[int, int]:
        """Return mode (with its type bits) and size."""

    def entries(self, path: PurePosixPath) -> list[str]:
        """Return the names in a directory."""

    def read(self, path: PurePosixPath) -> bytes:
        """Return a file's content."""

    def write(self, path: PurePosixPath, handle: int, offset: int, data: bytes) -> int:
        """Take one piece of a write and return the number of bytes taken."""

    def release(self, handle: int) -> None:
        """Forget an open file."""

    def mkdir(self, path: PurePosixPath) -> None:
        """Make a directory."""

    def rmdir(self, path: PurePosixPath) -> None:
        """Remove a directory."""


def serve(mountpoint: Path, source: str, fs: FileSystem, ready: Callable[[], None]) -> None:
    """Mount ``fs`` and serve it until SIGTERM, SIGINT or an unmount from outside; then unmount.

    ``source`` names the mount in /proc/mounts, and its type is ``fuse.SOURCE``. ``ready`` is called once the
    mount is there. Needs root. Raises `ZernelError` or OSError when mounting fails.
    """
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise fail(
            "no-fuse",
            "Cannot open /dev/fuse",
            explanation=error.strerror or str(error),
            suggestion="Run as root, and load the kernel module: modprobe fuse",
        ) from error
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.set_wakeup_fd(waker)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount(source, mountpoint, f"fuse.{source}", flags, options)
        mounted = True
        try:
            mounted = _Server(device, wake, fs).run(ready)
        finally:
            # Closed first: whoever still waits for an answer gets an error instead of hanging.
            os.close(device)
            if mounted:
                mounts.unmount(mountpoint, mounts.MNT_DETACH)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(waker)


class _Server:
    def __init__(self, device: int, wake: int, fs: FileSystem) -> None:
        self.device = device
        self.wake = wake
        self.fs = fs
        self.paths = {_ROOT: _TOP}
        self.nodes = {_TOP: _ROOT}
        self.handles = 0

    def run(self, ready: Callable[[], None]) -> bool:
        """Answer requests. Return whether the mount is still there (False: unmounted from outside)."""
        announced = False
        poll = select.poll()
        poll.register(self.device, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            if any(fd == self.wake for fd, _ in poll.poll()):
                return True
            try:
                request = os.read(self.device, MAX_WRITE + 4096)
            except OSError as error:
                # ENOENT: the request was aborted before it could be read.
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno == errno.ENODEV:
                    return False
                raise
            self.handle(request)
            if not announced:
                # The first request is INIT: from now on the mount works.
                announced = True
                ready()

    def handle(self, request: bytes) -> None:
        length, opcode, unique, node, *_ = _IN.unpack_from(request)
        body = request[_IN.size : length]
        if opcode in _NO_ANSWER:
            return
        number, reply = 0, b""
        try:
            reply = self.answer(opcode, node, body)
        except OSError as error:
            number = error.errno or errno.EIO
        try:
            os.write(self.device, _OUT.pack(_OUT.size + len(reply), -number, unique) + reply)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the caller was killed meanwhile and wants no answer
                raise

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == _INIT:
            return self.init(body)
        path = self.paths.get(node)
        if path is None:
            raise OSError(errno.ESTALE, "stale")
        if opcode == _LOOKUP:
            return self.entry(path / _name(body))
        if opcode in (_GETATTR, _SETATTR):
            # Nothing can be set; a truncation before a write is accepted.
            validity, attributes = self.attributes(path)
            return struct.pack("<QII", validity, 0, 0) + attributes
        if opcode in (_OPEN, _OPENDIR):
            self.handles += 1
            return struct.pack("<QIi", self.handles, _FOPEN_DIRECT_IO if opcode == _OPEN else 0, 0)
        if opcode in (_READ, _WRITE, _READDIR):
            handle, offset, size = struct.unpack_from("<QQI", body)
            if opcode == _READ:
                return self.content(path)[offset : offset + size]
            if opcode == _READDIR:
                return self.directory(path, offset, size)
            data = body[_WRITE_HEADER_BYTES : _WRITE_HEADER_BYTES + size]
            return struct.pack("<II", self.fs.write(path, handle, offset, data), 0)
        if opcode == _RELEASE:
            self.fs.release(struct.unpack_from("<Q", body)[0])
            return b""
        if opcode == _STATFS:
            return struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if opcode == _MKDIR:
            child = path / _name(body[8:])
            self.fs.mkdir(child)
            return self.entry(child)
        if opcode == _RMDIR:
            self.fs.rmdir(path / _name(body))
            return b""
        if opcode in _EMPTY_ANSWER:
            return b""
        raise OSError(errno.EPERM if opcode in _NOT_PERMITTED else errno.ENOSYS, "refused")

    def content(self, path: PurePosixPath) -> bytes:
        try:
            return self.fs.read(path)
        except FileNotFoundError:
            # It was there when it was opened: kernfs answers this when a node was removed meanwhile.
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None

    def init(self, body: bytes) -> bytes:
        major, _minor, readahead, offered = struct.unpack_from("<IIII", body)
        if major != 7:
            raise OSError(errno.EPROTO, "protocol")
        flags = offered & (_BIG_WRITES | _ATOMIC_O_TRUNC)
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, readahead, flags, 0, 0, MAX_WRITE, 1, 0, 0, 0)

    def number(self, path: PurePosixPath) -> int:
        if path not in self.nodes:
            self.nodes[path] = len(self.nodes) + 1
            self.paths[self.nodes[path]] = path
        return self.nodes[path]

    def attributes(self, path: PurePosixPath) -> tuple[int, bytes]:
        """Return for how many seconds the attributes are valid, and the attributes."""
        mode, size = self.fs.attributes(path)
        links = 2 if stat.S_ISDIR(mode) else 1
        # Who looks at the root is to see that the server has died.
        validity = _UNCHANGED_SECONDS if links == 2 and path != _TOP else 0
        packed = _ATTR.pack(self.number(path), size, 0, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)
        return validity, packed

    def entry(self, path: PurePosixPath) -> bytes:
        validity, attributes = self.attributes(path)
        there = _UNCHANGED_SECONDS if path.parent == _TOP else 0
        return struct.pack("<QQQQII", self.number(path), 0, there, validity, 0, 0) + attributes

    def directory(self, path: PurePosixPath, offset: int, size: int) -> bytes:
        reply = bytearray()
        for index, name in enumerate([".", "..", *self.fs.entries(path)]):
            if index < offset:
                continue
            raw = name.encode()
            record = struct.pack("<QQII", index + 1, index + 1, len(raw), 0) + raw
            record += bytes(-len(record) % 8)
            if len(reply) + len(record) > size:
                break
            reply += record
        return bytes(reply)


def _name(body: bytes) -> str:
    return os.fsdecode(body[: body.index(b"\0")])
