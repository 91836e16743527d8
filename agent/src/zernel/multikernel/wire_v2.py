# SPDX-License-Identifier: GPL-3.0-or-later
"""The wire format of the newer kernels (kerf 0.4.0).

A baseline is a request: CPUs by physical id, bytes of memory (``memory@N`` with a size), devices by PCI
address. The kernel places the memory and shows a tree of its own (`zernel.multikernel.live_tree`), so the
inventory that the baseline told is a record of ours (`zernel.multikernel.inventory_record`). Each fragment of
an overlay has a ``target-path``: ``/instances``, ``/instances/NAME``, or ``/resources`` for the pool itself.

Commands, plans and the journal have logical CPU numbers; they are translated here and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from zernel.devicetree import fdt
from zernel.devicetree.kernel_forms import pci_name, pool_only
from zernel.devicetree.model import MAX_CPU, Device, DeviceUse, Instance, Resources
from zernel.devicetree.tree import Node, Property, Tree, WrongType
from zernel.devicetree.units import format_cpus, format_size
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import live_tree, proc
from zernel.multikernel.changes import Operation, Step, operations
from zernel.multikernel.inventory_record import Recorded, pooled
from zernel.multikernel.live_tree import LiveDevice, Pool
from zernel.multikernel.wire import (
    HOST_COMPATIBLE,
    Wire,
    instance_head,
    overlay,
    policies,
    with_policies,
)
from zernel.record import Record

_INSTANCES = "/instances"
_ALIAS_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_ALIAS_LENGTH = 31


class Host(Record):
    """What a wire needs to know of the host: its unit of memory, its /proc/iomem, and where the record of its
    inventory is."""

    granule: int
    iomem: Path
    record: Path


class V2(Wire):
    """The second wire format, for the pool that a kernel shows."""

    name = "v2"
    places_memory = True

    def __init__(
        self, host: Host, pool: Pool | None, recorded: Recorded | None, lent: tuple[LiveDevice, ...] = ()
    ) -> None:
        """``recorded`` is the inventory that agrees with ``pool``; without one, CPUs are shown by their
        physical ids, and ``lent`` are the devices that instances have."""
        self.host = host
        self.pool = pool
        self.recorded = recorded
        self.lent = lent
        self.physical_ids = pool is not None and recorded is None
        self.physical = recorded.ids if recorded else None
        self.logical = {number: cpu for cpu, number in recorded.ids.items()} if recorded else None

    # -- the pool -------------------------------------------------------------------------------------------

    def read_baseline(self, blob: bytes) -> Resources:
        """Return the inventory behind the pool."""
        if self.recorded is not None:
            return self.recorded.resources
        pool = self.pool
        if pool is None:
            raise fail(
                "no-baseline",
                "No baseline is applied",
                explanation="The kernel shows no pool: instances are created from the resources of one",
                suggestion="Apply one: zernel init --input=/etc/zernel/baseline.dts --apply",
            )
        why = None
        if pool.base is None:
            why = f"its memory is not one range: {pool.where}"
        elif max(pool.cpus, default=0) > MAX_CPU:
            why = f"nothing tells which CPUs have its physical ids, up to {max(pool.cpus)}"
        if why is not None or pool.base is None:
            raise fail(
                "baseline-unknown-format",
                "The kernel's pool is not one that Zernel can manage",
                explanation=f"Another program made it, and {why}",
                suggestion="Apply a baseline with 'zernel init --input=FILE --apply'",
            )
        by_address = {found.pci_id or found.name: found for found in (*pool.devices, *self.lent)}
        devices = tuple(Device(found.name, "device", pci_id=found.pci_id) for found in by_address.values())
        unknown = (
            "Linux's numbers for these CPUs, and what the host keeps, are not known:"
            f" {self.host.record} is missing, damaged or of another pool"
        )
        found = pool_only(pool.cpus, pool.base, pool.bytes, devices)
        return found.but(unknown=unknown, physical_ids=True)

    # -- instances ------------------------------------------------------------------------------------------

    def create(self, instance: Instance, resources: Resources | None = None) -> bytes:
        """Return the overlay that creates ``instance``, its devices in a fragment of their own."""
        owned = Node(
            "resources",
            properties=[
                Property("cpus", (fdt.u64(*self.ids_of(instance.cpus)),)),
                Property("memory-bytes", (fdt.u64(instance.memory_bytes),)),
                *policies(instance),
            ],
        )
        operation = Node("instance-create", properties=instance_head(instance), children=[owned])
        fragments = [fragment(0, _INSTANCES, operation)]
        if instance.devices:
            assert resources is not None
            added = Operation("device-add", devices=instance.devices)
            target = f"{_INSTANCES}/{instance.name}"
            fragments.append(fragment(1, target, self.operation(added, instance, resources)))
        return overlay(*fragments)

    def remove(self, name: str) -> bytes:
        """Return the overlay that removes the instance called ``name``."""
        operation = Node("instance-remove", properties=[Property("instance-name", (name,))])
        return overlay(fragment(0, _INSTANCES, operation))

    def update(self, before: Instance, after: Instance, resources: Resources) -> bytes:
        """Return the overlay with the operations that lead from ``before`` to ``after``, and no other."""
        nodes = [self.operation(one, before, resources) for one in operations(before, after)]
        return overlay(fragment(0, f"{_INSTANCES}/{before.name}", *nodes))

    def operation(self, operation: Operation, instance: Instance, resources: Resources) -> Node:
        """Return the node of one operation of an update."""
        if operation.memory is not None:
            taken = operation.kind == "memory-remove"
            moved = self.whole_regions(instance, operation.memory) if taken else [operation.memory]
            return Node(operation.kind, children=memory_items(moved))
        if operation.cpus:
            return Node(operation.kind, children=cpu_items(self.ids_of(operation.cpus)))
        addresses = {device.name: device.pci_id for device in resources.devices}
        return Node(
            operation.kind,
            children=device_items([(addresses[use.device] or "", None) for use in operation.devices]),
        )

    def whole_regions(self, instance: Instance, taken: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the regions that make up what is ``taken`` (base, bytes), the newest first.

        The kernel takes memory back in the regions in which it was given. Where /proc/iomem does not tell
        them, the range is one: an undo takes back what was one region when it was added.
        """
        base, size = taken
        found = self.regions(instance)
        chosen = [region for region in reversed(found) if region[0] >= base]
        return chosen if sum(region[1] for region in chosen) == size else [taken]

    def regions(self, instance: Instance) -> list[tuple[int, int]]:
        """Return the regions of an instance's memory (base, bytes), ascending; none where not known."""
        found = proc.regions(self.host.iomem, instance.id or 0, instance.name)
        return sorted(found)

    def read_instance(self, name: str, number: int, blob: bytes) -> Instance | None:
        """Return the instance that its ``device_tree`` describes."""
        shown = live_tree.instance(blob)
        if shown is None:
            return None
        cpus = shown.cpus
        if self.logical is not None:
            if not set(cpus) <= self.logical.keys():
                return None
            cpus = tuple(sorted(self.logical[number] for number in cpus))
        resources = self.recorded.resources if self.recorded else None
        names = {
            device.pci_id.lower(): device.name
            for device in (resources.devices if resources else ())
            if device.pci_id
        }
        devices = tuple(DeviceUse(names.get(found.pci_id or "", found.name)) for found in shown.devices)
        instance = Instance(name, number, cpus, shown.base, shown.size, devices)
        pieces = sorted(self.regions(instance))
        if any(start + size != following for (start, size), (following, _) in pairwise(pieces)):
            return None  # another program gave it memory elsewhere: it is not one range
        return with_policies(instance, shown.resources)

    def concerns(self, instance: str, blob: bytes) -> frozenset[str]:
        """Return the instances that an overlay is about: the file tells the first fragment's target only."""
        found: set[str] = set()
        try:
            root = fdt.read(blob, "overlay").root
            for piece in root.children:
                target = piece.get("target-path")
                path = target.text() if target else ""
                if path.startswith(f"{_INSTANCES}/"):
                    found.add(path.removeprefix(f"{_INSTANCES}/"))
                content = piece.child("__overlay__")
                for node in content.children if content else ():
                    named = node.get("instance-name")
                    if named is not None:
                        found.add(named.text())
        except (ZernelError, WrongType):
            found.add(instance)
        return frozenset(found)

    # -- what cannot be said --------------------------------------------------------------------------------

    def ids_of(self, cpus: Iterable[int]) -> tuple[int, ...]:
        """Return the physical ids of CPUs; `refusals` told before whether all are known."""
        return tuple(cpus) if self.physical is None else tuple(self.physical[cpu] for cpu in cpus)

    def refusals(self, steps: Iterable[Step], resources: Resources) -> list[Problem]:
        """Return what this kernel cannot be told, or is known to refuse."""
        problems = []
        for step in steps:
            if step.after is not None:
                problems += self.device_problems(step.after, step.before, resources)
                problems += self.cpu_problems(step.after)
            if step.after is not None and step.before is not None:
                problems += self.memory_problems(step.before, step.after)
        return problems

    def cpu_problems(self, instance: Instance) -> list[Problem]:
        """Return the CPUs whose physical ids are not known."""
        unknown = [cpu for cpu in instance.cpus if self.physical is not None and cpu not in self.physical]
        return [cpu_unknown(unknown, instance.name)] if unknown else []

    def device_problems(
        self, instance: Instance, before: Instance | None, resources: Resources
    ) -> list[Problem]:
        """Return the devices that have no PCI address of their own in the pool."""
        known = {device.name for device in pooled(resources)}
        named = {device.name for device in resources.devices}  # validation tells of others
        had = before.devices if before else ()
        wrong = [
            use
            for use in instance.devices
            if use not in had
            and use.device in named
            and (use.vf is not None or use.namespace is not None or use.device not in known)
        ]
        if not wrong:
            return []
        whole = ", ".join(sorted(known)[:16]) or "none"
        return [
            Problem(
                "device-no-address",
                f"Device {', '.join(map(str, wrong))} cannot be given on this kernel",
                subject=instance.name,
                explanation=(
                    "This kernel (wire format v2) takes devices from its pool by PCI address",
                    "A virtual function or namespace has none in the baseline",
                ),
                current_state=f"Devices with an address in the pool: {whole}",
                suggestion="Give a whole device",
                alternative="Describe the function as a device with a pci-id of its own in the baseline",
            )
        ]

    def memory_problems(self, before: Instance, after: Instance) -> list[Problem]:
        """Return why memory cannot be added in these units, or not be taken back in this size."""
        for one in operations(before, after):
            if one.memory is None:
                continue
            base, size = one.memory
            unit = self.host.granule
            if one.kind == "memory-add" and (base | size) % unit:
                return [_bad_unit(before, size, unit)]
            if one.kind == "memory-remove":
                found = self.regions(before)
                ends = [start - before.memory_base for start, _ in found[1:]]
                if after.memory_bytes not in ends:
                    return [_no_region(before, found, ends)]
        return []


