# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel's second version: a live tree, CPUs by physical id, memory placed by the kernel, undo.

It follows what kerf 0.4.0 tells of that kernel. What that leaves open is chosen so that nothing can rely on
it: the host's CPUs have ids that are no CPU's number (`SimulatedV2.cpuinfo` lists those that are online),
memory is never where the lowest free place would be if there is another, and each NUMA node's lies far from
the others'. ``/proc/iomem`` has its stand-in, too: it tells the regions that an instance's memory came in. So
has what debugfs shows of CPUs, also of those that are offline.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from zernel.devicetree import fdt, kernel_forms
from zernel.devicetree.model import PAGE_BYTES
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.multikernel.simulate import SimulatedInstance, SimulatedMultikernel, SimulatedTransaction
from zernel.multikernel.simulate_operations import Refused, moved, required, text, wide, wide_one
from zernel.multikernel.simulated_kexec import refused
from zernel.multikernel.wire import HOST_COMPATIBLE

CPUINFO, IOMEM, TOPOLOGY = "SIMULATED.cpuinfo", "SIMULATED.iomem", "SIMULATED.topology"
HOST_CPUS = 256
_GRANULE = 2 << 20
_SKIPPED = 64 << 20
"""How far into a free range memory is placed, where there is as much left."""
_POOL_BASE, _NODE_BYTES = 1 << 30, 1 << 40
"""Where the first piece of a pool is on node 0, and how far apart the nodes' memory is."""
_INVERSE = {"add": "remove", "remove": "add"}
_MEMORY = {"memory-base", "memory-bytes"}

Range = tuple[int, int]


def physical_id(cpu: int) -> int:
    """Return the physical id of the simulated host's CPU: no CPU has it as its number."""
    return 0x400 + 2 * cpu


@dataclass(slots=True, kw_only=True)
class InstanceV2(SimulatedInstance):
    """An instance: ``cpus`` are physical ids, ``devices`` PCI addresses, ``regions`` in the order of their
    coming."""

    regions: tuple[Range, ...]


@dataclass(slots=True)
class _Pool:
    cpus: set[int] = field(default_factory=set)
    chunks: list[tuple[Range, int | None]] = field(default_factory=list)
    """Memory, each with its NUMA node where one was asked for."""
    devices: dict[str, str | None] = field(default_factory=dict)
    """Aliases by PCI address."""


