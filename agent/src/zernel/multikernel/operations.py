# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that change instances do: look at the full state, plan, apply, verify.

A plan is the same with and without ``dry_run``: only the last step, asking the kernel, is left out.
"""

from __future__ import annotations

from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import Instance, Resources
from zernel.devicetree.validate import is_valid
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import planning, state
from zernel.multikernel.fs import MultikernelFs, Transaction
from zernel.multikernel.journal import Entry
from zernel.multikernel.overlay import V1
from zernel.multikernel.transactions import apply, change, is_there
from zernel.record import Record


class Outcome(Record):
    """What a change did: the instance before and after it (None: not there), and the kernel's transaction.

    ``notes`` say what was found of an earlier command that did not finish.
    """

    before: Instance | None
    after: Instance | None
    status: str | None = None
    changed: bool = True
    transaction: Transaction | None = None
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def create(fs: MultikernelFs, request: planning.Request, *, dry_run: bool, ensure: bool) -> Outcome:
    """Create an instance.

    With ``ensure``, an instance that already has exactly what is asked for is left alone. Raises
    `ZernelError`, and then there is no new instance.
    """
    wire = V1()
    with change(fs, wire, dry_run) as (journal, settled):
        notes = settled.notes
        problems = check_name(request.name)
        if problems:
            raise ZernelError(*problems)
        current = state.load(fs, wire)
        existing = current.instance(request.name)
        if existing is not None:
            if ensure:
                planning.require_equal(existing, request)
                status = current.statuses[request.name]
                return Outcome(existing, existing, status, changed=False, notes=notes)
            raise planning.exists(existing, by_interrupted=settled.created == request.name)
        instance, problems = planning.plan(current.system, request)
        if not is_valid(problems):
            raise ZernelError(*problems)
        outcome = Outcome(None, instance, warnings=tuple(problems), notes=notes)
        if journal is None:
            return outcome
        transaction = apply(
            fs,
            wire,
            journal,
            Entry("create", instance.name, "", ()),
            wire.create(instance),
            lambda: is_there(fs, wire, instance),
        )
        return outcome.but(transaction=transaction, status=fs.instance(instance.name)[1])


def delete(fs: MultikernelFs, name: str, *, dry_run: bool, ensure: bool) -> Outcome:
    """Delete an instance. With ``ensure``, one that is not there is no error."""
    wire = V1()
    with change(fs, wire, dry_run) as (journal, settled):
        notes = settled.notes
        problems = check_name(name)
        if problems:
            raise ZernelError(*problems)
        if settled.removed is not None and settled.removed.name == name:
            return Outcome(settled.removed, None, notes=notes)  # settling has just deleted it
        names = fs.instance_names()
        if name not in names:
            if ensure:
                return Outcome(None, None, changed=False, notes=notes)
            raise planning.not_there(name, names)
        number, status, blob = fs.instance(name)
        if status in ("loaded", "active"):
            raise fail(
                "instance-busy",
                f"The instance is {status}",
                subject=name,
                explanation="The kernel deletes an instance only when no kernel is loaded into it",
                suggestion="Stop and unload its kernel first",
            )
        existing = wire.read_instance(name, number, blob) if blob else None
        outcome = Outcome(existing, None, status, notes=notes)
        if journal is None:
            return outcome
        transaction = apply(
            fs,
            wire,
            journal,
            Entry("delete", name, "", ()),
            wire.remove(name),
            lambda: name not in fs.instance_names(),
        )
        return outcome.but(transaction=transaction)


def apply_baseline(
    fs: MultikernelFs, resources: Resources, *, dry_run: bool
) -> tuple[Resources | None, bool, tuple[str, ...]]:
    """Hand a valid baseline to the kernel. Return the one before it, whether anything changed, and notes.

    The notes say what was found of an earlier command that did not finish.
    """
    wire = V1()
    with change(fs, wire, dry_run) as (journal, settled):
        blob, current = wire.baseline(resources), fs.baseline()
        before = _known_baseline(wire, current)
        if current == blob or before == resources:
            return before, False, settled.notes
        names = fs.instance_names()
        if names:
            raise fail(
                "baseline-in-use",
                "The baseline cannot be replaced while there are instances",
                explanation=f"Instances: {', '.join(names)}",
                suggestion=f"Delete them first: zernel delete {names[0]}",
            )
        if journal is None:
            return before, True, ()
        try:
            fs.write_baseline(blob)
        except OSError as error:
            raise fail(
                "baseline-refused",
                f"The kernel refused the baseline: {error.strerror}",
                explanation="Nothing was changed: the kernel takes a baseline whole or not at all",
                suggestion="Check that the memory pool lies within the kernel's mkkernel_pool= region",
            ) from error
        if _known_baseline(wire, fs.baseline()) != resources:
            raise fail(
                "baseline-not-verified",
                "The kernel took the baseline and shows another one",
                suggestion="Look at it with 'zernel show', and at the kernel log",
            )
        return before, True, settled.notes


def _known_baseline(wire: V1, blob: bytes) -> Resources | None:
    if not blob:
        return None
    try:
        return wire.read_baseline(blob)[0]
    except ZernelError:
        return None  # written by something else; it is about to be replaced
