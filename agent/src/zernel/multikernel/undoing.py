# SPDX-License-Identifier: GPL-3.0-or-later
"""Which change a rollback takes back, and where that leads."""

from __future__ import annotations

from zernel.devicetree.model import Instance, System
from zernel.devicetree.validate import validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import allocate
from zernel.multikernel.changes import check_in_place, differences
from zernel.multikernel.journal import Entry
from zernel.multikernel.wire import Wire


def to_undo(history: list[Entry], transaction: int | None) -> Entry:
    """Return the change that a rollback is to take back; ``history`` has the newest first.

    Without a transaction it is the last change that stands: no rollback, and none that was rolled back.
    """
    if transaction is not None:
        for entry in history:
            if transaction in entry.transactions:
                return entry
        known = [number for entry in history for number in entry.transactions]
        raise fail(
            "transaction-unknown",
            f"There is no transaction tx_{transaction} of Zernel's",
            explanation=f"Those that can be rolled back: {_numbers(known) or 'none'}",
            suggestion="Name one of them, or none: the last change is rolled back then",
        )
    gone: set[int] = set()
    for entry in history:
        if entry.number in gone:
            continue
        if entry.undoes is None:
            return entry
        gone.add(entry.undoes)
    raise fail(
        "nothing-to-undo",
        "There is no change to roll back",
        explanation="Zernel made none since the multikernel file system came up, or all were rolled back",
        suggestion="See what there is: zernel show",
    )


def _numbers(transactions: list[int]) -> str:
    shown = [f"tx_{number}" for number in sorted(transactions)[-16:]]
    return ", ".join(["...", *shown] if len(transactions) > 16 else shown)


def undone(system: System, entry: Entry, wire: Wire) -> tuple[tuple[Instance, ...], list[Problem]]:
    """Return the instances as they were before a change, with everything that speaks against it.

    What the change left must be what there is: a later change would be lost otherwise. Where the kernel
    places memory, one that comes back has a free place as a stand-in.
    """
    instances = {one.name: one for one in system.instances}
    problems: list[Problem] = []
    named = ", ".join(f"tx_{number}" for number in entry.transactions)
    if (other := wire.renumbered(physical_ids=entry.physical_ids)) is not None:
        unknown = system.resources.unknown
        problem = Problem(
            "cpu-renumbered",
            f"What {named} did cannot be told from what there is now",
            explanation=tuple(filter(None, (other, unknown))),
            suggestion=f"Change it with zernel update, create or delete: '{entry.command}'",
        )
        return system.instances, [problem]
    # Several steps may have moved one instance: what counts is where it was first and where it was last.
    first = {step.name: step.before for step in reversed(entry.steps)}
    last = {step.name: step.after for step in entry.steps}
    for name, before in first.items():
        now = instances.get(name)
        wrong = differences(now, wire.expected(last[name], now))
        if wrong:
            problems.append(
                Problem(
                    "state-differs",
                    f"The instance is not what {named} left",
                    subject=name,
                    explanation=tuple(wrong),
                    conflict="A rollback would undo more than that change",
                    suggestion="Take back first what was changed since then: with 'zernel rollback TX'"
                    " where Zernel did it, else with zernel update, create or delete",
                )
            )
        elif before is None:
            instances.pop(name, None)
        elif not before.cpus:
            problems.append(
                Problem(
                    "state-unknown",
                    "What the instance owned is not known",
                    subject=name,
                    explanation=("Its resources could not be read when it was deleted",),
                    suggestion=f"Create it anew: zernel create {name}",
                )
            )
        else:
            back = wire.expected(before, now) or before
            if wire.places_memory and (now is None or check_in_place(now, back, system.resources)):
                # It is created anew, and what there is of it now makes room.
                others = tuple(one for one in instances.values() if one.name != name)
                rest = System(system.resources, others)
                wishes = allocate.Wishes(before.numa_nodes, before.cpu_affinity, before.memory_policy)
                try:
                    base = allocate.choose_memory(rest, before.memory_bytes, name, wishes, before.cpus)
                    back = back.but(memory_base=base)
                except ZernelError as error:
                    problems += error.problems
            instances[name] = back
    if not problems:
        problems += validate(System(system.resources, tuple(instances.values())))
    return tuple(instances.values()), problems
