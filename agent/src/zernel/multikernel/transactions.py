# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays applied as transactions: under the lock, journalled, verified, and undone when they fail.

A change is a list of steps, one overlay each, and is done as a whole or not at all. The transaction that an
overlay made is found by comparing what was there before and by the overlay's own bytes, never by taking the
highest number: other programs write overlays too. How a change that fails is undone, and one that was
interrupted is settled, is in `zernel.multikernel.settling`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from zernel.errors import Problem, ZernelError, fail, from_oserror
from zernel.multikernel import inventory_record, settling, state
from zernel.multikernel.call_journal import CallJournal
from zernel.multikernel.changes import Step
from zernel.multikernel.fs import MultikernelFs, Transaction, labelled
from zernel.multikernel.journal import Entry, Journal, misplaced
from zernel.multikernel.pool import settle as settle_pool
from zernel.multikernel.settling import GivenUp, Settled, Undone
from zernel.multikernel.wire import Wire
from zernel.multikernel.wire_probe import wire_for


@contextmanager
def change(
    fs: MultikernelFs,
    dry_run: bool,
    *,
    settle: bool = True,
    deletes: str | None = None,
    must_lock: bool = True,
) -> Iterator[tuple[Wire, Journal | None, Settled]]:
    """Hold the lock and settle what was left; give the kernel's wire format. A dry run has no journal.

    Plans are made on the `Settled.fs`: in a dry run it is what settling would leave. Where a command is at
    work while a dry run looks, what its journal holds is no leftover. Without ``settle``, what was left is
    said and nothing more. What cannot be settled stops every change but one that ``deletes`` an instance
    which it is not about; its journal is the one beside. Without ``must_lock``, a disk that takes no lock
    file is a note. Errors carry the simulation's label, and the notes: the journal does not hold them any
    more.
    """
    journal, beside = Journal(fs), Journal(fs, beside=True)
    with labelling(fs):
        if not dry_run and os.geteuid() != 0:
            raise fail(
                "not-root",
                "Only root may change kernel instances",
                suggestion="Run the command as root, or see what it would do: --dry-run",
            )
        _require_places(fs, everything=settle)
        with ExitStack() as held:
            notes = () if dry_run else _lock(held, journal, must_lock=must_lock)
            if settle and not dry_run:
                notes += settle_pool(fs, journal.directory)
            wire = wire_for(fs)
            settled = Settled(fs, notes)
            at_work = dry_run and journal.is_locked()
            try:
                if not at_work:
                    for one in (beside, journal):
                        if settle:
                            found = settling.settle(settled.fs, wire, one, dry_run=dry_run, deletes=deletes)
                            settled = settled.then(found)
                        else:
                            settled = settled.but(notes=(*settled.notes, *_unsettled(one)))
                    calls = CallJournal(journal).settle(fs, dry_run=dry_run)
                    settled = settled.but(notes=(*settled.notes, *calls), calls=calls)
                yield wire, None if dry_run else beside if settled.left else journal, settled
            except (ZernelError, OSError) as error:
                raise _noted(_told(error), settled.notes) from error.__cause__


def _lock(held: ExitStack, journal: Journal, *, must_lock: bool) -> tuple[str, ...]:
    """Hold the lock; return a note where that cannot be and need not."""
    try:
        held.enter_context(journal.lock())
    except OSError as error:
        if must_lock:
            raise
        return (f"Other commands are not kept waiting: {error.filename or journal.locked}: {error.strerror}",)
    return ()


def _require_places(fs: MultikernelFs, *, everything: bool) -> None:
    """Refuse a directory, a FIFO or the like in the place of what is read and written under the lock."""
    journal = Journal(fs)
    paths = [journal.locked]
    if everything:
        beside = Journal(fs, beside=True)
        paths += [journal.path, beside.path, inventory_record.path_in(journal.directory)]
    problems = [problem for path in paths for problem in misplaced(path)]
    if problems := problems + (misplaced(journal.done, directory=True) if everything else []):
        raise ZernelError(*problems)


def _unsettled(journal: Journal) -> tuple[str, ...]:
    with suppress(ZernelError):
        if (entry := journal.pending()) is not None:
            return (f"An earlier '{entry.command}' was interrupted; the next change settles it",)
    return ()


def give_up(fs: MultikernelFs, *, dry_run: bool) -> GivenUp:
    """End the change that an earlier command left and that cannot be settled, and name what is left of it."""
    with change(fs, dry_run, settle=False) as (wire, _, settled):
        _require_places(fs, everything=True)
        if dry_run and Journal(fs).is_locked():
            return GivenUp()  # what a command at work has begun is not unfinished
        journals = (Journal(fs, beside=True), Journal(fs))
        first, second = (settling.give_up(fs, wire, one, dry_run=dry_run) for one in journals)
        return GivenUp((*first.left, *second.left), (*first.notes, *second.notes), settled.calls)


def _told(error: ZernelError | OSError) -> ZernelError:
    """Return the error in words: a disk may be full or read-only, a simulation gone."""
    return error if isinstance(error, ZernelError) else from_oserror(error, "finish the command")


def _noted(error: ZernelError, notes: tuple[str, ...]) -> ZernelError:
    def add(problem: Problem) -> Problem:
        return problem.but(note="; ".join(filter(None, (*notes, problem.note))) or None)

    return ZernelError(*(add(problem) for problem in error.problems))


