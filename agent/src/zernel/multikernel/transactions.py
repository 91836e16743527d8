# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays applied as transactions: under the lock, journalled, verified, and undone when they fail.

A change is a list of steps, one overlay each, and is done as a whole or not at all. The transaction that an
overlay made is found by comparing what was there before and by the overlay's own bytes, never by taking the
highest number: other programs write overlays too. What has to be undone is told by the state that the kernel
shows, so that undoing can itself be interrupted anywhere and taken up again.

Undoing writes inverse overlays, and never removes the directory of a transaction: kernels of the first
version refuse that, and those of the second undo by it what a failed transaction never did, which may be
another's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from zernel.devicetree.model import Instance
from zernel.errors import Problem, ZernelError, fail, os_suggestion
from zernel.multikernel import state
from zernel.multikernel.call_journal import CallJournal
from zernel.multikernel.changes import Step, same, within
from zernel.multikernel.fs import MultikernelFs, Transaction, has_kernel, labelled
from zernel.multikernel.journal import Entry, Journal
from zernel.multikernel.pool import settle as settle_pool
from zernel.multikernel.wire import Wire
from zernel.multikernel.wire_probe import wire_for
from zernel.record import Record

_KERNEL_LOG = "journalctl -k -g multikernel"


class Settled(Record):
    """What became of a change that an earlier command left: notes for a person, which instances it had
    created, and which were removed now."""

    notes: tuple[str, ...] = ()
    created: frozenset[str] = frozenset()
    removed: tuple[Instance, ...] = ()


@contextmanager
def change(fs: MultikernelFs, dry_run: bool) -> Iterator[tuple[Wire, Journal | None, Settled]]:
    """Hold the lock and settle what was left, unless nothing will be written; give the kernel's wire format.

    Errors carry the simulation's label, and the notes: the journal does not hold them any more.
    """
    journal = None if dry_run else Journal(fs.root)
    with labelling(fs):
        if journal is not None and os.geteuid() != 0:
            raise fail(
                "not-root",
                "Only root may change kernel instances",
                suggestion="Run the command as root, or see what it would do: --dry-run",
            )
        with journal.lock() if journal else nullcontext():
            pool_notes = settle_pool(fs, journal.directory) if journal else ()
            wire = wire_for(fs)
            settled = settle(fs, wire, journal) if journal else Settled()
            if journal:
                notes = (*pool_notes, *settled.notes, *CallJournal(journal).settle(fs))
                settled = settled.but(notes=notes)
            try:
                yield wire, journal, settled
            except ZernelError as error:
                raise _noted(error, settled.notes) from error.__cause__


def _noted(error: ZernelError, notes: tuple[str, ...]) -> ZernelError:
    def add(problem: Problem) -> Problem:
        return problem.but(note="; ".join(filter(None, (*notes, problem.note))) or None)

    return ZernelError(*(add(problem) for problem in error.problems))


@contextmanager
def labelling(fs: MultikernelFs) -> Iterator[None]:
    """Add the simulation's label to the errors that pass, when nothing is real."""
    try:
        yield
    except ZernelError as error:
        raise labelled(error, fs) from error.__cause__


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
    entry = Entry(
        journal.next_number(),
        action,
        tuple(steps),
        tuple(_digest(blob) for blob in blobs),
        before=tuple(sorted(before)),
        undoes=undoes,
    )
    journal.begin(entry)
    applied: list[Transaction] = []
    for step, blob in zip(steps, blobs, strict=True):
        refusal: OSError | None = None
        try:
            fs.write_overlay(blob)
        except OSError as error:
            refusal = error
        known = before.union(transaction.id for transaction in applied)
        found = _only(_digest(blob), _new(fs, known))
        if refusal is None and found is not None and found.status == "applied" and _shows(fs, wire, step):
            applied.append(found)
            continue
        undone = _undo(fs, wire, journal, entry)
        if not undone.left:
            journal.end()
        raise _failed(fs, entry, step, found, refusal, undone)
    try:
        journal.commit(entry, tuple(transaction.id for transaction in applied))
    except OSError as error:
        raise fail(
            "history-not-written",
            "The change was made, and could not be recorded",
            subject=steps[0].name,
            explanation=f"{journal.done}: {error.strerror or error}",
            suggestion=os_suggestion(error, "Correct what the line above names")
            + ": the next command records it, and a rollback needs that",
        ) from error
    return tuple(applied)


