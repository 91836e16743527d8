# SPDX-License-Identifier: GPL-3.0-or-later
"""The behaviour of the multikernel file system (v1) without a kernel behind it.

It follows what is known of the kernel's first version: one write per blob, `device_tree` replaced
as a whole, ``overlays/new`` where **an operation that fails still makes a successful write** and leaves a
transaction with ``status`` "failed", first transaction id 2, EPERM for mkdir and for rmdir of a transaction.
Where the kernel's behaviour is not known (the content of an instance's ``device_tree`` and of a transaction's
``resources``), it keeps to the overlay's own properties. All state is in memory and ends with the mount.

Faults can be queued to test what a program does when the kernel misbehaves; see `FAULTS`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from zernel.devicetree import fdt
from zernel.devicetree.model import MAX_INSTANCE_ID, PAGE_BYTES
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.devicetree.units import device_use, format_cpus
from zernel.errors import ZernelError
from zernel.multikernel import simulated_kexec
from zernel.multikernel.fuse import MAX_WRITE
from zernel.multikernel.kexec import CONTROL
from zernel.multikernel.overlay import OVERLAY_COMPATIBLE
from zernel.multikernel.simulate_updates import ORDER, UPDATES, Refused, changed

SOURCE = "zernel-simulated"
"""The mount's source; its type is ``fuse.zernel-simulated``. Nobody can take it for a kernel's."""
KERNELS = "SIMULATED.kernels"
"""The file that shows what was loaded into the instances, as JSON; a kernel's file system has none."""

OVERLAY_FAULTS = {
    "none": "the next overlay meets no fault",
    "failed": "the next overlay is not applied and its transaction says failed",
    "midway": "of the next overlay only the first operation is applied; its transaction says failed",
    "partial": "the next overlay is applied, and its transaction says failed",
    "einval": "the next overlay's write fails with EINVAL",
    "enospc": "the next overlay's write fails with ENOSPC",
    "short": "the next overlay's write takes half of the bytes",
    "lost": "the next overlay's write succeeds and has no effect: no transaction appears",
    "slow": "the next overlay's write takes a second",
}
FAULTS = OVERLAY_FAULTS | simulated_kexec.FAULTS
_NOTICE = b"This file system is SIMULATED by 'zernel simulate multikernel'. No kernel is behind it.\n"
_FIRST_TRANSACTION = 2
_WISHES = ("numa-nodes", "cpu-affinity", "memory-policy")
"""Kept and shown as they were written; who placed the instance has heeded them."""


@dataclass(slots=True)
class SimulatedInstance:
    """An instance: what its overlay gave it."""

    name: str
    id: int
    cpus: tuple[int, ...]
    memory_base: int
    memory_bytes: int
    devices: tuple[str, ...]
    wishes: tuple[Property, ...] = ()
    status: str = "ready"

    def blob(self) -> bytes:
        """Return the content of ``instances/NAME/device_tree``."""
        resources = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*self.cpus),)),
                Property("memory-base", (fdt.u64(self.memory_base),)),
                Property("memory-bytes", (fdt.u64(self.memory_bytes),)),
            ],
        )
        if self.devices:
            resources.properties.append(Property("device-names", (fdt.strings(*self.devices),)))
        resources.properties += self.wishes
        properties = [
            Property("compatible", ("linux,multikernel-instance",)),
            Property("instance-name", (self.name,)),
            Property("id", (fdt.u32(self.id),)),
        ]
        return fdt.write(Tree(Node("/", properties=properties, children=[resources])))


@dataclass(slots=True)
class SimulatedTransaction:
    """One overlay that was written."""

    id: int
    status: str
    instance: str
    resources: str
    dtbo: bytes


@dataclass(slots=True)
class _Pool:
    cpus: frozenset[int] = frozenset()
    base: int = 0
    size: int = 0
    devices: frozenset[str] = frozenset()
    addresses: dict[str, str] = field(default_factory=dict)
    """Devices by their PCI address."""


