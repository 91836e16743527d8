# SPDX-License-Identifier: GPL-3.0-or-later
"""The two system calls that give an instance its kernel, start it and stop it.

They are kexec_file_load(2) and reboot(2), with flags and commands of the multikernel kernel. On any other
kernel the same numbers mean something else (0x10 and 0x20 are KEXEC_FILE_NO_CMA and KEXEC_FILE_FORCE_DTB):
a load could replace the *host's* next kernel, an unload drop its crash kernel. So the calls go through a
port that looks at the mounted file system again, right before each call, on a descriptor that stays open
during it; the simulation gets them through a port of its own, which makes no system call.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from zernel.devicetree.model import MAX_INSTANCE_ID
from zernel.errors import fail
from zernel.multikernel import mounts
from zernel.multikernel.fs import MAGIC, MultikernelFs
from zernel.record import Record

MAX_CMDLINE_BYTES = 2048
"""COMMAND_LINE_SIZE of x86-64, the closing NUL included."""

# Flags of kexec_file_load(2). MULTIKERNEL and what follows it are the multikernel kernel's.
UNLOAD, NO_INITRAMFS, MULTIKERNEL = 0x1, 0x4, 0x10
ID_SHIFT, ID_MASK = 5, 0xFFE0

# reboot(2): LINUX_REBOOT_MAGIC1 and 2, and the multikernel kernel's commands.
MAGIC1, MAGIC2 = 0xFEE1DEAD, 0x28121969
BOOT, HALT, HALT_FORCE = 0x4D4B4C49, 0x4D4B4C48, 0x4D4B4C46
BOOT_ARGS = struct.Struct("=i")
"""struct multikernel_boot_args: ``int mk_id``."""

CONTROL = "SIMULATED.calls"
"""The file of the simulated file system that takes calls; a kernel's has no such file."""

Argument = int | bytes | None
"""An argument of a system call: a number, the bytes that a pointer leads to, or NULL."""


class Numbers(Record):
    """The numbers of the two system calls on one architecture."""

    kexec_file_load: int
    reboot: int


NUMBERS = {"x86_64": Numbers(320, 169), "aarch64": Numbers(294, 142)}
"""By ``uname -m``."""


def numbers_of(machine: str) -> Numbers:
    """Return the system call numbers of an architecture; raises `ZernelError` for one that has none here."""
    found = NUMBERS.get(machine)
    if found is None:
        raise fail(
            "unknown-architecture",
            f"The system calls of the architecture '{machine}' are not known",
            explanation=f"Known are {', '.join(NUMBERS)}",
            suggestion="Load kernels on a host of one of these architectures",
        )
    return found


class Port(Protocol):
    """Where a system call goes."""

    def call(self, number: int, *arguments: Argument) -> None:
        """Make the call; raises OSError with its error number."""


class KernelCalls:
    """The calls, encoded for a port. ``number`` is the instance's id; all raise OSError or `ZernelError`."""

    def __init__(self, port: Port, machine: str | None = None) -> None:
        self.port = port
        self.numbers = numbers_of(machine or os.uname().machine)

    def load(self, number: int, kernel: int, initrd: int | None, cmdline: bytes) -> None:
        """Load an ELF kernel from a descriptor, with an initrd from another one; ``cmdline`` has no NUL."""
        flags = _flags(number) | (NO_INITRAMFS if initrd is None else 0)
        # Its length counts the NUL; without a command line the kernel takes NULL.
        text = cmdline + b"\0" if cmdline else None
        length = len(text) if text else 0
        self.port.call(
            self.numbers.kexec_file_load, kernel, -1 if initrd is None else initrd, length, text, flags
        )

    def unload(self, number: int) -> None:
        """Take the loaded kernel out of the instance."""
        self.port.call(self.numbers.kexec_file_load, -1, -1, 0, None, _flags(number) | UNLOAD)

    def boot(self, number: int) -> None:
        """Start the loaded kernel on the instance's CPUs."""
        self._reboot(BOOT, number)

    def halt(self, number: int, *, force: bool) -> None:
        """Stop the running kernel; with ``force``, without asking it to shut down."""
        self._reboot(HALT_FORCE if force else HALT, number)

    def _reboot(self, command: int, number: int) -> None:
        _flags(number)  # only for the check of the number
        self.port.call(self.numbers.reboot, MAGIC1, MAGIC2, command, BOOT_ARGS.pack(number))


