# SPDX-License-Identifier: GPL-3.0-or-later
"""What is loaded into an instance: a kernel, an initrd and a command line, checked before anything is asked.

The multikernel kernel takes an uncompressed ELF kernel only, so the one in a bzImage is copied into a sealed
memfd (memfd_create(2)): what was checked is what the kernel reads, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from zernel import vmlinux
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel.kexec import MAX_CMDLINE_BYTES
from zernel.record import Record

MAX_INITRD_BYTES = 4 << 30
"""KEXEC_FILE_SIZE_MAX: what the kernel reads at most."""


class Kernel(Record):
    """A kernel in a memfd: its path and compression (None: none), bytes as ELF file, and memory layout."""

    path: Path
    descriptor: int
    compression: str | None
    elf_bytes: int
    layout: vmlinux.Layout


class Initrd(Record):
    """An open initial RAM disk."""

    path: Path
    descriptor: int
    size: int


class BootFiles(Record):
    """What goes into one load. Descriptors are open as long as `opened` holds them."""

    kernel: Kernel
    initrd: Initrd | None
    cmdline: str

    @property
    def memory_bytes(self) -> int:
        """What the kernel and its initrd need before the kernel has done anything."""
        return self.kernel.layout.memory_bytes + (self.initrd.size if self.initrd else 0)


@contextmanager
def opened(kernel: Path, initrd: Path | None, cmdline: str) -> Iterator[BootFiles | tuple[Problem, ...]]:
    """Open and check what is to be loaded; gives everything that is wrong with it instead, if anything is."""
    problems: list[Problem] = []
    with ExitStack() as stack:
        found = disk = None
        try:
            found = _kernel(kernel, stack)
        except ZernelError as error:
            problems += error.problems
        try:
            disk = _initrd(initrd, stack) if initrd is not None else None
        except ZernelError as error:
            problems += error.problems
        problems += _cmdline_problems(cmdline)
        yield tuple(problems) if problems or found is None else BootFiles(found, disk, cmdline)


def _kernel(path: Path, stack: ExitStack) -> Kernel:
    image = vmlinux.read(path)
    layout = vmlinux.layout(path, image.elf)
    descriptor = os.memfd_create("zernel-vmlinux", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    rest = memoryview(image.elf)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return Kernel(path, descriptor, image.compression, len(image.elf), layout)


def _initrd(path: Path, stack: ExitStack) -> Initrd:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _bad_initrd(path, "It is no regular file")
        os.pread(descriptor, 1, 0)
    except OSError as error:
        raise _bad_initrd(path, error.strerror or str(error)) from error
    if found.st_size == 0:
        raise _bad_initrd(path, "It is empty")
    if found.st_size > MAX_INITRD_BYTES:
        raise _bad_initrd(path, f"It is larger than {MAX_INITRD_BYTES >> 30} GiB, which no kernel reads")
    return Initrd(path, descriptor, found.st_size)


def _bad_initrd(path: Path, why: str) -> ZernelError:
    return fail(
        "initrd",
        "The initrd cannot be used",
        subject=str(path),
        explanation=why,
        suggestion="Give the initrd.img that belongs to the kernel, or leave --initrd out",
    )


def _cmdline_problems(cmdline: str) -> tuple[Problem, ...]:
    raw = os.fsencode(cmdline)
    if any(byte < 0x20 or byte == 0x7F for byte in raw):
        what, instead = "It holds a control character, such as a newline or NUL", "Write it on one line"
    elif len(raw) >= MAX_CMDLINE_BYTES:
        what = f"It has {len(raw)} bytes; the kernel takes {MAX_CMDLINE_BYTES - 1}"
        instead = "Leave out what the kernel or the initrd can do without"
    else:
        return ()
    return fail(
        "cmdline", "The kernel's command line is not possible", explanation=what, suggestion=instead
    ).problems
