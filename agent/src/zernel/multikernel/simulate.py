# SPDX-License-Identifier: GPL-3.0-or-later
"""The multikernel file system without a kernel behind it: what both versions of the interface have in common.

It follows what is known of the kernels: one write per blob, ``overlays/new`` where **an operation that fails
still makes a successful write** and leaves a transaction with ``status`` "failed", its earlier operations
done, first transaction id 2, EPERM for mkdir. What differs is in `zernel.multikernel.simulate_v1` and
`zernel.multikernel.simulate_v2`. All state is in memory and ends with the mount.

Faults can be queued to test what a program does when the kernel misbehaves; see `FAULTS`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from zernel.devicetree import fdt
from zernel.devicetree.model import MAX_INSTANCE_ID, PAGE_BYTES
from zernel.devicetree.tree import Node, Property, WrongType
from zernel.errors import ZernelError
from zernel.multikernel import simulated_kexec
from zernel.multikernel.fs import IDENTITY
from zernel.multikernel.fuse import MAX_WRITE
from zernel.multikernel.kexec import CONTROL
from zernel.multikernel.simulate_operations import ORDER, Refused
from zernel.multikernel.simulated_kexec import refused
from zernel.multikernel.wire import OVERLAY_COMPATIBLE, POLICIES

SOURCE = "zernel-simulated"
"""The mount's source; its type is ``fuse.zernel-simulated``. Nobody can take it for a kernel's."""
KERNELS = "SIMULATED.kernels"
"""The file that shows what was loaded into the instances, as JSON; a kernel's file system has none."""

OVERLAY_FAULTS = {
    "none": "the next overlay meets no fault",
    "failed": "the next overlay is not applied and its transaction says failed",
    "midway": "of the next overlay only the first operation is applied; its transaction says failed",
    "partial": "the next overlay is applied, and its transaction says failed",
    "fewer": "of the next overlay's new instances only the first CPU is given; its transaction says failed",
    "einval": "the next overlay's write fails with EINVAL",
    "enospc": "the next overlay's write fails with ENOSPC",
    "short": "the next overlay's write takes half of the bytes",
    "lost": "the next overlay's write succeeds and has no effect: no transaction appears",
    "slow": "the next overlay's write takes a second",
}
UNDO_FAULTS = {
    "undo-fails": "version 2: the next rmdir of a transaction fails after its first inverse operation"
}
HIDDEN_POLICIES = "policies-hidden"
STANDING_FAULTS = {
    HIDDEN_POLICIES: "from now on, instances do not show the NUMA nodes and policies they were given"
}
FAULTS = OVERLAY_FAULTS | UNDO_FAULTS | STANDING_FAULTS | simulated_kexec.FAULTS
_NOTICE = b"This file system is SIMULATED by 'zernel simulate multikernel'. No kernel is behind it.\n"
_FIRST_TRANSACTION = 2


@dataclass(slots=True, kw_only=True)
class SimulatedInstance:
    """An instance: what both versions know of it."""

    name: str
    id: int
    cpus: tuple[int, ...]
    devices: tuple[str, ...] = ()
    wishes: tuple[Property, ...] = ()
    """NUMA nodes and policies, kept and shown as they were written."""
    status: str = "ready"


@dataclass(slots=True)
class SimulatedTransaction:
    """One overlay that was written."""

    id: int
    status: str
    instance: str
    resources: str
    dtbo: bytes
    operations: list[tuple[str, Node]] = field(default_factory=list)
    """Each with its target; kept by kernels that undo."""