def _flags(number: int) -> int:
    """Return the flags that name an instance. A number that does not fit would name another one, or the
    host."""
    if not 1 <= number <= MAX_INSTANCE_ID:
        raise fail(
            "bad-instance-id",
            f"{number} is no instance's id",
            explanation=f"Ids are 1 to {MAX_INSTANCE_ID}; 0 is the host",
            suggestion="Look at the instances: zernel show",
        )
    return MULTIKERNEL | (number << ID_SHIFT & ID_MASK)


def calls_of(fs: MultikernelFs) -> KernelCalls:
    """Return the calls for what is mounted: the kernel's own, or the simulation's."""
    return KernelCalls(SimulatedPort(fs.root) if fs.simulated else SystemPort(fs.root))


class Identity(Record):
    """What an open file system calls itself: its type in mountinfo, and f_type of fstatfs(2)."""

    fstype: str
    magic: int


def identify(descriptor: int) -> Identity:
    """Return the identity of the file system that a descriptor is on; its type is empty where it is mounted
    no more."""
    mount = mounts.mount_of(descriptor)
    return Identity(mount.fstype if mount else "", mounts.filesystem_magic(descriptor))


def system_call(number: int, arguments: tuple[Argument, ...]) -> None:
    """Call syscall(2); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    values = [
        ctypes.c_void_p(None)
        if argument is None
        else ctypes.c_char_p(argument)
        if isinstance(argument, bytes)
        else ctypes.c_long(argument)
        for argument in arguments
    ]
    if libc.syscall(ctypes.c_long(number), *values) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class SystemPort:
    """The running kernel, and only if it is a multikernel one."""

    def __init__(
        self,
        root: Path,
        identify: Callable[[int], Identity] = identify,
        system_call: Callable[[int, tuple[Argument, ...]], None] = system_call,
    ) -> None:
        self.root = root
        self.identify = identify
        self.system_call = system_call

    def call(self, number: int, *arguments: Argument) -> None:
        """Make the call if what is mounted at the root is the kernel's multikernel file system *now*.

        Raises OSError with the call's error number, and `ZernelError` ``not-multikernel`` when there was no
        call.
        """
        try:
            # Held open during the call: what was looked at cannot be unmounted meanwhile.
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = f"{self.root} cannot be opened: {error.strerror}"
        else:
            try:
                found = self.identify(root)
                if found.fstype == "multikernel" and found.magic == MAGIC:
                    return self.system_call(number, arguments)
            finally:
                os.close(root)
            why = f"{self.root} is of type '{found.fstype}', its magic number is {found.magic:#x}"
        raise fail(
            "not-multikernel",
            "The system call was not made: this is no multikernel file system",
            explanation=(why, "On another kernel the call would be for the host's own next kernel"),
            current_state="Nothing was changed",
            suggestion="Check which kernel is running: zernel doctor",
        )


class SimulatedPort:
    """The process behind a simulated file system: it takes the calls through a file, and makes none."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def call(self, number: int, *arguments: Argument) -> None:
        """Hand the call over; raises OSError with the error number that the simulation answers."""
        # Descriptors are this process's: the simulation looks at them through /proc/PID/fd.
        values = [value.decode("latin-1") if isinstance(value, bytes) else value for value in arguments]
        request = json.dumps({"pid": os.getpid(), "number": number, "arguments": values}).encode()
        control = os.open(self.root / CONTROL, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, request)
        finally:
            os.close(control)
