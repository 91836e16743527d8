# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel holds now, as the model."""

from __future__ import annotations

from zernel.devicetree.model import Instance, System
from zernel.errors import fail
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.overlay import V1
from zernel.record import Record


class State(Record):
    """Baseline and instances as read from the kernel, and each instance's status by name.

    ``complete`` is False when the baseline was written by another program and holds the pool only.
    """

    system: System
    statuses: dict[str, str]
    complete: bool

    def instance(self, name: str) -> Instance | None:
        """Return the instance called ``name``, or None."""
        return next((found for found in self.system.instances if found.name == name), None)


def load(fs: MultikernelFs, wire: V1) -> State:
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
        instance = (wire.read_instance(name, number, tree) if tree else None) or _from_overlay(
            fs, wire, name, number
        )
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


def _from_overlay(fs: MultikernelFs, wire: V1, name: str, number: int) -> Instance | None:
    """Return what the newest applied overlay for ``name`` gave it, for kernels that do not show it."""
    for transaction_id in sorted(fs.transactions(), reverse=True):
        transaction = fs.transaction(transaction_id)
        if transaction is not None and transaction.instance == name and transaction.status == "applied":
            return wire.read_instance(name, number, transaction.dtbo)
    return None
