# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that change instances do: look at the full state, plan, apply, verify.

A plan is the same with and without ``dry_run``: only the last step, asking the kernel, is left out. Where the
kernel chooses an instance's memory, the plan's address is a stand-in, and what is returned after a change has
the kernel's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import Instance
from zernel.devicetree.validate import is_valid
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import planning, state, undoing
from zernel.multikernel.changes import Step, differences, same
from zernel.multikernel.fs import MultikernelFs, Transaction, has_kernel
from zernel.multikernel.journal import Entry, Journal
from zernel.multikernel.ordering import order
from zernel.multikernel.transactions import apply, change, made_by
from zernel.multikernel.wire import Wire
from zernel.record import Record


class Outcome(Record):
    """What a change did: the instance before and after it (None: not there), and the kernel's
    transactions.

    ``notes`` say what was found of an earlier command that did not finish; ``replaced``, that the instance
    was deleted and created anew. ``placed`` is False for a plan whose new instance gets its memory where the
    kernel chooses.
    """

    before: Instance | None
    after: Instance | None
    status: str | None = None
    changed: bool = True
    placed: bool = True
    transactions: tuple[Transaction, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    replaced: bool = False


def create(
    fs: MultikernelFs, request: planning.Request, *, dry_run: bool, ensure: bool, root: Path = Path("/")
) -> Outcome:
    """Create an instance. ``root`` is where sys/ is, which tells of the host's cores.

    With ``ensure``, an instance that already has exactly what is asked for is left alone. Raises
    `ZernelError`, and then there is no new instance.
    """
    with change(fs, dry_run) as (wire, journal, settled):
        fs, notes = settled.fs, settled.notes
        current = state.load(fs, wire)
        existing = current.instance(request.name)
        if existing is not None:
            if ensure:
                planning.require_equal(existing, request)
                status = current.statuses[request.name]
                return Outcome(existing, existing, status, changed=False, notes=notes)
            raise planning.exists(existing, by_interrupted=request.name in settled.created)
        wish = request.but(memory_base=None) if wire.places_memory else request
        instance, problems = planning.plan(current.system, wish, root)
        steps = [Step(None, instance)]
        if wire.places_memory and request.memory_base is not None:
            problems.append(planning.place_not_chosen(request.name))
        problems += wire.refusals(steps, current.system.resources)
        if not is_valid(problems):
            raise ZernelError(*problems)
        outcome = Outcome(None, instance, warnings=tuple(problems), notes=notes)
        if journal is None:
            return outcome.but(placed=not wire.places_memory)
        done = apply(fs, wire, journal, "create", steps)
        (made,) = placed(fs, wire, steps)
        return outcome.but(after=made.after, transactions=done, status=fs.status(instance.name))


def delete(fs: MultikernelFs, name: str, *, dry_run: bool, ensure: bool) -> Outcome:
    """Delete an instance. With ``ensure``, one that is not there is no error.

    A change that cannot be settled does not stop it, unless it is about this instance.
    """
    with change(fs, dry_run, deletes=name) as (wire, journal, settled):
        fs, notes = settled.fs, settled.notes
        problems = check_name(name)
        if problems:
            raise ZernelError(*problems)
        for removed in settled.removed:
            if removed.name == name:
                return Outcome(removed, None, notes=notes)  # settling has just deleted it
        names = fs.instance_names()
        if name not in names:
            if ensure:
                return Outcome(None, None, changed=False, notes=notes)
            raise planning.not_there(name, names)
        existing, status = state.load_one(fs, wire, name), fs.status(name)
        if existing is None or status is None:  # another program deleted it since its name was read
            return Outcome(None, None, changed=False, notes=notes)
        if has_kernel(status):
            raise ZernelError(planning.busy(name, status))
        outcome = Outcome(existing, None, status, notes=notes)
        if journal is None:
            return outcome
        return outcome.but(transactions=apply(fs, wire, journal, "delete", [Step(existing, None)]))


def update(
    fs: MultikernelFs,
    wish: planning.Update,
    *,
    dry_run: bool,
    root: Path = Path("/"),
    judged: Instance | None = None,
) -> Outcome:
    """Change what an instance owns, by the least that leads there.

    ``judged`` is what the instance was when the change was decided upon: it must be so still. Raises
    `ZernelError`, and then the instance has what it had, or the error says what it has.
    """
    with change(fs, dry_run) as (wire, journal, settled):
        fs = settled.fs
        problems = check_name(wish.name)
        if problems:
            raise ZernelError(*problems)
        current = state.load(fs, wire)
        existing = current.instance(wish.name)
        if existing is None:
            raise planning.not_there(wish.name, list(current.statuses))
        if judged is not None and not same(existing, judged):
            raise fail(
                "state-changed",
                "Another command has changed the instance meanwhile",
                subject=wish.name,
                explanation=tuple(differences(existing, judged)),
                suggestion="Run it again: it is judged anew then",
            )
        instances = current.system.instances
        moved = wire.places_memory and wish.memory_base not in (None, existing.memory_base)
        if wire.places_memory:
            wish = wish.but(memory_base=None)
        after, problems = planning.update(current.system, existing, wish, root)
        if moved:
            problems.append(planning.place_not_chosen(wish.name))
        target = tuple(after if one is existing else one for one in instances)
        resources, statuses = current.system.resources, current.statuses
        replaced, why = planning.replacements(instances, target, resources, statuses, wire)
        problems += why
        if not is_valid(problems):
            raise planning.refused(problems)
        status = statuses[wish.name]
        outcome = Outcome(
            existing, after, status, warnings=tuple(problems), notes=settled.notes, replaced=bool(replaced)
        )
        if not replaced and same(existing, after):
            return outcome.but(changed=False)
        steps = order(instances, target, replaced)
        problems = planning.check_busy(current.statuses, steps)
        if problems := problems + wire.refusals(steps, resources):
            raise ZernelError(*problems)
        if journal is None:
            return outcome.but(placed=not (replaced and wire.places_memory))
        done = apply(fs, wire, journal, "update", steps)
        return outcome.but(after=wire.expected(after, state.present(fs, wire, wish.name)), transactions=done)


class Rollback(Record):
    """What a rollback did: the change that it took back, and the steps that did it.

    ``placed``: see `Outcome`.
    """

    change: Entry
    steps: tuple[Step, ...]
    placed: bool = True
    transactions: tuple[Transaction, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def rollback(fs: MultikernelFs, transaction: int | None, *, dry_run: bool) -> Rollback:
    """Undo a change of ours: that of ``transaction``, or the last one that stands.

    The inverse overlays are written, as `zernel.multikernel.transactions` says. Raises `ZernelError` when the
    present state is not what the change left.
    """
    with change(fs, dry_run) as (wire, journal, settled):
        fs = settled.fs
        current = state.load(fs, wire)
        history = [entry for entry in Journal(fs).history(settled.foreseen) if made_by(fs, entry)]
        entry = undoing.to_undo(history, transaction)
        instances, problems = undoing.undone(current, entry, wire)
        before, resources = current.system.instances, current.system.resources
        replaced, why = planning.replacements(before, instances, resources, current.statuses, wire)
        problems += why
        if not is_valid(problems):
            raise planning.refused(problems)
        steps = order(before, instances, replaced)
        refusals = [one.but(alternative=None) for one in planning.check_busy(current.statuses, steps)]
        if refusals := refusals + undoing.advised(wire.refusals(steps, resources), current, entry, wire):
            raise ZernelError(*refusals)
        found = Rollback(entry, tuple(steps), warnings=tuple(problems), notes=settled.notes)
        if journal is None:
            return found.but(placed=not wire.places_memory)
        done = apply(fs, wire, journal, "rollback", steps, undoes=entry.number)
        return found.but(steps=placed(fs, wire, steps), transactions=done)


def placed(fs: MultikernelFs, wire: Wire, steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return steps that were done, with the places that the kernel chose for the memory of new instances."""
    return tuple(
        Step(None, wire.expected(step.after, state.present(fs, wire, step.name)))
        if step.before is None and wire.places_memory
        else step
        for step in steps
    )
