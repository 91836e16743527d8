# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays applied as transactions: under the lock, journalled, verified, and undone when they fail.

The transaction that an overlay made is found by comparing what was there before and by the overlay's own
bytes, never by taking the highest number: other programs write overlays too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from zernel.devicetree.model import Instance
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel.fs import MultikernelFs, Transaction, labelled
from zernel.multikernel.journal import Entry, Journal
from zernel.multikernel.overlay import V1
from zernel.record import Record


class Settled(Record):
    """What became of a change that an earlier command left: notes for a person, which instance it had
    created, and which one was removed now."""

    notes: tuple[str, ...] = ()
    created: str | None = None
    removed: Instance | None = None


@contextmanager
def change(fs: MultikernelFs, wire: V1, dry_run: bool) -> Iterator[tuple[Journal | None, Settled]]:
    """Hold the lock and settle what was left, unless nothing will be written.

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
            settled = settle(fs, wire, journal) if journal else Settled()
            try:
                yield journal, settled
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


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def apply(
    fs: MultikernelFs, wire: V1, journal: Journal, entry: Entry, blob: bytes, done: Callable[[], bool]
) -> Transaction:
    """Write an overlay and return its transaction, applied and verified by ``done``.

    Raises `ZernelError` otherwise; what a failed creation left behind was removed then. Where that failed
    too, the journal keeps the entry and the next command tries again.
    """
    before = fs.transactions()
    entry = entry.but(overlay=_digest(blob), before=tuple(sorted(before)))
    journal.begin(entry)
    refusal: OSError | None = None
    try:
        fs.write_overlay(blob)
    except OSError as error:
        refusal = error
    found = _own_transaction(fs, entry)
    if refusal is None and found is not None and found.status == "applied" and done():
        journal.end()
        return found
    undone = _undo(fs, wire, entry)
    if not undone.left:
        journal.end()
    raise _failed(fs, entry, found, refusal, undone)


def _own_transaction(fs: MultikernelFs, entry: Entry) -> Transaction | None:
    """Return the transaction that holds our overlay and was not there before; None if there is none, or
    two."""
    candidates = [fs.transaction(number) for number in sorted(fs.transactions().difference(entry.before))]
    own = [found for found in candidates if found is not None and _digest(found.dtbo) == entry.overlay]
    return own[0] if len(own) == 1 else None


class _Undone(Record):
    """How things stand after a failed change, in words; ``left`` says that a part is there still."""

    text: str
    left: bool = False
    removed: Instance | None = None


def _undo(fs: MultikernelFs, wire: V1, entry: Entry) -> _Undone:
    """Take back what a failed creation left, and say how things stand."""
    there = entry.instance in fs.instance_names()
    if entry.action != "create":
        return _Undone("The instance is still there" if there else "The instance is gone")
    if not there:
        return _Undone("Nothing was created")
    ours = _ours(fs, wire, entry)
    if ours is None:
        return _Undone("An instance of this name is there, made by another program; it was left alone")
    try:
        fs.write_overlay(wire.remove(entry.instance))
    except OSError as error:
        return _Undone(f"A part of it was created and could not be removed: {error.strerror}", left=True)
    if entry.instance in fs.instance_names():
        return _Undone("A part of it was created and could not be removed", left=True)
    return _Undone("A part of it was created, and was removed again", removed=ours)


def _ours(fs: MultikernelFs, wire: V1, entry: Entry) -> Instance | None:
    """Return the instance that is there if our failed overlay made it, None if another program did.

    It was not there before ours was written. So it is ours when it shows what our overlay asked for, and
    when no other transaction of that time made it.
    """
    own = _own_transaction(fs, entry)
    if own is None:
        return None
    since = fs.transactions().difference(entry.before, {own.id})
    others = [fs.transaction(number) for number in since]
    if any(other and other.instance == entry.instance and other.status == "applied" for other in others):
        return None
    try:
        number, _, blob = fs.instance(entry.instance)
    except FileNotFoundError:
        return None
    shown = wire.read_instance(entry.instance, number, blob) if blob else None
    return shown if shown == wire.read_instance(entry.instance, number, own.dtbo) else None


def _failed(
    fs: MultikernelFs,
    entry: Entry,
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
    category = f"The kernel did not {entry.action} the instance"
    suggestion = "Look for the reason in the kernel log: journalctl -k -g multikernel"
    if fs.simulated:
        suggestion = "Run it again: a simulation refuses what a --fault told it to, once for each --fault"
    if undone.left:
        suggestion = f"Remove what is left: zernel delete {entry.instance}"
    elif entry.action == "delete" and entry.instance not in fs.instance_names():
        category = "The instance was deleted, and the kernel reports a failure all the same"
        suggestion = "Nothing is left to be deleted; compare 'zernel show' with what you expect"
    return fail(
        "transaction-failed",
        category,
        subject=entry.instance,
        explanation=(why, undone.text),
        suggestion=suggestion,
    )


def is_there(fs: MultikernelFs, wire: V1, instance: Instance) -> bool:
    try:
        number, _, blob = fs.instance(instance.name)
    except FileNotFoundError:
        return False
    shown = wire.read_instance(instance.name, number, blob) if blob else instance
    return shown == instance


def settle(fs: MultikernelFs, wire: V1, journal: Journal) -> Settled:
    """Finish what an earlier command left, and say what was found.

    Raises `ZernelError`, and keeps the journal, when a part of a failed creation still cannot be removed: no
    change is safe before that.
    """
    entry = journal.pending()
    if entry is None:
        return Settled()
    earlier = f"An earlier 'zernel {entry.action} {entry.instance}' was interrupted"
    found = _own_transaction(fs, entry)
    there = entry.instance in fs.instance_names()
    created, removed = None, None
    if found is not None and found.status != "applied" and entry.action == "create":
        undone = _undo(fs, wire, entry) if not _in_use(fs, entry.instance) else _Undone("It is in use by now")
        if undone.left:
            raise fail(
                "leftover",
                "What a failed creation left cannot be removed",
                subject=entry.instance,
                explanation=(earlier, undone.text),
                suggestion=f"Try again: zernel delete {entry.instance}",
            )
        outcome, removed = undone.text, undone.removed
    elif entry.action == "create":
        created = entry.instance if there and found is not None else None
        outcome = "the instance is there" if created else "it created nothing"
    else:
        outcome = "the instance is still there" if there else "the instance is gone"
    journal.end()
    return Settled((f"{earlier}: {outcome}",), created, removed)


def _in_use(fs: MultikernelFs, name: str) -> bool:
    """Say whether a kernel was loaded into the instance: it is somebody's then, however it came about."""
    try:
        return fs.instance(name)[1] in ("loaded", "active")
    except FileNotFoundError:
        return False