def made_by(fs: MultikernelFs, entry: Entry) -> bool:
    """Say whether a change of the history was made on this mount: the kernel still shows its transactions."""
    found = [fs.transaction(number) for number in entry.transactions]
    digests = [_digest(transaction.dtbo) if transaction else "" for transaction in found]
    return digests == list(entry.overlays)


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _overlay(fs: MultikernelFs, wire: Wire, step: Step) -> bytes:
    return wire.step(step, None if step.after is None else state.baseline(fs, wire))


def _new(fs: MultikernelFs, known: set[int]) -> list[Transaction]:
    found = (fs.transaction(number) for number in sorted(fs.transactions() - known))
    return [transaction for transaction in found if transaction is not None]


def _only(digest: str, transactions: list[Transaction]) -> Transaction | None:
    """Return the transaction that holds our overlay; None if there is none, or two."""
    own = [found for found in transactions if _digest(found.dtbo) == digest]
    return own[0] if len(own) == 1 else None


def _shows(fs: MultikernelFs, wire: Wire, step: Step) -> bool:
    if step.after is None:
        return step.name not in fs.instance_names()
    now = state.present(fs, wire, step.name)
    return same(now, wire.expected(step.after, now))


# -- undoing ------------------------------------------------------------------------------------------------


class _Undone(Record):
    """How things stand after a failed change, in words; ``left`` says that a part of it is there still."""

    texts: tuple[str, ...]
    left: bool = False
    removed: tuple[Instance, ...] = ()


def _undo(fs: MultikernelFs, wire: Wire, journal: Journal, entry: Entry) -> _Undone:
    """Take back what a failed change did, the last step first, and say how things stand."""
    if len(entry.steps) == 1 and entry.steps[0].after is None:
        there = entry.steps[0].name in fs.instance_names()  # one that is gone is what was asked for
        return _Undone(("The instance is still there" if there else "The instance is gone",))
    transactions = _new(fs, set(entry.before))
    ours = {*entry.overlays, *entry.undone}
    others = {
        name
        for found in transactions
        if found.status == "applied" and _digest(found.dtbo) not in ours
        for name in wire.concerns(found.instance, found.dtbo)
    }
    texts: list[str] = []
    stuck: set[str] = set()
    removed: list[Instance] = []
    for step, digest in reversed(list(zip(entry.steps, entry.overlays, strict=True))):
        now = state.present(fs, wire, step.name)
        step = Step(wire.expected(step.before, now), wire.expected(step.after, now))
        own = _only(digest, transactions)
        if step.name in stuck or same(now, step.before):
            continue
        if own is None and step.before is not None and not same(now, step.after):
            continue  # a later step of the same instance, which was never reached
        if own is None or step.name in others or not within(now, step):
            by_other = "An instance of this name is there, made" if step.before is None else "It was changed"
            texts.append(f"{_of(entry, step)}{by_other} by another program; it was left alone")
            continue
        word = {"create": "created", "update": "changed", "delete": "deleted"}[step.verb]
        back = {"create": "removed again", "update": "changed back", "delete": "created again"}[step.verb]
        part = f"A part of it was {word}" if len(entry.steps) == 1 else f"{step.name}: it was {word}"
        if _in_use(fs, step.name):
            texts.append(f"{part}; it is in use by now, and was left alone")
            continue
        undo = Step(now, step.before)
        blob = _overlay(fs, wire, undo)
        entry = entry.but(undone=(*entry.undone, _digest(blob)))
        journal.begin(entry)
        why = ""
        try:
            fs.write_overlay(blob)
        except OSError as error:
            why = f": {error.strerror}"
        if not _shows(fs, wire, undo):
            stuck.add(step.name)
            texts.append(f"{part} and could not be {back}{why}")
            continue
        texts.append(f"{part}, and was {back}")
        if step.before is None and now is not None:
            removed.append(now)
    nothing = (
        "Nothing was created" if [step.before for step in entry.steps] == [None] else "Nothing was changed"
    )
    return _Undone(tuple(texts) or (nothing,), bool(stuck), tuple(removed))


