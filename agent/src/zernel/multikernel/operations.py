# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes to the instances: planned against the full state, applied as transactions, verified afterwards.

A plan is the same with and without ``dry_run``: only the last step, asking the kernel, is left out. The
transaction that an overlay made is found by comparing what was there before and by the overlay's own bytes,
never by taking the highest number: other programs write overlays too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from zernel.devicetree.allocations import check_name
from zernel.devicetree.model import DeviceUse, Instance, Resources, System
from zernel.devicetree.units import format_cpus, format_size
from zernel.devicetree.validate import is_valid, validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import allocate, state
from zernel.multikernel.fs import MultikernelFs, Transaction, labelled
from zernel.multikernel.journal import Entry, Journal
from zernel.multikernel.overlay import V1
from zernel.record import Record

T = TypeVar("T")


class Request(Record):
    """What ``zernel create`` is asked for. Either ``cpus`` or ``cpu_count`` is given."""

    name: str
    memory_bytes: int
    cpus: tuple[int, ...] | None = None
    cpu_count: int | None = None
    memory_base: int | None = None
    devices: tuple[DeviceUse, ...] = ()
    id: int | None = None


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


def create(fs: MultikernelFs, request: Request, *, dry_run: bool, ensure: bool) -> Outcome:
    """Create an instance.

    With ``ensure``, an instance that already has exactly what is asked for is left alone. Raises
    `ZernelError`, and then there is no new instance.
    """
    wire = V1()
    with _change(fs, wire, dry_run) as (journal, settled):
        notes = settled.notes
        problems = check_name(request.name)
        if problems:
            raise ZernelError(*problems)
        current = state.load(fs, wire)
        existing = current.instance(request.name)
        if existing is not None:
            if ensure:
                _require_equal(existing, request)
                status = current.statuses[request.name]
                return Outcome(existing, existing, status, changed=False, notes=notes)
            raise _exists(existing, by_interrupted=settled.created == request.name)
        instance, problems = _plan(current.system, request)
        if not is_valid(problems):
            raise ZernelError(*problems)
        outcome = Outcome(None, instance, warnings=tuple(problems), notes=notes)
        if journal is None:
            return outcome
        transaction = _apply(
            fs,
            wire,
            journal,
            Entry("create", instance.name, "", ()),
            wire.create(instance),
            lambda: _is_there(fs, wire, instance),
        )
        return outcome.but(transaction=transaction, status=fs.instance(instance.name)[1])


