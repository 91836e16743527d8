# SPDX-License-Identifier: GPL-3.0-or-later
"""Which change a rollback takes back, and where that leads."""

from __future__ import annotations

from zernel.devicetree.free import free_cpus, free_memory, free_parts
from zernel.devicetree.model import DeviceUse, Instance, System
from zernel.devicetree.units import exact_size, format_cpus
from zernel.devicetree.validate import validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import allocate
from zernel.multikernel.changes import check_in_place, common, differences
from zernel.multikernel.fs import ACTIVE, has_kernel
from zernel.multikernel.journal import Entry
from zernel.multikernel.state import State
from zernel.multikernel.wire import Wire

_SHOWN = 8
"""Commands that an advice names."""


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


def undone(current: State, entry: Entry, wire: Wire) -> tuple[tuple[Instance, ...], list[Problem]]:
    """Return the instances as they were before a change, with everything that speaks against it.

    What the change left must be what there is: a later change would be lost otherwise. Where the kernel
    places memory, one that comes back has a free place as a stand-in.
    """
    system = current.system
    instances = {one.name: one for one in system.instances}
    problems: list[Problem] = []
    judged: list[Problem] = []
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
    first = _first(entry)
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
                    suggestion=f"Create it anew: zernel create {name} --cpus=LIST --memory=SIZE",
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
                    judged += error.problems
            instances[name] = back
    if not problems and not judged:
        judged += validate(System(system.resources, tuple(instances.values())))
    return tuple(instances.values()), problems + advised(judged, current, entry, wire)


def _first(entry: Entry) -> dict[str, Instance | None]:
    """Return what each instance was before a change."""
    return {step.name: step.before for step in reversed(entry.steps)}


# -- what to do about a rollback that cannot be -------------------------------------------------------------


def advised(problems: list[Problem], current: State, entry: Entry, wire: Wire) -> list[Problem]:
    """Return problems with the advice of a rollback.

    What judges a change that is asked for advises to ask for something else, and a rollback asks for nothing:
    what was there comes back, or is created anew by a person.
    """
    back = [one for one in _first(entry).values() if one is not None]
    if not back:
        return problems  # they are others' alone
    others = tuple(one for one in current.system.instances if one.name not in _first(entry))
    frees = [
        text
        for other in others
        if (text := _freeing(other, back, current.statuses[other.name], placed=not wire.places_memory))
    ]
    more = f"; and {len(frees) - _SHOWN} more" if len(frees) > _SHOWN else ""
    ways = [f"Free what is in its way: {'; '.join(frees[:_SHOWN])}{more}"] if frees else []
    ways += filter(None, [_anew(current, back[0], others)] if len(back) == 1 else [])
    ways.append("Free CPUs, memory and devices first: 'zernel show' tells who has them")
    suggestion, alternative, *_ = *ways, None
    return [
        one.but(suggestion=None, alternative=None)
        if one.severity == "WARNING"
        else one.but(suggestion=suggestion, alternative=alternative, did_you_mean=(), note=None)
        for one in problems
    ]


def _freeing(other: Instance, back: list[Instance], status: str, *, placed: bool) -> str | None:
    """Return the command by which ``other`` gives up what it has of instances that come back; None where it
    has nothing of them."""
    has = [found for one in back if (found := common(one, other, placed=placed)).any]
    if not has:
        return None
    cpus = {cpu for one in has for cpu in one.cpus}
    name = other.name
    stop = [f"zernel kill {name}"] if status == ACTIVE else []
    stop += [f"zernel unload {name}"] if has_kernel(status) else []
    only_cpus = not any(one.memory or one.devices or one.id is not None for one in has)
    if only_cpus and not cpus.issuperset(other.cpus):
        return " && ".join([*stop, f"zernel update {name} --remove-cpus={format_cpus(cpus)}"])
    return " && ".join([*stop, f"zernel delete {name}"])


def _anew(current: State, wanted: Instance, others: tuple[Instance, ...]) -> str | None:
    """Return the command that creates what is to come back from what is free, or None."""
    resources = current.system.resources
    free = free_cpus(resources, others)
    gaps = free_memory(resources.memory, others)
    memory = min(wanted.memory_bytes, max((end - start for start, end in gaps), default=0))
    if not free or not memory or has_kernel(current.statuses.get(wanted.name)):
        return None
    given = {use for other in others for use in common(wanted, other, placed=False).devices}
    there = {
        use for device in resources.devices for use in (DeviceUse(device.name), *free_parts(device, given))
    }
    devices = ",".join(str(use) for use in wanted.devices if use in there - given)
    name = wanted.name
    delete = f"zernel delete {name} && " if name in current.statuses else ""
    return (
        f"Create it anew from what is free: {delete}zernel create {name}"
        f" --cpu-count={min(len(wanted.cpus), len(free))} --memory={exact_size(memory)}"
        + (f" --devices={devices}" if devices else "")
    )