def cpu_unknown(cpus: list[int], subject: str | None = None, lost: Path | None = None) -> Problem:
    """Return the problem of CPUs without a physical id; ``lost`` is the record that had those of a pool."""
    return Problem(
        "cpu-without-id",
        f"CPU {format_cpus(cpus)} has no known physical id (APIC id)",
        subject=subject,
        explanation=(
            "This kernel (wire format v2) takes CPUs by their physical ids",
            "/proc/cpuinfo lists those of the CPUs that are online on this host",
            *(("Those of CPUs in the pool are in Zernel's record of it, or in debugfs",) if lost else ()),
        ),
        suggestion=f"Put back {lost}, or mount debugfs: mount -t debugfs none /sys/kernel/debug"
        if lost
        else "Name CPUs of this host that are online (lscpu --extended)",
        alternative="CPUs that another program gave to the pool must be returned to the host first",
    )


def _bad_unit(instance: Instance, size: int, unit: int) -> Problem:
    end = instance.memory_end
    room = -end % unit
    return Problem(
        "memory-unit",
        f"Memory cannot grow by {format_size(size)}",
        subject=instance.name,
        explanation=(
            f"This kernel adds memory in multiples of {format_size(unit)}, at such addresses",
            *((f"The instance's memory ends at {end:#x}, which is none",) if room else ()),
        ),
        current_state=f"{format_size(instance.memory_bytes)} at {instance.memory_base:#x}",
        suggestion="Delete it and create it anew with the memory that it needs: zernel delete "
        + instance.name
        if room
        else f"Grow it by a multiple of {unit:#x} ({format_size(unit)})",
    )