def delete(fs: MultikernelFs, name: str, *, dry_run: bool, ensure: bool) -> Outcome:
    """Delete an instance. With ``ensure``, one that is not there is no error."""
    wire = V1()
    with _change(fs, wire, dry_run) as (journal, settled):
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
            raise not_there(name, names)
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
        transaction = _apply(
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
    with _change(fs, wire, dry_run) as (journal, settled):
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


# -- planning -----------------------------------------------------------------------------------------------


def _plan(system: System, request: Request) -> tuple[Instance, list[Problem]]:
    """Choose what the request leaves open, and return the instance with everything that is wrong with it.

    When CPUs, memory or an id cannot be chosen, the rest is validated all the same: a person should see every
    problem at once. What is validated then has stand-ins, whose own problems are left out.
    """
    problems: list[Problem] = []

    def choose(given: T | None, choice: Callable[[], T], stand_in: T) -> T:
        if given is not None:
            return given
        try:
            return choice()
        except ZernelError as error:
            problems.extend(error.problems)
            return stand_in

    name, size = request.name, request.memory_bytes
    cpus = choose(request.cpus, lambda: allocate.choose_cpus(system, request.cpu_count or 0, name), ())
    no_memory = len(problems)
    base = choose(request.memory_base, lambda: allocate.choose_memory(system, size, name), 0)
    left_out = ("cpu-none" if not cpus else "", "memory-" if len(problems) > no_memory else "")
    number = choose(request.id, lambda: allocate.choose_id(system, name), 0)
    instance = Instance(name, number or None, cpus, base, size, request.devices)
    for problem in validate(System(system.resources, (*system.instances, instance))):
        if not any(code and problem.code.startswith(code) for code in left_out):
            problems.append(problem)
    return instance, problems


def _exists(existing: Instance, *, by_interrupted: bool) -> ZernelError:
    choose = f'Choose another name, such as "{existing.name}-2"'
    ensure = "If the interrupted command is the one you repeat, add --ensure: it checks that all is as asked"
    return fail(
        "duplicate-name",
        f'Duplicate instance name: "{existing.name}"',
        explanation=f'Instance "{existing.name}" exists already, with id {existing.id}',
        current_state=f"CPUs {format_cpus(existing.cpus)}, {format_size(existing.memory_bytes)}"
        f" at {existing.memory_base:#x}",
        suggestion=ensure if by_interrupted else choose,
        alternative=f"Delete it first: zernel delete {existing.name}",
    )


def _require_equal(existing: Instance, request: Request) -> None:
    """Raise `ZernelError` unless ``existing`` is what ``request`` asks for."""
    differences = []
    if request.cpus is not None and request.cpus != existing.cpus:
        differences.append(f"CPUs: has {format_cpus(existing.cpus)}, asked {format_cpus(request.cpus)}")
    if request.cpu_count is not None and request.cpu_count != len(existing.cpus):
        differences.append(f"CPUs: has {len(existing.cpus)}, asked {request.cpu_count}")
    if request.memory_bytes != existing.memory_bytes:
        has, asked = format_size(existing.memory_bytes), format_size(request.memory_bytes)
        differences.append(f"Memory: has {has}, asked {asked}")
    if request.memory_base is not None and request.memory_base != existing.memory_base:
        differences.append(f"Memory base: has {existing.memory_base:#x}, asked {request.memory_base:#x}")
    if set(request.devices) != set(existing.devices):
        has = ", ".join(map(str, existing.devices)) or "none"
        asked = ", ".join(map(str, request.devices)) or "none"
        differences.append(f"Devices: has {has}, asked {asked}")
    if request.id is not None and request.id != existing.id:
        differences.append(f"Id: has {existing.id}, asked {request.id}")
    if differences:
        raise fail(
            "instance-differs",
            "The instance exists with other resources",
            subject=existing.name,
            explanation=tuple(differences),
            suggestion=f"Delete it first, and create it anew: zernel delete {existing.name}",
        )


def not_there(name: str, names: list[str]) -> ZernelError:
    """Return the error for an instance that does not exist."""
    from difflib import get_close_matches

    close = get_close_matches(name, names, 3)
    error = fail(
        "instance-not-found",
        "There is no such instance",
        subject=name,
        explanation=f"Instances: {', '.join(names) or 'none'}",
        suggestion="Check the name: zernel show",
    )
    return ZernelError(error.problems[0].but(did_you_mean=tuple(close)))


def _known_baseline(wire: V1, blob: bytes) -> Resources | None:
    if not blob:
        return None
    try:
        return wire.read_baseline(blob)[0]
    except ZernelError:
        return None  # written by something else; it is about to be replaced


# -- transactions -------------------------------------------------------------------------------------------


class _Settled(Record):
    """What became of a change that an earlier command left: notes for a person, which instance it had
    created, and which one was removed now."""

    notes: tuple[str, ...] = ()
    created: str | None = None
    removed: Instance | None = None


@contextmanager
def _change(fs: MultikernelFs, wire: V1, dry_run: bool) -> Iterator[tuple[Journal | None, _Settled]]:
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
            settled = _settle(fs, wire, journal) if journal else _Settled()
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


def _apply(
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


def _is_there(fs: MultikernelFs, wire: V1, instance: Instance) -> bool:
    try:
        number, _, blob = fs.instance(instance.name)
    except FileNotFoundError:
        return False
    shown = wire.read_instance(instance.name, number, blob) if blob else instance
    return shown == instance


def _settle(fs: MultikernelFs, wire: V1, journal: Journal) -> _Settled:
    """Finish what an earlier command left, and say what was found.

    Raises `ZernelError`, and keeps the journal, when a part of a failed creation still cannot be removed: no
    change is safe before that.
    """
    entry = journal.pending()
    if entry is None:
        return _Settled()
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
    return _Settled((f"{earlier}: {outcome}",), created, removed)


def _in_use(fs: MultikernelFs, name: str) -> bool:
    """Say whether a kernel was loaded into the instance: it is somebody's then, however it came about."""
    try:
        return fs.instance(name)[1] in ("loaded", "active")
    except FileNotFoundError:
        return False