@dataclass(slots=True)
class SimulatedMultikernel:
    """The file system's content and behaviour, for `zernel.multikernel.fuse`."""

    faults: list[str] = field(default_factory=list)
    baseline: bytes = b""
    pool: _Pool | None = None
    instances: dict[str, SimulatedInstance] = field(default_factory=dict)
    transactions: dict[int, SimulatedTransaction] = field(default_factory=dict)
    writes: dict[int, bytearray] = field(default_factory=dict)
    kexec: simulated_kexec.SimulatedKexec = field(init=False)

    def __post_init__(self) -> None:
        self.kexec = simulated_kexec.SimulatedKexec(self.faults, self.instances)

    # -- what the file system server asks -------------------------------------------------------------------

    def attributes(self, path: PurePosixPath) -> tuple[int, int]:
        """Return mode and size; raises ENOENT."""
        found = self.node(path)
        if isinstance(found, list):
            return stat.S_IFDIR | 0o755, 0
        mode = {"/device_tree": 0o644, "/overlays/new": 0o200, f"/{CONTROL}": 0o200}.get(str(path), 0o444)
        return stat.S_IFREG | mode, len(found)

    def entries(self, path: PurePosixPath) -> list[str]:
        """Return the names in a directory."""
        found = self.node(path)
        if not isinstance(found, list):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return found

    def read(self, path: PurePosixPath) -> bytes:
        """Return a file's content."""
        found = self.node(path)
        if isinstance(found, list):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return found

    def node(self, path: PurePosixPath) -> list[str] | bytes:
        """Return a directory's names or a file's content."""
        match path.parts[1:]:
            case ():
                return ["SIMULATED", CONTROL, KERNELS, "device_tree", "instances", "overlays"]
            case ("SIMULATED",):
                return _NOTICE
            case (name,) if name == CONTROL:
                return b""
            case (name,) if name == KERNELS:
                return self.kexec.report()
            case ("device_tree",):
                return self.baseline
            case ("overlays",):
                return ["new", *(f"tx_{number}" for number in self.transactions)]
            case ("overlays", "new"):
                return b""
            case ("overlays", name):
                self.transaction(name)
                return ["dtbo", "id", "instance", "resources", "status"]
            case ("overlays", name, file):
                return _file(_transaction_files(self.transaction(name)), file)
            case ("instances",):
                return list(self.instances)
            case ("instances", name) if name in self.instances:
                return ["device_tree", "id", "status"]
            case ("instances", name, file) if name in self.instances:
                return _file(_instance_files(self.instances[name]), file)
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

    def rmdir(self, path: PurePosixPath) -> None:
        """Refuse: v1 has no undo by rmdir."""
        self.node(path)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

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
            self.set_baseline(blob)
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

    def set_baseline(self, blob: bytes) -> None:
        """Replace the pool; EINVAL for a malformed one, EBUSY while instances own parts of the old one."""
        try:
            root = fdt.read(blob, "device_tree").root
            instances = root.child("instances")
            resources = root.child("resources")
            if resources is None or (instances is not None and instances.children):
                raise Refused("no resources, or instances")
            devices = (resources.child("devices") or Node("")).children
            pool = _Pool(
                frozenset(_wide(resources, "cpus")),
                _wide_one(resources, "memory-base"),
                _wide_one(resources, "memory-bytes"),
                frozenset(node.name for node in devices),
                {found.text(): node.name for node in devices if (found := node.get("pci-id"))},
            )
            misaligned = (pool.base | pool.size) % PAGE_BYTES
            if not pool.cpus or not pool.size or misaligned or pool.base + pool.size > 1 << 64:
                raise Refused("bad pool")
        except (Refused, WrongType, ZernelError):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        if self.instances:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.baseline, self.pool = blob, pool

    def apply(self, blob: bytes, fault: str | None) -> None:
        """Apply an overlay. EINVAL for a blob that is no overlay; else a transaction, applied or failed."""
        try:
            root = fdt.read(blob, "overlay").root
            compatible = root.get("compatible")
            fragment = root.child("fragment@0")
            content = fragment.child("__overlay__") if fragment else None
            if compatible is None or OVERLAY_COMPATIBLE not in compatible.texts() or content is None:
                raise Refused("no overlay")
        except (Refused, WrongType, ZernelError):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        number = max(self.transactions, default=_FIRST_TRANSACTION - 1) + 1
        transaction = SimulatedTransaction(number, "pending", "", "", blob)
        self.transactions[number] = transaction
        try:
            if fault == "failed":
                raise Refused("fault injected")
            if not content.children:
                raise Refused("no operation")
            # In the kernel's order, whatever the overlay's own order is.
            for operation in sorted(content.children, key=lambda node: ORDER.get(node.base_name, 0)):
                self.operate(operation, transaction)
                if fault == "midway":
                    raise Refused("fault injected after the first operation")
            if fault == "partial":
                raise Refused("fault injected after the operations")
            transaction.status = "applied"
        except (Refused, WrongType):
            transaction.status = "failed"

    def operate(self, operation: Node, transaction: SimulatedTransaction) -> None:
        update = operation.base_name in UPDATES
        name = _text(operation, "mk,instance" if update else "instance-name")
        transaction.instance = name
        if operation.base_name == "instance-create":
            instance = self.create(name, operation)
            transaction.resources = (
                f"cpus={format_cpus(instance.cpus)}"
                f" memory-base={instance.memory_base:#x} memory-bytes={instance.memory_bytes:#x}"
            )
        elif operation.base_name == "instance-remove":
            found = self.instances.get(name)
            if found is None or found.status != "ready":
                raise Refused(f"{name} is not there, or busy")
            del self.instances[name]
        elif update:
            if self.pool is None or name not in self.instances:
                raise Refused(f"{name} is not there")
            instance = changed(self.instances[name], operation, self.pool.addresses)
            self.check_free(instance, self.pool)
            self.instances[name] = instance
            transaction.resources = f"{transaction.resources} {operation.base_name}".strip()
        else:
            raise Refused(f"unknown operation {operation.name}")

    def create(self, name: str, operation: Node) -> SimulatedInstance:
        resources = operation.child("resources")
        if self.pool is None or resources is None or name in self.instances or not name or "/" in name:
            raise Refused(f"cannot create {name}")
        names = resources.get("device-names")
        instance = SimulatedInstance(
            name,
            self.choose_id(operation.get("id")),
            _wide(resources, "cpus"),
            _wide_one(resources, "memory-base"),
            _wide_one(resources, "memory-bytes"),
            names.texts() if names else (),
            tuple(found for found in resources.properties if found.name in _WISHES),
        )
        self.check_free(instance, self.pool)
        self.instances[name] = instance
        return instance

    def choose_id(self, wanted: Property | None) -> int:
        taken = {instance.id for instance in self.instances.values()}
        if wanted is None:
            return next(number for number in range(1, MAX_INSTANCE_ID + 1) if number not in taken)
        number = wanted.number()
        if not 1 <= number <= MAX_INSTANCE_ID or number in taken:
            raise Refused(f"id {number}")
        return number

    def check_free(self, instance: SimulatedInstance, pool: _Pool) -> None:
        cpus = set(instance.cpus)
        if not cpus or len(cpus) != len(instance.cpus) or not cpus <= pool.cpus:
            raise Refused("cpus")
        start, end = instance.memory_base, instance.memory_base + instance.memory_bytes
        if (start | end) % PAGE_BYTES or start == end or start < pool.base or end > pool.base + pool.size:
            raise Refused("memory")
        for device in instance.devices:
            use = device_use(device)
            if device not in pool.devices and (use is None or use.device not in pool.devices):
                raise Refused(f"device {device}")
        for other in self.instances.values():
            if other.name == instance.name:
                continue
            shares_memory = start < other.memory_base + other.memory_bytes and other.memory_base < end
            if shares_memory or cpus.intersection(other.cpus) or set(instance.devices) & set(other.devices):
                raise Refused(f"shared with {other.name}")


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


def _instance_files(instance: SimulatedInstance) -> dict[str, bytes]:
    return {
        "id": f"{instance.id}\n".encode(),
        "status": f"{instance.status}\n".encode(),
        "device_tree": instance.blob(),
    }


def _wide(node: Node, name: str) -> tuple[int, ...]:
    found = node.get(name)
    if found is None:
        raise Refused(f"no {name}")
    return found.wide_numbers()


def _wide_one(node: Node, name: str) -> int:
    numbers = _wide(node, name)
    if len(numbers) != 1:
        raise Refused(f"{name} holds {len(numbers)} numbers")
    return numbers[0]


def _text(node: Node, name: str) -> str:
    found = node.get(name)
    if found is None:
        raise Refused(f"no {name}")
    return found.text()
