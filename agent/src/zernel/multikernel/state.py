# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel holds now, as the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zernel.devicetree.model import Instance, Resources, System
from zernel.errors import ZernelError, fail
from zernel.multikernel.fs import MultikernelFs, Transaction
from zernel.multikernel.wire import Wire, wished
from zernel.record import Record


class State(Record):
    """Baseline and instances as read from the kernel, and each instance's status by name."""

    system: System
    statuses: dict[str, str]

    def instance(self, name: str) -> Instance | None:
        """Return the instance called ``name``, or None."""
        return next((found for found in self.system.instances if found.name == name), None)


def load(fs: MultikernelFs, wire: Wire) -> State:
    """Read the full state; raises `ZernelError` when there is no baseline or when it cannot be understood.

    Instances have the NUMA nodes and policies that they were created with, also where the kernel shows none:
    kernels are not known to keep them, and the overlays tell.
    """
    blob = fs.baseline()
    if not blob:
        raise fail(
            "no-baseline",
            "No baseline is applied",
            explanation="Instances are created from the resources that a baseline describes",
            suggestion="Apply one: zernel init --input=/etc/zernel/baseline.dts --apply",
        )
    resources = wire.read_baseline(blob)
    overlays = _Overlays(fs, wire)
    instances = []
    statuses = {}
    for name in fs.instance_names():
        try:
            number, status, tree = fs.instance(name)
        except FileNotFoundError:
            continue  # it was deleted since its name was read
        instance = dict(fs.foreseen).get(name) or _read(wire, name, number, tree, overlays, lambda: resources)
        if instance is None:
            raise fail(
                "instance-unknown",
                "The instance's resources cannot be read",
                subject=name,
                explanation="Neither its device_tree nor an applied overlay tells what it owns",
                suggestion=f"Delete it before creating others: zernel delete {name}",
            )
        instances.append(instance)
        statuses[name] = status
    return State(System(resources, overlays.complete(instances)), statuses)


def load_one(fs: MultikernelFs, wire: Wire, name: str) -> Instance | None:
    """Return the instance called ``name`` as `load` does, and as `present` does when it cannot be read."""
    found = present(fs, wire, name)
    return None if found is None else _Overlays(fs, wire).complete([found])[0]


def present(fs: MultikernelFs, wire: Wire, name: str) -> Instance | None:
    """Return what the kernel shows of the instance called ``name``, or None when it is not there.

    One whose resources cannot be read has none here: it is there, and equal to nothing that a plan leads to.
    """
    try:
        number, _, tree = fs.instance(name)
    except FileNotFoundError:
        return None
    found = dict(fs.foreseen).get(name) or _read(
        wire, name, number, tree, _Overlays(fs, wire), lambda: baseline(fs, wire)
    )
    return found or Instance(name, number, (), 0, 0)


def baseline(fs: MultikernelFs, wire: Wire) -> Resources | None:
    """Return the inventory that the kernel holds, or None when there is none that is understood."""
    blob = fs.baseline()
    if not blob:
        return None
    try:
        return wire.read_baseline(blob)
    except ZernelError:
        return None  # written by something else


def _read(
    wire: Wire,
    name: str,
    number: int,
    tree: bytes,
    overlays: _Overlays,
    resources: Callable[[], Resources | None],
) -> Instance | None:
    """Return the instance from its ``device_tree``, or for kernels that do not show it there, from what the
    applied overlays gave it, oldest first."""
    instance = wire.read_instance(name, number, tree) if tree else None
    if instance is not None:
        return instance
    pool = resources()
    for transaction in overlays.of(name):
        created = wire.created_by(name, number, transaction.dtbo)
        if created is not None:
            instance = created
        elif instance is not None and pool is not None:
            instance = wire.followed(instance, transaction.dtbo, pool)
    return instance


class _Overlays:
    """The applied overlays. Each is read once, and none before it is asked for: there may be thousands."""

    def __init__(self, fs: MultikernelFs, wire: Wire) -> None:
        self.fs, self.wire = fs, wire
        self.unread: list[int] | None = None
        self.read: list[Transaction] = []
        self.by_instance: dict[str, list[Transaction]] | None = None

    def newest_first(self) -> Iterator[Transaction]:
        if self.unread is None:
            self.unread = sorted(self.fs.transactions())
        yield from self.read
        while self.unread:
            found = self.fs.transaction(self.unread.pop())
            if found is not None and found.status == "applied":
                self.read.append(found)
                yield found

    def of(self, name: str) -> list[Transaction]:
        """Return those whose file ``instance`` has this name, the oldest first."""
        if self.by_instance is None:
            self.by_instance = {}
            for found in reversed(list(self.newest_first())):
                self.by_instance.setdefault(found.instance, []).append(found)
        return self.by_instance.get(name, [])

    def complete(self, instances: list[Instance]) -> tuple[Instance, ...]:
        """Return the instances; those that show no wishes have those of the last overlay that made them."""
        without = {
            one.name: one
            for one in instances
            if not one.numa_nodes and one.cpu_affinity is None and one.memory_policy is None
        }
        made: dict[str, Instance] = {}
        for found in self.newest_first() if without else ():
            for name in self.wire.concerns(found.instance, found.dtbo) & without.keys():
                created = wished(without[name], found.dtbo)
                if created is not None:
                    made[name] = created
                    del without[name]
            if not without:
                break
        return tuple(made.get(one.name, one) for one in instances)