class SimulatedV2(SimulatedMultikernel):
    """The second version."""

    def __init__(self, faults: list[str] | None = None) -> None:
        self.pool: _Pool | None = None
        self.owned: dict[str, InstanceV2] = {}
        self.removed: dict[tuple[int, str], InstanceV2] = {}
        """What a transaction removed, by its number and the instance's name."""
        self.host = {physical_id(cpu): cpu for cpu in range(HOST_CPUS)}
        super().__init__(faults)

    @property
    def instances(self) -> Mapping[str, SimulatedInstance]:
        """The instances there are, by name."""
        return self.owned

    # -- what it shows --------------------------------------------------------------------------------------

    def root_files(self) -> dict[str, Callable[[], list[str] | bytes]]:
        """Return the pool's live tree, and what /proc and debugfs of the host would show."""
        return {
            "device_tree": self.tree,
            CPUINFO: self.cpuinfo,
            IOMEM: self.iomem,
            TOPOLOGY: lambda: [str(cpu) for cpu in range(HOST_CPUS)],
        }

    def node(self, path: PurePosixPath) -> Iterable[str] | bytes:
        """Return a directory's names or a file's content."""
        match path.parts[1:]:
            case (directory, name) if directory == TOPOLOGY and name in self.root_files()[TOPOLOGY]():
                number = physical_id(int(name))
                return f"online:\t\t    {number in self.online():d}\napicid:\t\t    {number:#x}\n".encode()
        return super().node(path)

    def online(self) -> list[int]:
        """Return the physical ids of the CPUs that the host has, ascending."""
        return sorted(self.host.keys() - (self.pool.cpus if self.pool else set()))

    def cpuinfo(self) -> bytes:
        """Return the CPUs that are online on the host, as /proc/cpuinfo does: none that the pool took."""
        lines = (f"processor\t: {self.host[number]}\napicid\t\t: {number}\n" for number in self.online())
        return "\n".join(lines).encode()

    def iomem(self) -> bytes:
        """Return the instances' regions, as /proc/iomem does."""
        lines = [
            f"{start:08x}-{start + size - 1:08x} : mk-instance-{one.id}-{one.name}-region-{number}\n"
            for one in self.owned.values()
            for number, (start, size) in enumerate(one.regions)
        ]
        return "".join(lines).encode()

    def tree(self) -> bytes:
        pool = self.pool
        root = Node("/", properties=[Property("compatible", (HOST_COMPATIBLE,))])
        resources = Node("resources")
        root.children.append(resources)
        if pool is None:
            resources.properties.append(Property("cpus", (fdt.u64(*self.online()),)))
            return fdt.write(Tree(root))
        root.properties.append(Property("memory-granule", (fdt.u64(_GRANULE),)))
        taken = {cpu for one in self.owned.values() for cpu in one.cpus}
        resources.properties += [
            Property("cpus", (fdt.u64(*sorted(pool.cpus)),)),
            Property("cpus-available", (fdt.u64(*sorted(pool.cpus - taken)),)),
        ]
        for number, ((start, size), numa_node) in enumerate(pool.chunks):
            node = Node(f"memory@{number:x}", properties=[Property("reg", (fdt.u64(start, size),))])
            node.properties.append(Property("numa-node-id", (fdt.u32(numa_node or 0),)))
            resources.children.append(node)
        lent = {device for one in self.owned.values() for device in one.devices}
        _add_devices(
            root, {address: pool.devices[address] for address in pool.devices if address not in lent}
        )
        return fdt.write(Tree(root))

    def instance_tree(self, name: str) -> bytes:
        """Return what the instance owns; its regions are in /proc/iomem only."""
        instance = self.owned[name]
        base, size = min(instance.regions)[0], sum(size for _, size in instance.regions)
        resources = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*instance.cpus),)),
                Property("memory-base", (fdt.u64(base),)),
                Property("memory-bytes", (fdt.u64(size),)),
                *instance.wishes,
            ],
        )
        properties = [
            Property("compatible", ("linux,multikernel-instance",)),
            Property("model", (instance.name,)),
            Property("id", (fdt.u32(instance.id),)),
        ]
        root = Node("/", properties=properties, children=[resources])
        names = self.pool.devices if self.pool else {}
        _add_devices(root, {address: names.get(address) for address in instance.devices})
        return fdt.write(Tree(root))

    # -- the pool -------------------------------------------------------------------------------------------

    def set_baseline(self, blob: bytes, root: Node) -> None:
        """Make a pool; EBUSY when there is one. It cannot be replaced, only changed by overlays."""
        if self.pool is not None:
            raise refused(errno.EBUSY)
        resources = root.child("resources") or Node("")
        if any(found.name in _MEMORY for found in resources.properties):
            raise Refused("the first version's form")
        asked = [node for node in resources.children if node.name in kernel_forms.memory_nodes(resources)]
        if not asked:
            raise Refused("no memory is asked for")
        pool = _Pool(set(self.host_cpus(wide(resources, "cpus"))))
        for node in asked:
            pool.chunks.append(self.new_chunk(node, pool))
        names = kernel_forms.aliases(Tree(root))
        for node in (resources.child("devices") or Node("")).children:
            pool.devices[text(node, "pci-id").lower()] = names.get(id(node))
        self.pool = pool

    def host_cpus(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(ids)) != len(ids) or not set(ids) <= set(self.online()):
            raise Refused("CPUs that the host does not have")
        return ids

    def new_chunk(self, node: Node, pool: _Pool) -> tuple[Range, int | None]:
        size, numa = wide_one(node, "size"), node.get("numa-node-id")
        number = numa.number() if numa else None
        at = _POOL_BASE + (number or 0) * _NODE_BYTES
        for (start, length), _ in sorted(pool.chunks):
            if start < at + size and at < start + length:
                at = start + length
        if not size or size % PAGE_BYTES or size > _NODE_BYTES - _POOL_BASE:
            raise Refused("memory")
        return (at, size), number

    def change_pool(self, operation: Node) -> None:
        if self.pool is None or not operation.children:
            raise Refused("no pool, or an operation of nothing")
        what, _, way = operation.base_name.partition("-")
        pool = replace(self.pool, cpus=set(self.pool.cpus), devices=dict(self.pool.devices))
        pool.chunks = list(self.pool.chunks)
        add = way == "add"
        for item in operation.children:
            if what == "memory":
                self.change_chunks(pool, item, add=add)
            elif what == "cpu" and add:
                pool.cpus.update(self.host_cpus(wide(item, "reg")))
            elif what == "cpu":
                pool.cpus = set(moved(tuple(pool.cpus), wide(item, "reg"), add=False))
            elif add:
                alias = item.get("alias")
                moved(tuple(pool.devices), (text(item, "pci-id").lower(),), add=True)
                pool.devices[text(item, "pci-id").lower()] = alias.text() if alias else None
            else:
                moved(tuple(pool.devices), (text(item, "pci-id").lower(),), add=False)
                del pool.devices[text(item, "pci-id").lower()]
        owned = [
            (cpu, device)
            for one in self.owned.values()
            for cpu in one.cpus
            for device in (None, *one.devices)
        ]
        if not {cpu for cpu, _ in owned} <= pool.cpus or not {name for _, name in owned if name} <= set(
            pool.devices
        ):
            raise Refused("an instance has it")
        self.pool = pool if pool.cpus or pool.chunks or pool.devices else None

    def change_chunks(self, pool: _Pool, item: Node, *, add: bool) -> None:
        if add and item.get("reg") is None:
            pool.chunks.append(self.new_chunk(item, pool))
            return
        start, size = _range(item)
        if add:  # an undo brings back what was there
            if any(_overlap((start, size), chunk) for chunk, _ in pool.chunks):
                raise Refused("there is memory")
            pool.chunks.append(((start, size), None))
            return
        if any(_overlap((start, size), region) for one in self.owned.values() for region in one.regions):
            raise Refused("an instance has memory there")
        left = [found for found in pool.chunks if found[0] != (start, size)]
        if len(left) == len(pool.chunks):
            raise Refused("no piece of the pool")
        pool.chunks = left

    # -- overlays -------------------------------------------------------------------------------------------

    def operations(self, root: Node) -> list[tuple[str, Node]]:
        """Return the operations of all fragments, each with the path that its fragment targets."""
        found: list[tuple[str, Node]] = []
        for fragment in root.children:
            content = fragment.child("__overlay__")
            if content is None:
                raise Refused("a fragment without content")
            found += [(text(fragment, "target-path"), node) for node in content.children]
        if not root.children:
            raise Refused("no fragment")
        return found

    def operate(self, target: str, operation: Node, transaction: SimulatedTransaction) -> None:
        """Carry out one operation on what it targets."""
        # The file names the first fragment's target, whatever else there is.
        transaction.instance = transaction.operations[0][0]
        transaction.resources = f"{transaction.resources} {operation.base_name}".strip()
        if target == "/resources":
            self.change_pool(operation)
        elif target == "/instances" and operation.base_name == "instance-create":
            self.create(operation)
        elif target == "/instances" and operation.base_name == "instance-remove":
            name = text(operation, "instance-name")
            found = self.owned.get(name)
            if found is None or found.status != "ready":
                raise Refused(f"{name} is not there, or busy")
            self.removed[transaction.id, name] = self.owned.pop(name)
        elif target.startswith("/instances/") and operation.base_name.endswith(("-add", "-remove")):
            self.change_instance(target.removeprefix("/instances/"), operation)
        else:
            raise Refused(f"unknown operation {operation.name} on {target}")

    def create(self, operation: Node) -> None:
        name, resources = text(operation, "instance-name"), operation.child("resources")
        if self.pool is None or resources is None or name in self.owned or not name or "/" in name:
            raise Refused(f"cannot create {name}")
        if resources.get("memory-base") or resources.get("device-names"):
            raise Refused("the first version's form")
        nodes = resources.get("numa-nodes")
        size = wide_one(resources, "memory-bytes")
        if not size or size % PAGE_BYTES:
            raise Refused("memory")
        region = self.place(size, nodes.numbers() if nodes else ())
        instance = InstanceV2(
            name=name,
            id=self.choose_id(operation.get("id")),
            cpus=tuple(sorted(wide(resources, "cpus"))),
            regions=(region,),
            wishes=self.wishes(resources),
        )
        self.check(instance)
        self.owned[name] = instance

    def place(self, size: int, nodes: Iterable[int]) -> Range:
        """Return where ``size`` bytes go: into a chunk of one of the nodes if there is room."""
        assert self.pool is not None
        wanted = set(nodes)
        for chunk, _ in sorted(self.pool.chunks, key=lambda found: found[1] not in wanted):
            at, end = chunk[0], chunk[0] + chunk[1]
            taken = sorted(region for one in self.owned.values() for region in one.regions)
            for start, length in [*(found for found in taken if _overlap(found, chunk)), (end, 0)]:
                spare = start - at - size
                if spare >= 0:
                    return at + min(_SKIPPED, spare) // _GRANULE * _GRANULE, size
                at = start + length
        raise Refused("no room")

    def change_instance(self, name: str, operation: Node) -> None:
        instance = self.owned.get(name)
        if instance is None or not operation.children:
            raise Refused(f"{name} is not there, or an operation of nothing")
        what, _, way = operation.base_name.partition("-")
        add = way == "add"
        if what == "memory":
            regions = tuple(_range(item) for item in operation.children)
            if any(start % _GRANULE or size % _GRANULE for start, size in regions) and add:
                raise Refused("not in units of memory")
            if not add and instance.regions[0] in regions:
                raise Refused("the region of the kernel")
            changed = replace(instance, regions=moved(instance.regions, regions, add=add))
        elif what == "cpu":
            cpus = tuple(cpu for item in operation.children for cpu in wide(item, "reg"))
            changed = replace(instance, cpus=tuple(sorted(moved(instance.cpus, cpus, add=add))))
        elif what == "device":
            devices = tuple(text(item, "pci-id").lower() for item in operation.children)
            changed = replace(instance, devices=moved(instance.devices, devices, add=add))
        else:
            raise Refused(f"unknown operation {operation.name}")
        self.check(changed)
        self.owned[name] = changed

    def check(self, instance: InstanceV2) -> None:
        """Raise `Refused` unless all that an instance has is the pool's, and no other's."""
        pool, cpus, devices = self.pool, set(instance.cpus), set(instance.devices)
        if pool is None or not cpus or len(cpus) != len(instance.cpus) or not cpus <= pool.cpus:
            raise Refused("cpus")
        if not devices <= set(pool.devices):
            raise Refused("devices")
        for region in instance.regions:
            if not any(_inside(region, chunk) for chunk, _ in pool.chunks):
                raise Refused("memory that is not in one piece of the pool")
        for one in instance.regions:
            if sum(_overlap(one, other) for other in instance.regions) > 1:
                raise Refused("memory that it has")
        for other in self.owned.values():
            if other.name != instance.name and (
                cpus.intersection(other.cpus)
                or devices.intersection(other.devices)
                or any(_overlap(one, two) for one in instance.regions for two in other.regions)
            ):
                raise Refused(f"shared with {other.name}")

    # -- undoing --------------------------------------------------------------------------------------------

    def undo(self, transaction: SimulatedTransaction) -> None:
        """Do the inverse of each operation, the last one first: of a failed transaction also of those that
        were never done. What cannot be undone leaves the directory there, with the status "failed"."""
        fails = "undo-fails" in self.faults
        if fails:
            self.faults.remove("undo-fails")
        try:
            for target, operation in reversed(transaction.operations):
                self.invert(target, operation, transaction)
                if fails:
                    raise Refused("fault injected")
        except (Refused, WrongType):
            transaction.status = "failed"
            raise refused(errno.EIO) from None
        transaction.status = "removed"

    def invert(self, target: str, operation: Node, transaction: SimulatedTransaction) -> None:
        kind, _, way = operation.base_name.rpartition("-")
        if operation.base_name == "instance-remove":
            name = text(operation, "instance-name")
            instance = self.removed.get((transaction.id, name))
            if instance is None or name in self.owned:
                raise Refused(f"{name} was not removed")
            self.check(instance)
            self.owned[name] = instance
        elif operation.base_name == "instance-create":
            found = self.owned.get(text(operation, "instance-name"))
            if found is None or found.status != "ready":
                raise Refused("it is not there, or busy")
            del self.owned[found.name]
        elif kind == "memory" and target == "/resources" and way == "add":
            assert self.pool is not None
            sizes = [wide_one(item, "size") for item in operation.children]
            newest = [chunk for chunk, _ in self.pool.chunks[-len(sizes) :]]
            items = [Node("memory@0", properties=[Property("reg", (fdt.u64(*chunk),))]) for chunk in newest]
            self.change_pool(Node("memory-remove", children=items))
        else:
            inverse = Node(f"{kind}-{_INVERSE.get(way, way)}", children=operation.children)
            if target == "/resources":
                self.change_pool(inverse)
            else:
                self.change_instance(target.removeprefix("/instances/"), inverse)