@contextmanager
def labelling(fs: MultikernelFs) -> Iterator[None]:
    """Add the simulation's label to the errors that pass, when nothing is real."""
    try:
        yield
    except (ZernelError, OSError) as error:
        raise labelled(_told(error), fs) from error.__cause__


def apply(
    fs: MultikernelFs,
    wire: Wire,
    journal: Journal,
    action: str,
    steps: list[Step],
    *,
    undoes: int | None = None,
) -> tuple[Transaction, ...]:
    """Carry out the steps and return their transactions, applied and verified.

    Raises `ZernelError` otherwise; what had been done by then was undone, in reverse. Where that failed too,
    the journal keeps the entry and the next command tries again.
    """
    resources = state.baseline(fs, wire)
    blobs = [wire.step(step, resources) for step in steps]
    before = fs.transactions()
    _check_new(fs, steps)
    entry = Entry(
        journal.next_number(),
        action,
        tuple(steps),
        tuple(settling.digest(blob) for blob in blobs),
        fs.identity,
        before=tuple(sorted(before)),
        undoes=undoes,
        physical_ids=wire.physical_ids,
    )
    journal.begin(entry)
    applied: list[Transaction] = []
    for step, blob, sha in zip(steps, blobs, entry.overlays, strict=True):
        refusal: OSError | None = None
        try:
            fs.write_overlay(blob)
        except OSError as error:
            refusal = error
        known = before.union(transaction.id for transaction in applied)
        found = settling.only(sha, settling.new_transactions(fs, known))
        if (
            refusal is None
            and found is not None
            and found.status == "applied"
            and settling.shows(fs, wire, step)
        ):
            applied.append(found)
            continue
        made = [*(one.id for one in applied), found.id if found else None]
        made += [None] * (len(steps) - len(made))
        undone = settling.undo(fs, wire, journal, entry.but(made=tuple(made)))
        deleted = settling.own_deletion(fs, wire, entry)
        if deleted is not None:  # whatever the kernel says, a rollback can undo it
            settling.record(journal, entry.done((deleted.id,)))
        elif not undone.left:
            journal.end()
        raise _failed(fs, entry, step, found, refusal, undone, deleted)
    settling.record(journal, entry.done(tuple(transaction.id for transaction in applied)))
    return tuple(applied)


def _check_new(fs: MultikernelFs, steps: list[Step]) -> None:
    """Refuse to create what another program created after the plan was made: it would look like ours.

    From here on its transaction tells.
    """
    known = {step.name for step in steps if step.before is not None}
    there = set(fs.instance_names()) - known
    for step in steps:
        if step.before is None and step.name in there:
            raise fail(
                "duplicate-name",
                "Another program has just created an instance of this name",
                subject=step.name,
                suggestion="Look at the instances, then run it again: zernel show",
            )


def made_by(fs: MultikernelFs, entry: Entry) -> bool:
    """Say whether a change of the history was made on this mount: in this boot of the kernel, which still
    shows its transactions."""
    if entry.identity != fs.identity:
        return False
    found = [fs.transaction(number) for number in entry.transactions]
    shown = [settling.digest(transaction.dtbo) if transaction else "" for transaction in found]
    return shown == list(entry.overlays)


def _is_gone(fs: MultikernelFs, entry: Entry) -> bool:
    """Say whether the change was a deletion, and is done."""
    step = entry.steps[0]
    return len(entry.steps) == 1 and step.after is None and step.name not in fs.instance_names()


def _failed(
    fs: MultikernelFs,
    entry: Entry,
    step: Step,
    found: Transaction | None,
    refusal: OSError | None,
    undone: Undone,
    deleted: Transaction | None,
) -> ZernelError:
    if refusal is not None:
        why = f"Writing the overlay failed: {refusal.strerror}"
    elif found is None:
        why = "The kernel accepted the overlay, and no transaction holds it"
    elif found.status == "applied":
        why = f"Transaction tx_{found.id} says that it was applied, and the instance does not show it"
    else:
        why = f"Transaction tx_{found.id} has the status '{found.status}'"
    category = f"The kernel did not {step.verb} the instance"
    suggestion = f"Look for the reason in the kernel log: {settling.KERNEL_LOG}"
    if fs.simulated:
        suggestion = "Run it again: a simulation refuses what a --fault told it to, once for each --fault"
    if undone.left and entry.action == "create":
        suggestion = f"Remove what is left: zernel delete {step.name}"
    elif undone.left:
        suggestion = "See what is left with 'zernel show'; the next change tries again to undo it"
    elif deleted is not None:
        category = "The instance was deleted, and the kernel reports a failure all the same"
        # By its number: without one, a rollback takes back no rollback, and this may be one.
        suggestion = f"Nothing is left to be deleted; to have it back: zernel rollback tx_{deleted.id}"
    elif _is_gone(fs, entry):
        category = "The instance is gone, and it is not known by whose transaction"
        suggestion = "Nothing is left to be deleted; see what there is: zernel show"
    return fail(
        "transaction-failed",
        category,
        subject=step.name,
        explanation=(why, *undone.texts),
        suggestion=suggestion,
    )