def _of(entry: Entry, step: Step) -> str:
    return "" if len(entry.steps) == 1 else f"{step.name}: "


def _failed(
    fs: MultikernelFs,
    entry: Entry,
    step: Step,
    found: Transaction | None,
    refusal: OSError | None,
    undone: _Undone,
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
    suggestion = f"Look for the reason in the kernel log: {_KERNEL_LOG}"
    if fs.simulated:
        suggestion = "Run it again: a simulation refuses what a --fault told it to, once for each --fault"
    if undone.left and entry.action == "create":
        suggestion = f"Remove what is left: zernel delete {step.name}"
    elif undone.left:
        suggestion = "See what is left with 'zernel show'; the next change tries again to undo it"
    elif len(entry.steps) == 1 and step.after is None and step.name not in fs.instance_names():
        category = "The instance was deleted, and the kernel reports a failure all the same"
        suggestion = "Nothing is left to be deleted; compare 'zernel show' with what you expect"
    return fail(
        "transaction-failed",
        category,
        subject=step.name,
        explanation=(why, *undone.texts),
        suggestion=suggestion,
    )


# -- settling what an earlier command left ------------------------------------------------------------------


def settle(fs: MultikernelFs, wire: Wire, journal: Journal) -> Settled:
    """Finish what an earlier command left, and say what was found.

    A change whose steps were all done is kept; any other is undone. Raises `ZernelError`, and keeps the
    journal, when a part still cannot be undone: no change is safe before that.
    """
    entry = journal.pending()
    if entry is None:
        return Settled()
    earlier = f"An earlier '{entry.command}' was interrupted"
    transactions = _new(fs, set(entry.before))
    own = [found for digest in entry.overlays if (found := _only(digest, transactions)) is not None]
    last = {step.name: step for step in entry.steps}.values()
    whole = len(own) == len(entry.steps) and all(found.status == "applied" for found in own)
    if whole and not entry.undone and all(_shows(fs, wire, step) for step in last):
        journal.commit(entry, tuple(found.id for found in own))
        created = frozenset(step.name for step in last if step.before is None)
        return Settled((f"{earlier}: {_done(entry)}",), created)
    undone = _undo(fs, wire, journal, entry)
    if undone.left:
        category = "What a failed change left cannot be undone"
        suggestion = f"Try again; if it stays so, look for the reason in the kernel log: {_KERNEL_LOG}"
        if entry.action == "create":
            category = "What a failed creation left cannot be removed"
            suggestion = f"Try again: zernel delete {entry.steps[0].name}"
        raise fail(
            "leftover",
            category,
            subject=entry.steps[0].name,
            explanation=(earlier, *undone.texts),
            suggestion=suggestion,
        )
    journal.end()
    outcome = "; ".join(undone.texts)
    outcome = {"Nothing was created": "it created nothing", "Nothing was changed": "it changed nothing"}.get(
        outcome, outcome if len(entry.steps) > 1 else outcome[0].lower() + outcome[1:]
    )
    return Settled((f"{earlier}: {outcome}",), removed=undone.removed)


def _done(entry: Entry) -> str:
    if len(entry.steps) > 1:
        return "all of it was done"
    verb = entry.steps[0].verb
    return {
        "create": "the instance is there",
        "delete": "the instance is gone",
        "update": "the instance has what was asked",
    }[verb]


def _in_use(fs: MultikernelFs, name: str) -> bool:
    """Say whether a kernel was loaded into the instance: it is somebody's then, however it came about."""
    return has_kernel(fs.status(name))