def _range(item: Node) -> Range:
    numbers = required(item, "reg").wide_numbers()
    if len(numbers) != 2 or numbers[1] == 0 or sum(numbers) > 1 << 64:
        raise Refused("a range that is none")
    return numbers[0], numbers[1]


def _overlap(one: Range, other: Range) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def _inside(one: Range, other: Range) -> bool:
    return other[0] <= one[0] and one[0] + one[1] <= other[0] + other[1]


def _add_devices(root: Node, devices: Mapping[str, str | None]) -> None:
    """Add devices (aliases by PCI address) to a tree: one host bridge a bus, in the PCI binding."""
    bridges: dict[str, Node] = {}
    aliases = []
    for address, alias in sorted(devices.items()):
        domain, bus, rest = address.split(":")
        slot, _, function = rest.partition(".")
        bridge = bridges.get(f"{domain}:{bus}")
        if bridge is None:
            bridge = Node(f"pci@{len(bridges):x}")
            bridge.properties += [
                Property("compatible", ("multikernel,pci-host-bridge",)),
                Property("linux,pci-domain", (fdt.u32(int(domain, 16)),)),
            ]
            bridges[f"{domain}:{bus}"] = bridge
            root.children.append(bridge)
        cell = int(bus, 16) << 16 | int(slot, 16) << 11 | int(function, 16) << 8
        device = Node(f"device@{slot},{function}", properties=[Property("reg", (fdt.u32(cell, 0, 0, 0, 0),))])
        # No vendor has this number (PCI Local Bus Specification): nothing here is a real device.
        device.properties.append(Property("vendor-id", (fdt.u32(0xFFFF),)))
        bridge.children.append(device)
        if alias is not None:
            aliases.append(Property(alias, (f"/{bridge.name}/{device.name}",)))
    if aliases:
        root.children.append(Node("aliases", properties=aliases))
