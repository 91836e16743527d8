# SPDX-License-Identifier: GPL-3.0-or-later
"""The one model of a multikernel host: what there is to give, and which instance has what.

Every dialect is read into it and written from it. It holds values only; where they stood in a file is kept
beside it (`zernel.devicetree.interpret.Origins`), so that two models compare equal when they mean the same.
Sizes and addresses are in bytes, CPU numbers are the kernel's logical ones.
"""

from __future__ import annotations

from zernel.record import Record

PAGE_BYTES = 0x1000
MAX_INSTANCE_ID = 2047
"""Ids have 11 bits in the flags of kexec_file_load(2), and 0 is the host. kerf alone stops at 511."""
MAX_CPU = 8191
"""The highest CPU number that x86-64 Linux can be built for (NR_CPUS 8192)."""
MAX_NODE = 1023
"""The highest NUMA node number that x86-64 Linux can be built for (NODES_SHIFT 10)."""
CPU_AFFINITIES = ("compact", "spread", "local")
MEMORY_POLICIES = ("local", "interleave", "bind")

MAX_NUMA_NODES = 1024
"""What x86-64 Linux can be built for (MAX_NUMNODES)."""


class Cpus(Record):
    """CPUs: how many there are (numbers 0 to total-1), those that the host keeps, those to give away."""

    total: int
    host_reserved: tuple[int, ...]
    available: tuple[int, ...]


class Memory(Record):
    """Memory: ``pool_base`` to ``pool_base + pool_bytes`` is to give away."""

    total_bytes: int
    host_reserved_bytes: int
    pool_base: int
    pool_bytes: int

    @property
    def pool_end(self) -> int:
        """The first address after the pool."""
        return self.pool_base + self.pool_bytes


class Device(Record):
    """A device of the inventory. ``name`` is its label, ``kind`` its node's name (ethernet, storage, gpu
    ...).

    ``sriov_vfs`` and ``namespaces`` are None on devices that have none. ``numa_node`` is the node that the
    device is attached to, None where that is not known.
    """

    name: str
    kind: str
    compatible: str | None = None
    pci_id: str | None = None
    sriov_vfs: int | None = None
    host_reserved_vf: tuple[int, ...] = ()
    available_vfs: tuple[int, ...] = ()
    namespaces: int | None = None
    host_reserved_ns: tuple[int, ...] = ()
    available_ns: tuple[int, ...] = ()
    numa_node: int | None = None

    @property
    def category(self) -> str:
        """The kind of device in the words of the report."""
        if self.kind in ("ethernet", "network", "infiniband"):
            return "network"
        if self.kind in ("storage", "nvme"):
            return "storage"
        return "GPU" if self.kind in ("gpu", "display") else "other"


class NumaNode(Record):
    """A NUMA node: its number, its memory range and its CPUs."""

    node_id: int
    memory_base: int
    memory_size: int
    cpus: tuple[int, ...]


class Resources(Record):
    """The hardware inventory: a baseline.

    ``unknown`` says in words why nothing but the pool is known, as for what another program applied: then the
    totals and what the host keeps are stand-ins. With ``physical_ids``, CPUs have the numbers of their APICs.
    """

    cpus: Cpus
    memory: Memory
    devices: tuple[Device, ...] = ()
    numa_nodes: tuple[NumaNode, ...] = ()
    unknown: str | None = None
    physical_ids: bool = False

    @property
    def complete(self) -> bool:
        """Whether more than the pool is known."""
        return self.unknown is None


class DeviceUse(Record):
    """What an instance gets of a device: one virtual function, one namespace, or all of it."""

    device: str
    vf: int | None = None
    namespace: int | None = None

    def __str__(self) -> str:
        """Return the form of the kerf document's messages: ``eth0:vf1``, ``nvme0:ns2``, ``gpu0``."""
        if self.vf is not None:
            return f"{self.device}:vf{self.vf}"
        return self.device if self.namespace is None else f"{self.device}:ns{self.namespace}"

    @property
    def label(self) -> str:
        """The form of device tree labels and of the kernel's device names: ``eth0_vf1``."""
        return str(self).replace(":", "_")


class Instance(Record):
    """A kernel instance and what it owns. ``id`` is None until one is chosen."""

    name: str
    id: int | None
    cpus: tuple[int, ...]
    memory_base: int
    memory_bytes: int
    devices: tuple[DeviceUse, ...] = ()
    numa_nodes: tuple[int, ...] = ()
    cpu_affinity: str | None = None
    memory_policy: str | None = None

    @property
    def memory_end(self) -> int:
        """The first address after the instance's memory."""
        return self.memory_base + self.memory_bytes


class System(Record):
    """The full state: a baseline and the instances on it."""

    resources: Resources
    instances: tuple[Instance, ...] = ()
