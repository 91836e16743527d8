# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel's side of kexec_file_load(2) and reboot(2): states, errors, and what was loaded.

States are those of the multikernel kernel: create gives ready, load loaded, boot active, halt loaded, unload
ready. EBUSY for a load into an instance that has a kernel, ENOENT for an id that no instance has, EINVAL for
flags, commands and states that do not fit, ENOEXEC for what is no x86-64 ELF kernel.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from zernel.multikernel import kexec, mounts
from zernel.multikernel.fs import SIMULATED_TYPE

if TYPE_CHECKING:
    from zernel.multikernel.simulate import SimulatedInstance

FAULTS = {
    "load-einval": "the next load fails with EINVAL",
    "load-enomem": "the next load fails with ENOMEM",
    "load-slow": "the next load takes a second",
    "load-lost": "the next load succeeds and has no effect",
    "unload-lost": "the next unload succeeds and has no effect",
    "boot-failed": "the next boot fails with EIO",
    "boot-lost": "the next boot succeeds and has no effect",
    "halt-ignored": "no halt has an effect until one is forced",
}
_ERRORS = {"load-einval": errno.EINVAL, "load-enomem": errno.ENOMEM, "boot-failed": errno.EIO}
_ELF_HEADER_BYTES = 64


@dataclass(slots=True)
class Loaded:
    """What a load gave an instance; ``initrd_bytes`` is None without an initrd."""

    kernel_bytes: int
    initrd_bytes: int | None
    cmdline: str


@dataclass(slots=True)
class SimulatedKexec:
    """The calls, on the instances of the simulation. ``faults`` is the simulation's queue."""

    faults: list[str]
    instances: Mapping[str, SimulatedInstance]
    loaded: dict[str, Loaded] = field(default_factory=dict)
    numbers: kexec.Numbers = field(default_factory=lambda: kexec.numbers_of(os.uname().machine))

    def report(self) -> bytes:
        """Return what is loaded, by instance, as JSON."""
        return json.dumps({name: asdict(found) for name, found in self.loaded.items()}).encode() + b"\n"

    def take(self, message: bytes) -> None:
        """Carry out a call that `zernel.multikernel.kexec.SimulatedPort` wrote; raises OSError."""
        try:
            request = json.loads(message)
            pid, number, arguments = (request[key] for key in ("pid", "number", "arguments"))
            if number == self.numbers.kexec_file_load:
                self.kexec_file_load(int(pid), *arguments)
            elif number == self.numbers.reboot:
                self.reboot(*arguments)
            else:
                raise refused(errno.ENOSYS)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise refused(errno.EINVAL) from None

    def kexec_file_load(
        self, pid: int, kernel: int, initrd: int, length: int, cmdline: str | None, flags: int
    ) -> None:
        """Load or unload, as ``flags`` say."""
        known = kexec.UNLOAD | kexec.NO_INITRAMFS | kexec.MULTIKERNEL | kexec.ID_MASK
        if flags & ~known or not flags & kexec.MULTIKERNEL:
            raise refused(errno.EINVAL)
        instance = self.find(flags >> kexec.ID_SHIFT)
        if flags & kexec.UNLOAD:
            self.unload(instance)
            return
        fault = self.fault("load")
        if instance.status != "ready":
            raise refused(errno.EBUSY)
        # The length counts the NUL, and there is none but at the end.
        whole = length == (len(cmdline) if cmdline is not None else 0)
        if not whole or (cmdline is not None and cmdline.find("\0") != length - 1):
            raise refused(errno.EINVAL)
        if length > kexec.MAX_CMDLINE_BYTES:
            raise refused(errno.EINVAL)
        header, kernel_bytes = _look(pid, kernel)
        # 64-bit, little-endian, ET_EXEC, EM_X86_64.
        if header[:6] != b"\x7fELF\x02\x01" or header[16:20] != b"\x02\0\x3e\0":
            raise refused(errno.ENOEXEC)
        initrd_bytes = None if flags & kexec.NO_INITRAMFS else _look(pid, initrd)[1]
        if fault != "load-lost":
            text = (cmdline or "").rstrip("\0").encode("latin-1").decode(errors="replace")
            self.loaded[instance.name] = Loaded(kernel_bytes, initrd_bytes, text)
            instance.status = "loaded"

    def unload(self, instance: SimulatedInstance) -> None:
        fault = self.fault("unload")
        if instance.status != "loaded":
            raise refused(errno.EBUSY if instance.status == "active" else errno.EINVAL)
        if fault != "unload-lost":
            del self.loaded[instance.name]
            instance.status = "ready"

    def reboot(self, magic1: int, magic2: int, command: int, args: str) -> None:
        """Boot or halt the instance that ``args`` names."""
        if (magic1, magic2) != (kexec.MAGIC1, kexec.MAGIC2) or len(args) != kexec.BOOT_ARGS.size:
            raise refused(errno.EINVAL)
        (number,) = kexec.BOOT_ARGS.unpack(args.encode("latin-1"))
        instance = self.find(number)
        if command == kexec.BOOT:
            fault = self.fault("boot")
            if instance.status != "loaded":
                raise refused(errno.EBUSY if instance.status == "active" else errno.EINVAL)
            if fault != "boot-lost":
                instance.status = "active"
        elif command in (kexec.HALT, kexec.HALT_FORCE):
            self.halt(instance, force=command == kexec.HALT_FORCE)
        else:
            raise refused(errno.EINVAL)

    def halt(self, instance: SimulatedInstance, *, force: bool) -> None:
        # Forcing is for a loaded one too: a halt may have left a CPU behind.
        if instance.status not in (("active", "loaded") if force else ("active",)):
            raise refused(errno.EINVAL)
        ignored = "halt-ignored" in self.faults
        if ignored and force:
            self.faults.remove("halt-ignored")
        if force or not ignored:
            instance.status = "loaded"

    def find(self, number: int) -> SimulatedInstance:
        for instance in self.instances.values():
            if instance.id == number:
                return instance
        raise refused(errno.ENOENT)

    def fault(self, call: str) -> str | None:
        """Take the next fault for this call from the queue, and fail or wait if it says so."""
        found = next((fault for fault in self.faults if fault.startswith(f"{call}-")), None)
        if found is not None:
            self.faults.remove(found)
            if found in _ERRORS:
                raise refused(_ERRORS[found])
            if found == "load-slow":
                time.sleep(1)
        return found


def _look(pid: int, descriptor: int) -> tuple[bytes, int]:
    """Return the first bytes and the size of a regular file that the caller has open."""
    try:
        mount = mounts.mount_of(descriptor, pid)
        if mount is not None and mount.fstype == SIMULATED_TYPE:
            raise refused(errno.EINVAL)  # one of our own files: we would wait for ourselves
        opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise refused(errno.EBADF) from None
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise refused(errno.EINVAL)
        return os.pread(opened, _ELF_HEADER_BYTES, 0), found.st_size
    finally:
        os.close(opened)


def refused(number: int) -> OSError:
    """Return the error with this number."""
    return OSError(number, os.strerror(number))
