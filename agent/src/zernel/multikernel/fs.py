# SPDX-License-Identifier: GPL-3.0-or-later
"""The multikernel file system: the one way in which Zernel reads and changes kernel instances.

Two things are accepted: a mount of type ``multikernel`` whose statfs magic is the kernel's, and the
simulation of ``zernel simulate multikernel``, which every output then names. Anything else at that place is
refused.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from contextlib import suppress
from pathlib import Path

from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import mounts
from zernel.record import Record

DEFAULT_ROOT = Path("/sys/fs/multikernel")
SIMULATED_ROOT = Path("/run/zernel/multikernel")
"""Where zernel-multikernel-simulated.service mounts: used when no root is given and no kernel's is
mounted."""
MAGIC = 0x6D6B6673
"""statfs(2) f_type of the kernel's multikernel file system ("mkfs")."""
SIMULATED_TYPE = "fuse.zernel-simulated"
IDENTITY = "SIMULATED.identity"
"""The file of a simulation that tells it from any other: what it held is lost when it ends."""
READY, LOADED, ACTIVE = "ready", "loaded", "active"
"""The statuses of an instance: without a kernel, with one, and with one that runs."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PENDING_SECONDS = 5.0
_MAX_READ, _PIECE = 2 << 20, 64 << 10
TYPE_CHECKING = False  # as in zernel.record
if TYPE_CHECKING:
    from zernel.devicetree.model import Instance


def has_kernel(status: str | None) -> bool:
    """Say whether an instance with this status has a kernel, running or not: it is not deleted then, and
    nothing is taken from it. None, or a word that is no status of the three, is no kernel."""
    return status in (LOADED, ACTIVE)


class Transaction(Record):
    """``overlays/tx_N``: its number, its status (pending, applied, failed or removed), and its overlay."""

    id: int
    status: str
    instance: str
    dtbo: bytes


class MultikernelFs(Record):
    """An open multikernel file system. ``simulated`` says that no kernel is behind it.

    ``foreseen`` is for dry runs: instances by name as they would be, None for one that would be gone, in
    place of what the kernel shows.
    """

    root: Path
    simulated: bool
    foreseen: tuple[tuple[str, Instance | None], ...] = ()

    @property
    def label(self) -> str | None:
        """The line that every text output carries when nothing is real."""
        if not self.simulated:
            return None
        return f"SIMULATED: {self.root} is served by 'zernel simulate multikernel', no kernel is behind it"

    @property
    def cpuinfo(self) -> Path:
        """Where the CPUs of this kernel's host are listed: /proc/cpuinfo, or the simulation's own."""
        return self.root / "SIMULATED.cpuinfo" if self.simulated else Path("/proc/cpuinfo")

    @property
    def cpu_topology(self) -> Path:
        """Where this kernel shows what it keeps of CPUs, also of those taken offline: debugfs, or the
        simulation's own."""
        return self.root / "SIMULATED.topology" if self.simulated else Path("/sys/kernel/debug/x86/topo/cpus")

    @property
    def iomem(self) -> Path:
        """Where this kernel lists memory: /proc/iomem, or the simulation's own."""
        return self.root / "SIMULATED.iomem" if self.simulated else Path("/proc/iomem")

    @property
    def identity(self) -> str:
        """What tells this boot of the kernel, or this run of the simulation, from any other: transactions,
        whose numbers start anew with each, are known by it."""
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        if self.simulated:
            with suppress(FileNotFoundError):  # one that an older version of Zernel serves
                return f"{boot}/{self._text(self.root / IDENTITY)}"
        return boot

    def foresee(self, name: str, instance: Instance | None) -> MultikernelFs:
        """Return the file system as it would be with ``instance`` in place of the one called ``name``."""
        return self.but(foreseen=(*((one, to) for one, to in self.foreseen if one != name), (name, instance)))

    # -- reading --------------------------------------------------------------------------------------------

    def baseline(self) -> bytes:
        """Return the blob of ``device_tree``; empty before the first ``zernel init --apply``."""
        return self._read(self.root / "device_tree")

    def transactions(self) -> set[int]:
        """Return the numbers of the transactions there are."""
        names = self._names(self.root / "overlays")
        return {int(name[3:]) for name in names if name.startswith("tx_") and name[3:].isdecimal()}

    def transaction(self, number: int) -> Transaction | None:
        """Return a transaction, or None when it went away. Waits while its status is "pending"."""
        directory = self.root / "overlays" / f"tx_{number}"
        deadline = time.monotonic() + _PENDING_SECONDS
        try:
            while True:
                status = self._text(directory / "status")
                if status != "pending" or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            return Transaction(
                number, status, self._text(directory / "instance"), self._read(directory / "dtbo")
            )
        except FileNotFoundError:
            return None

    def instance_names(self) -> list[str]:
        """Return the names of the instances, sorted."""
        names = set(self._names(self.root / "instances"))
        for name, instance in self.foreseen:
            names = names - {name} if instance is None else names | {name}
        return sorted(names)

    def instance(self, name: str) -> tuple[int, str, bytes]:
        """Return an instance's id, status and device tree; raises FileNotFoundError when it went away.

        One that is foreseen has no tree: `foreseen` tells what it owns.
        """
        foreseen = dict(self.foreseen)
        if name in foreseen:
            instance = foreseen[name]
            if instance is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            return instance.id or 0, READY, b""  # nothing else is ever undone
        directory = self.root / "instances" / name
        number = self._text(directory / "id")
        if not number.isdecimal():
            raise fail(
                "bad-instance-id",
                f"The kernel gives no number as the id of '{name}': {number[:20]!r}",
                suggestion="Check that this kernel's multikernel interface is supported: zernel doctor",
            )
        return int(number), self._text(directory / "status"), self._read(directory / "device_tree")

    def status(self, name: str) -> str | None:
        """Return an instance's status (`READY`, `LOADED`, `ACTIVE`); None when there is no such instance."""
        try:
            if name in dict(self.foreseen):
                return self.instance(name)[1]
            return self._text(self.root / "instances" / name / "status")
        except FileNotFoundError:
            return None

    # -- writing --------------------------------------------------------------------------------------------

    def write_baseline(self, blob: bytes) -> None:
        """Replace the baseline; raises OSError with the kernel's answer."""
        self._write(self.root / "device_tree", blob)

    def write_overlay(self, blob: bytes) -> None:
        """Hand over an overlay; raises OSError when the kernel refuses the write.

        That the write succeeds does not mean that the overlay was applied: its transaction says so.
        """
        self._write(self.root / "overlays" / "new", blob)

    def _write(self, path: Path, blob: bytes) -> None:
        # One write call: the kernel takes a blob whole or not at all. Not Path.write_bytes, which may split
        # it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, blob)
        finally:
            os.close(descriptor)
        if written != len(blob):
            raise OSError(errno.EIO, f"only {written} of {len(blob)} bytes were taken", str(path))

    def _read(self, path: Path) -> bytes:
        try:
            # Not Path.open, which looks at the file's size and whether it is a terminal first: a change of
            # hundreds of instances reads thousands of files while it holds the lock.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = bytearray()
                while len(content) < _MAX_READ and (piece := os.read(descriptor, _PIECE)):
                    content += piece
                return bytes(content)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            # What kernfs answers for a file that was found and whose node was removed since.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error

    def _text(self, path: Path) -> str:
        return self._read(path)[:4096].decode(errors="replace").strip("\0\n ")

    def _names(self, directory: Path) -> list[str]:
        try:
            return [entry.name for entry in directory.iterdir()]
        except FileNotFoundError:
            return []


