# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that lead from one state to another, in an order in which nothing is ever owned twice.

What goes is taken away before it is given to another. Deletions come first and creations last. An update is
one overlay, unless something stands in its way: the kernel takes away before it gives, so an instance that
keeps none of its CPUs gets the new ones first, and instances that exchange something first give and then get.
"""

from __future__ import annotations

from zernel.devicetree.model import DeviceUse, Instance
from zernel.errors import Problem, ZernelError
from zernel.multikernel.changes import Step, kept, same, union


def order(
    before: tuple[Instance, ...],
    after: tuple[Instance, ...],
    replaced: frozenset[str] = frozenset(),
) -> list[Step]:
    """Return the steps. Both states must be valid, and each update possible in place, but for those
    ``replaced``: these instances are deleted and created anew.

    Raises `ZernelError` when instances can only exchange what they have with nothing left in between.
    """
    now = {instance.name: instance for instance in before}
    wanted = {instance.name: instance for instance in after if instance.name not in replaced}
    steps = [Step(instance, None) for instance in before if instance.name not in wanted]
    owners = _Owners([instance for instance in before if instance.name in wanted])
    updates = [
        wanted[instance.name]
        for instance in before
        if instance.name in wanted and not same(instance, wanted[instance.name])
    ]

    def go(target: Instance) -> None:
        here = now[target.name]
        if not same(here, target):
            steps.append(Step(here, target))
            owners.move(here, target)
            now[target.name] = target

    while updates:
        waiting = []
        for target in updates:
            here = now[target.name]
            if not owners.free_for(target):
                waiting.append(target)
                continue
            if not kept(here, target).cpus:
                go(union(here, target))
            go(target)
        if len(waiting) == len(updates):
            # They wait for each other: one that can gives up what it is not to keep.
            giving = next((one for one in waiting if _can_give(now[one.name], one)), None)
            if giving is None:
                raise ZernelError(*(_circular(now[target.name]) for target in waiting))
            go(kept(now[giving.name], giving))
        updates = waiting
    return steps + [Step(None, one) for one in after if one.name not in now or one.name in replaced]


def _can_give(here: Instance, target: Instance) -> bool:
    left = kept(here, target)
    return bool(left.cpus) and not same(left, here)


def _circular(instance: Instance) -> Problem:
    return Problem(
        "exchange-impossible",
        "Instances would exchange all their CPUs",
        subject=instance.name,
        explanation=("An instance needs at least one CPU all the time",),
        suggestion="Make the change in two, with CPUs in between that are free",
    )


def _items(instance: Instance) -> list[int | DeviceUse]:
    return [*instance.cpus, *instance.devices]


class _Owners:
    """Who owns each CPU and device, and where memory is taken."""

    def __init__(self, instances: list[Instance]) -> None:
        self.owners: dict[int | DeviceUse, str] = {}
        self.memory = {one.name: (one.memory_base, one.memory_end) for one in instances}
        for one in instances:
            self.owners.update(dict.fromkeys(_items(one), one.name))

    def free_for(self, target: Instance) -> bool:
        """Say whether nobody else owns anything of ``target``."""
        mine = (None, target.name)
        if any(self.owners.get(item) not in mine for item in _items(target)):
            return False
        return not any(
            start < target.memory_end and target.memory_base < end
            for name, (start, end) in self.memory.items()
            if name != target.name
        )

    def move(self, here: Instance, target: Instance) -> None:
        """Follow an instance from one state to another."""
        for item in _items(here):
            self.owners.pop(item, None)
        self.owners.update(dict.fromkeys(_items(target), target.name))
        self.memory[target.name] = (target.memory_base, target.memory_end)