def _no_region(instance: Instance, found: list[tuple[int, int]], ends: list[int]) -> Problem:
    shown = ", ".join(f"{format_size(size)} at {start:#x}" for start, size in found[:8])
    possible = " or ".join(f"{size:#x} ({format_size(size)})" for size in ends[-8:])
    return Problem(
        "memory-region",
        "Memory cannot shrink to that size",
        subject=instance.name,
        explanation=(
            "This kernel takes memory back in the regions in which it was added, and never the first one",
            f"Regions: {shown or '/proc/iomem does not show them'}",
        ),
        current_state=f"{format_size(instance.memory_bytes)} at {instance.memory_base:#x}",
        suggestion=f"Use --memory={possible}"
        if possible
        else f"Delete it and create it anew: zernel delete {instance.name}",
    )


# -- blobs --------------------------------------------------------------------------------------------------


def fragment(number: int, target: str, *operations: Node) -> Node:
    """Return one fragment of an overlay."""
    return Node(
        f"fragment@{number:x}",
        properties=[Property("target-path", (target,))],
        children=[Node("__overlay__", children=[*operations])],
    )


def memory_items(moved: Iterable[tuple[int, int]]) -> list[Node]:
    """Return ranges (base, bytes) of memory as the items of an operation."""
    return [
        Node(f"memory@{number:x}", properties=[Property("reg", (fdt.u64(base, size),))])
        for number, (base, size) in enumerate(moved)
    ]