def open_fs() -> MultikernelFs:
    """Return the multikernel file system of this host.

    ``ZERNEL_MULTIKERNEL_ROOT`` names its root; without it, /sys/fs/multikernel, or else, on a kernel that has
    no such file system, the simulation's own place. Raises `ZernelError` when there is none.
    """
    named = os.environ.get("ZERNEL_MULTIKERNEL_ROOT")
    # Resolved, as mounts have no other name.
    root = mounts.resolved(Path(named)) if named else DEFAULT_ROOT
    found = _recognise(root)
    if found is None and not named and not _kernel_has_it():
        # Never beside a kernel that only lacks its mount: then the simulation is not what was meant.
        found = _recognise(SIMULATED_ROOT)
    if found is not None:
        return found
    raise fail(
        "not-mounted",
        f"No multikernel file system at {root}",
        explanation=_why_not(root),
        suggestion="ZERNEL_MULTIKERNEL_ROOT says so: unset it, or let it name where one is mounted"
        if named
        else "On a multikernel kernel: mount -t multikernel none /sys/fs/multikernel",
        alternative="To try the commands without one: zernel simulate multikernel /run/zernel/multikernel",
    )


def _recognise(root: Path) -> MultikernelFs | None:
    mount = mounts.mount_at(root)
    if mount is None or mount.fstype not in ("multikernel", SIMULATED_TYPE):
        return None
    try:
        magic = mounts.filesystem_magic(root)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise fail(
            "simulation-dead",
            f"The simulation at {root} died and left its mount behind",
            suggestion=f"Unmount it: umount -l {shlex.quote(str(root))}",
        ) from error
    if mount.fstype == "multikernel" and magic != MAGIC:
        raise fail(
            "wrong-magic",
            f"What is mounted at {root} calls itself multikernel and is not",
            explanation=f"Its magic number is {magic:#x}, the kernel's is {MAGIC:#x}",
            suggestion="Check which kernel is running: zernel doctor",
        )
    return MultikernelFs(root, simulated=mount.fstype != "multikernel")


def _why_not(root: Path) -> str:
    mount = mounts.mount_at(root)
    if mount is not None:
        return f"What is mounted there is of type '{mount.fstype}'"
    if not _kernel_has_it():
        return "The running kernel has no multikernel support (no 'multikernel' in /proc/filesystems)"
    return "The running kernel supports it, and it is not mounted"


def _kernel_has_it() -> bool:
    return "multikernel" in Path("/proc/filesystems").read_text(encoding="ascii").split()


def labelled(error: ZernelError, fs: MultikernelFs) -> ZernelError:
    """Return the error with the simulation's label, when nothing is real."""
    if fs.label is None:
        return error
    label = fs.label

    def add(problem: Problem) -> Problem:
        return problem if label in problem.context else problem.but(context=(*problem.context, label))

    return ZernelError(*(add(problem) for problem in error.problems))