class SimulatedMultikernel(ABC):
    """The file system's content and behaviour, for `zernel.multikernel.fuse`."""

    def __init__(self, faults: list[str] | None = None) -> None:
        self.faults: list[str] = [] if faults is None else faults
        self.transactions: dict[int, SimulatedTransaction] = {}
        self.writes: dict[int, bytearray] = {}
        self.identity = f"{uuid.uuid4()}\n".encode()
        self.kexec = simulated_kexec.SimulatedKexec(self.faults, self.instances)

    # -- what a version is ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def instances(self) -> Mapping[str, SimulatedInstance]:
        """The instances there are, by name."""

    @abstractmethod
    def root_files(self) -> dict[str, Callable[[], list[str] | bytes]]:
        """Return what makes the files of the root that this version has, ``device_tree`` among them; the
        names in it for a directory."""

    @abstractmethod
    def instance_tree(self, name: str) -> bytes:
        """Return the content of ``instances/NAME/device_tree``."""

    @abstractmethod
    def set_baseline(self, blob: bytes, root: Node) -> None:
        """Take a baseline; raises `Refused` for one that is malformed, OSError for another error."""

    @abstractmethod
    def operations(self, root: Node) -> list[tuple[str, Node]]:
        """Return an overlay's operations, each with its fragment's target; raises `Refused` for none."""

    @abstractmethod
    def operate(self, target: str, operation: Node, transaction: SimulatedTransaction) -> None:
        """Carry out one operation; raises `Refused`, and then it has done nothing."""

    @abstractmethod
    def undo(self, transaction: SimulatedTransaction) -> None:
        """Undo a transaction by rmdir of its directory; raises OSError."""

    # -- what the file system server asks -------------------------------------------------------------------

    def attributes(self, path: PurePosixPath) -> tuple[int, int]:
        """Return mode and size; raises ENOENT."""
        found = self.node(path)
        if not isinstance(found, bytes):
            return stat.S_IFDIR | 0o755, 0
        mode = {"/device_tree": 0o644, "/overlays/new": 0o200, f"/{CONTROL}": 0o200}.get(str(path), 0o444)
        return stat.S_IFREG | mode, len(found)

    def entries(self, path: PurePosixPath) -> list[str]:
        """Return the names in a directory."""
        found = self.node(path)
        if isinstance(found, bytes):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return list(found)

    def read(self, path: PurePosixPath) -> bytes:
        """Return a file's content."""
        found = self.node(path)
        if not isinstance(found, bytes):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return found

    def node(self, path: PurePosixPath) -> Iterable[str] | bytes:
        """Return a directory's names, of which there may be thousands and which are seldom asked for, or a
        file's content."""
        match path.parts[1:]:
            case ():
                return ["SIMULATED", CONTROL, IDENTITY, KERNELS, *self.root_files(), "instances", "overlays"]
            case ("SIMULATED",):
                return _NOTICE
            case (name,) if name == CONTROL:
                return b""
            case (name,) if name == IDENTITY:
                return self.identity
            case (name,) if name == KERNELS:
                return self.kexec.report()
            case ("overlays",):
                return chain(("new",), (f"tx_{number}" for number in self.transactions))
            case ("overlays", "new"):
                return b""
            case ("overlays", name):
                self.transaction(name)
                return ["dtbo", "id", "instance", "resources", "status"]
            case ("overlays", name, file):
                return _file(_transaction_files(self.transaction(name)), file)
            case ("instances",):
                return self.instances.keys()
            case ("instances", name) if name in self.instances:
                return ["device_tree", "id", "status"]
            case ("instances", name, file) if name in self.instances:
                return self.instance_file(self.instances[name], file)
            case (name,) if name in self.root_files():
                return self.root_files()[name]()
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def transaction(self, name: str) -> SimulatedTransaction:
        """Return the transaction whose directory is called ``name``; raises ENOENT."""
        number = name.removeprefix("tx_")
        found = self.transactions.get(int(number)) if number.isascii() and number.isdigit() else None
        if found is None or name != f"tx_{found.id}":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def mkdir(self, path: PurePosixPath) -> None:
        """Refuse, as kernfs does: instances are made by overlays."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def instance_file(self, instance: SimulatedInstance, name: str) -> bytes:
        """Return the content of a file of an instance; raises ENOENT."""
        if name == "device_tree":
            return self.instance_tree(instance.name)
        files = {"id": f"{instance.id}\n".encode(), "status": f"{instance.status}\n".encode()}
        return _file(files, name)

    def rmdir(self, path: PurePosixPath) -> None:
        """Undo a transaction, where the version has that; refuse anything else."""
        self.node(path)
        match path.parts[1:]:
            case ("overlays", name) if name != "new":
                transaction = self.transaction(name)
                self.undo(transaction)
                del self.transactions[transaction.id]
            case _:
                raise refused(errno.EPERM)

    def release(self, handle: int) -> None:
        """Forget what an open file has buffered."""
        self.writes.pop(handle, None)

    def write(self, path: PurePosixPath, handle: int, offset: int, data: bytes) -> int:
        """Take one piece of a write: FUSE splits what the kernel would get as one blob.

        The blob's own header says how long it is; the pieces before the last one are only kept.
        """
        name = str(path)
        if name == f"/{CONTROL}":
            self.kexec.take(data)  # a call is far smaller than one piece
            return len(data)
        if name not in ("/device_tree", "/overlays/new"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        buffer = self.writes.setdefault(handle, bytearray())
        if offset != len(buffer):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        buffer += data
        total = int.from_bytes(buffer[4:8], "big")
        # Pieces before the last one are full, but for a page where the writer's buffer is not aligned.
        last = len(data) < MAX_WRITE - PAGE_BYTES
        number = 0
        if (
            int.from_bytes(buffer[:4], "big") != fdt.MAGIC
            or len(buffer) > total
            or (last and len(buffer) < total)
        ):
            number = errno.EINVAL
        elif total > fdt.MAX_BLOB_BYTES:
            number = errno.EFBIG
        if number:
            self.writes.pop(handle)
            raise OSError(number, os.strerror(number))
        if len(buffer) < total:
            return len(data)
        blob = bytes(self.writes.pop(handle))
        fault = self.overlay_fault() if name == "/overlays/new" else None
        if fault in ("einval", "enospc"):
            number = errno.EINVAL if fault == "einval" else errno.ENOSPC
            raise OSError(number, os.strerror(number))
        if fault == "short":
            return len(data) // 2
        if fault == "slow":
            time.sleep(1)
        if name == "/device_tree":
            self.take_baseline(blob)
        elif fault != "lost":
            self.apply(blob, fault)
        return len(data)

    def overlay_fault(self) -> str | None:
        """Take the next fault for an overlay from the queue; those for the system calls stay in it."""
        found = next((fault for fault in self.faults if fault in OVERLAY_FAULTS), None)
        if found is not None:
            self.faults.remove(found)
        return found

    # -- what the kernel does -------------------------------------------------------------------------------

    def take_baseline(self, blob: bytes) -> None:
        """Hand a blob to the version; EINVAL for a malformed one."""
        try:
            root = fdt.read(blob, "device_tree").root
            instances = root.child("instances")
            if root.child("resources") is None or (instances is not None and instances.children):
                raise Refused("no resources, or instances")
            self.set_baseline(blob, root)
        except (Refused, WrongType, ZernelError):
            raise refused(errno.EINVAL) from None

    def apply(self, blob: bytes, fault: str | None) -> None:
        """Apply an overlay. EINVAL for a blob that is no overlay; else a transaction, applied or failed."""
        try:
            root = fdt.read(blob, "overlay").root
            compatible = root.get("compatible")
            if compatible is None or OVERLAY_COMPATIBLE not in compatible.texts():
                raise Refused("no overlay")
            operations = self.operations(root)
        except (Refused, WrongType, ZernelError):
            raise refused(errno.EINVAL) from None
        # In the kernel's order, whatever the overlay's own order is.
        operations.sort(key=lambda item: ORDER.get(item[1].base_name, 0))
        number = max(self.transactions, default=_FIRST_TRANSACTION - 1) + 1
        transaction = SimulatedTransaction(number, "pending", "", "", blob, operations)
        self.transactions[number] = transaction
        try:
            if fault == "failed":
                raise Refused("fault injected")
            if not operations:
                raise Refused("no operation")
            for target, operation in operations:
                if fault == "fewer":
                    _take_all_but_one_cpu(operation)
                self.operate(target, operation, transaction)
                if fault == "midway":
                    raise Refused("fault injected after the first operation")
            if fault in ("partial", "fewer"):
                raise Refused("fault injected after the operations")
            transaction.status = "applied"
        except (Refused, WrongType):
            transaction.status = "failed"

    def wishes(self, resources: Node) -> tuple[Property, ...]:
        """Return the NUMA nodes and policies that a new instance keeps."""
        if HIDDEN_POLICIES in self.faults:
            return ()
        return tuple(found for found in resources.properties if found.name in POLICIES)

    def choose_id(self, wanted: Property | None) -> int:
        """Return the id for a new instance; raises `Refused` when it is taken or none."""
        taken = {instance.id for instance in self.instances.values()}
        if wanted is None:
            return next(number for number in range(1, MAX_INSTANCE_ID + 1) if number not in taken)
        number = wanted.number()
        if not 1 <= number <= MAX_INSTANCE_ID or number in taken:
            raise Refused(f"id {number}")
        return number


def _take_all_but_one_cpu(operation: Node) -> None:
    resources = operation.child("resources")
    if operation.base_name != "instance-create" or resources is None:
        return
    for index, found in enumerate(resources.properties):
        if found.name == "cpus":
            resources.properties[index] = Property("cpus", (fdt.u64(found.wide_numbers()[0]),))


def _file(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return files[name]


def _transaction_files(transaction: SimulatedTransaction) -> dict[str, bytes]:
    return {
        "id": f"{transaction.id}\n".encode(),
        "status": f"{transaction.status}\n".encode(),
        "instance": f"{transaction.instance}\n".encode(),
        "resources": f"{transaction.resources}\n".encode(),
        "dtbo": transaction.dtbo,
    }


def simulated(version: int, faults: list[str]) -> SimulatedMultikernel:
    """Return a simulation of the first or second version of the interface, with ``faults`` in its queue."""
    from zernel.multikernel.simulate_v1 import SimulatedV1
    from zernel.multikernel.simulate_v2 import SimulatedV2

    return SimulatedV1(faults) if version == 1 else SimulatedV2(faults)
