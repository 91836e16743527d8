# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel holds now, as the model."""

from __future__ import annotations

from zernel.devicetree.model import Instance, Resources, System
from zernel.errors import ZernelError, fail
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.wire import Wire, wished
from zernel.record import Record


class State(Record):
    """Baseline and instances as read from the kernel, and each instance's status by name.

    ``complete`` is False when the baseline was applied by another program, and only the pool is known.
    """

    system: System
    statuses: dict[str, str]
    complete: bool

    def instance(self, name: str) -> Instance | None:
        """Return the instance called ``name``, or None."""
        return next((found for found in self.system.instances if found.name == name), None)


def load(fs: MultikernelFs, wire: Wire) -> State:
    """Read the full state; raises `ZernelError` when there is no baseline or when it cannot be understood."""
    blob = fs.baseline()
    if not blob:
        raise fail(
            "no-baseline",
            "No baseline is applied",
            explanation="Instances are created from the resources that a baseline describes",
            suggestion="Apply one: zernel init --input=/etc/zernel/baseline.dts --apply",
        )
    resources, complete = wire.read_baseline(blob)
    instances = []
    statuses = {}
    for name in fs.instance_names():
        try:
            number, status, tree = fs.instance(name)
        except FileNotFoundError:
            continue  # it was deleted since its name was read
        instance = dict(fs.foreseen).get(name) or _read(fs, wire, name, number, tree, resources)
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
    return State(System(resources, tuple(instances)), statuses, complete)


def present(fs: MultikernelFs, wire: Wire, name: str) -> Instance | None:
    """Return the instance called ``name``, or None when it is not there.

    One whose resources cannot be read has none here: it is there, and equal to nothing that a plan leads to.
    """
    try:
        number, _, tree = fs.instance(name)
    except FileNotFoundError:
        return None
    resources = baseline(fs, wire)
    return (
        dict(fs.foreseen).get(name)
        or _read(fs, wire, name, number, tree, resources)
        or Instance(name, number, (), 0, 0)
    )


def with_wishes(fs: MultikernelFs, wire: Wire, instance: Instance) -> Instance:
    """Return the instance with the NUMA nodes and policies that it was created with, where the kernel shows
    none: kernels are not known to keep them, and the overlay tells."""
    if instance.numa_nodes or instance.cpu_affinity is not None or instance.memory_policy is not None:
        return instance
    for number in sorted(fs.transactions(), reverse=True):
        made = fs.transaction(number)
        if made is None or made.status != "applied":
            continue
        if instance.name in wire.concerns(made.instance, made.dtbo):
            created = wished(instance, made.dtbo)
            if created is not None:
                return created
    return instance


def baseline(fs: MultikernelFs, wire: Wire) -> Resources | None:
    """Return the inventory that the kernel holds, or None when there is none that is understood."""
    blob = fs.baseline()
    if not blob:
        return None
    try:
        return wire.read_baseline(blob)[0]
    except ZernelError:
        return None  # written by something else


def _read(
    fs: MultikernelFs, wire: Wire, name: str, number: int, tree: bytes, resources: Resources | None
) -> Instance | None:
    """Return the instance from its ``device_tree``, or for kernels that do not show it there, from what the
    applied overlays gave it, oldest first."""
    instance = wire.read_instance(name, number, tree) if tree else None
    if instance is not None:
        return instance
    for transaction_id in sorted(fs.transactions()):
        transaction = fs.transaction(transaction_id)
        if transaction is None or transaction.instance != name or transaction.status != "applied":
            continue
        created = wire.created_by(name, number, transaction.dtbo)
        if created is not None:
            instance = created
        elif instance is not None and resources is not None:
            instance = wire.followed(instance, transaction.dtbo, resources)
    return instance