def cpu_items(ids: Iterable[int]) -> list[Node]:
    """Return CPUs, by physical id, as the items of an operation."""
    return [Node(f"cpu@{number:x}", properties=[Property("reg", (fdt.u64(number),))]) for number in ids]


def device_items(devices: Iterable[tuple[str, str | None]]) -> list[Node]:
    """Return devices, as PCI address and alias, as the items of an operation."""
    nodes = []
    for number, (address, alias) in enumerate(devices):
        node = Node(f"pci@{number:x}", properties=[Property("pci-id", (address,))])
        if alias is not None:
            node.properties.append(Property("alias", (alias,)))
        nodes.append(node)
    return nodes


def requests(resources: Resources) -> list[tuple[int, int | None]]:
    """Return the memory to ask for, as bytes and NUMA node: the pool's part on each node."""
    memory = resources.memory
    shares: Counter[int] = Counter()
    for node in resources.numa_nodes:
        start, end = node.memory_base, node.memory_base + node.memory_size
        shares[node.node_id] += max(0, min(end, memory.pool_end) - max(start, memory.pool_base))
    asked: list[tuple[int, int | None]] = [(size, node) for node, size in shares.items() if size]
    # What lies on no node that the baseline describes may come from anywhere.
    rest = memory.pool_bytes - sum(shares.values())
    return [*asked, *([(rest, None)] if rest else [])]


def request_items(asked: Iterable[tuple[int, int | None]]) -> list[Node]:
    """Return requests for memory as nodes."""
    nodes = []
    for number, (size, numa_node) in enumerate(asked):
        node = Node(f"memory@{number:x}", properties=[Property("size", (fdt.u64(size),))])
        if numa_node is not None:
            node.properties.append(Property("numa-node-id", (fdt.u32(numa_node),)))
        nodes.append(node)
    return nodes


def baseline(recorded: Recorded) -> bytes:
    """Return the blob that asks for a pool where there is none."""
    resources = recorded.resources
    pool = Node("resources", properties=[Property("cpus", (fdt.u64(*recorded.cpus),))])
    pool.children += request_items(requests(resources))
    aliases = []
    container = Node("devices")
    for device in pooled(resources):
        address = device.pci_id or ""
        node = Node(pci_name(address))
        node.properties += [Property("device-type", ("pci",)), Property("pci-id", (address,))]
        if device.compatible is not None:
            node.properties.append(Property("compatible", (device.compatible,)))
        container.children.append(node)
        if (alias := alias_of(device)) is not None:
            aliases.append(Property(alias, (f"/resources/devices/{node.name}",)))
    root = Node("/", properties=[Property("compatible", (HOST_COMPATIBLE,))], children=[pool])
    if container.children:
        pool.children.append(container)
    if aliases:
        root.children.append(Node("aliases", properties=aliases))
    return fdt.write(Tree(root))


def alias_of(device: Device) -> str | None:
    """Return the name that a kernel may give to a device; None where it takes no such name."""
    fits = 0 < len(device.name) <= _ALIAS_LENGTH and set(device.name) <= _ALIAS_CHARACTERS
    return device.name if fits else None


def pool_change(pool: Pool, wanted: Recorded | None) -> bytes | None:
    """Return the overlay that makes ``pool`` what is wanted (None: nothing); None when it is so already.

    Memory moves in whole pieces: unless there is as much as is wanted, in one piece, all goes and comes anew.
    """
    cpus = set(wanted.cpus) if wanted else set()
    devices = {(device.pci_id or "").lower(): device for device in pooled(wanted.resources)} if wanted else {}
    has = {device.pci_id for device in pool.devices if device.pci_id}
    enough = wanted is not None and pool.base is not None and pool.bytes == wanted.resources.memory.pool_bytes
    pieces = [] if enough else [(piece.base, piece.size) for piece in pool.pieces]
    asked = [] if enough or wanted is None else requests(wanted.resources)
    added = [(address, alias_of(devices[address])) for address in sorted(devices.keys() - has)]
    nodes = [
        Node("memory-remove", children=memory_items(pieces)),
        Node("memory-add", children=request_items(asked)),
        Node("cpu-remove", children=cpu_items(sorted(set(pool.cpus) - cpus))),
        Node("cpu-add", children=cpu_items(sorted(cpus - set(pool.cpus)))),
        Node("device-remove", children=device_items((name, None) for name in sorted(has - devices.keys()))),
        Node("device-add", children=device_items(added)),
    ]
    found = [node for node in nodes if node.children]
    return overlay(fragment(0, "/resources", *found)) if found else None
