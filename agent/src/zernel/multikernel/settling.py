# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a change that was not finished, and how it is finished or undone.

Three things decide, in this order. The journal: which transactions are those of our steps, and which steps
were to be taken back already; what it says counts only for the boot of the kernel that it names. The other
transactions since then: what another program changed is left alone. And the state that the kernel shows, as
a transaction may be called failed and have been done in part. So undoing can itself be interrupted anywhere,
any number of times, and taken up again.

What cannot be undone stays in the journal, and no change is made before it is settled, or given up by a
person (`give_up`). Halting and unloading a kernel change nothing that a plan is made of, and never wait for
that: a host whose instance hangs must be able to stop it. Nor does the deletion of an instance that the
change is not about: that may be what is in its way. It is journalled beside it, and settled before it.

Undoing writes inverse overlays, and never removes the directory of a transaction: kernels of the first
version refuse that, and those of the second undo by it what a failed transaction never did, which may be
another's.
"""

from __future__ import annotations

import hashlib

from zernel.devicetree.model import Instance
from zernel.devicetree.units import exact_size, format_cpus
from zernel.errors import ZernelError, fail, os_suggestion
from zernel.multikernel import state
from zernel.multikernel.changes import Step, common, is_part, same, within
from zernel.multikernel.fs import MultikernelFs, Transaction, has_kernel
from zernel.multikernel.journal import Entry, Journal
from zernel.multikernel.wire import Wire
from zernel.record import Record

KERNEL_LOG = "journalctl -k -g multikernel"
_WAS = {"create": "created", "update": "changed", "delete": "deleted"}
_BACK = {"create": "removed again", "update": "changed back", "delete": "created again"}


# -- overlays and their transactions ------------------------------------------------------------------------


def digest(blob: bytes) -> str:
    """Return the SHA-256 by which the journal knows an overlay."""
    return hashlib.sha256(blob).hexdigest()


def overlay(fs: MultikernelFs, wire: Wire, step: Step) -> bytes:
    """Return the overlay of a step."""
    return wire.step(step, None if step.after is None else state.baseline(fs, wire))


def new_transactions(fs: MultikernelFs, known: set[int]) -> list[Transaction]:
    """Return the transactions that are not ``known``, by number."""
    found = (fs.transaction(number) for number in sorted(fs.transactions() - known))
    return [transaction for transaction in found if transaction is not None]


def only(sha: str, transactions: list[Transaction]) -> Transaction | None:
    """Return the transaction that holds our overlay; None if there is none, or two."""
    own = [found for found in transactions if digest(found.dtbo) == sha]
    return own[0] if len(own) == 1 else None


def shows(fs: MultikernelFs, wire: Wire, step: Step) -> bool:
    """Say whether the kernel shows what a step leads to."""
    if step.after is None:
        return step.name not in fs.instance_names()
    now = state.present(fs, wire, step.name)
    return same(now, wire.expected(step.after, now))


def own_deletion(fs: MultikernelFs, wire: Wire, entry: Entry) -> Transaction | None:
    """Return the transaction of a deletion that was done, whatever the kernel calls it.

    None where it was not done, and where another program may have done it: by a transaction that came since
    then, or by the inverse of one that there is no more.
    """
    step = entry.steps[0]
    if len(entry.steps) > 1 or step.after is not None or step.name in fs.instance_names():
        return None
    before = set(entry.before)
    found = new_transactions(fs, before)
    own = only(entry.overlays[0], found)
    others = [one for one in found if one is not own]
    if not before <= fs.transactions() or any(
        step.name in wire.concerns(one.instance, one.dtbo) for one in others
    ):
        return None
    return own


# -- undoing ------------------------------------------------------------------------------------------------


class Undone(Record):
    """How things stand after a failed change, in words; ``left`` says that a part of it is there still.

    ``removed`` are instances that it had created and that are gone now; ``fs`` is the file system, in a dry
    run as it would be.
    """

    texts: tuple[str, ...]
    fs: MultikernelFs
    left: bool = False
    removed: tuple[Instance, ...] = ()


def undo(fs: MultikernelFs, wire: Wire, journal: Journal | None, entry: Entry) -> Undone:
    """Take back what a failed change did, the last step first, and say how things stand.

    Without a journal nothing is written: what would become of it is foreseen.
    """
    if len(entry.steps) == 1 and entry.steps[0].after is None:
        there = entry.steps[0].name in fs.instance_names()  # one that is gone is what was asked for
        return Undone(("The instance is still there" if there else "The instance is gone",), fs)
    return _Undoing(fs, wire, journal, entry).run()


class _Undoing:
    def __init__(self, fs: MultikernelFs, wire: Wire, journal: Journal | None, entry: Entry) -> None:
        self.fs, self.wire, self.journal = fs, wire, journal
        found = new_transactions(fs, set(entry.before))
        if not entry.made:  # no inverse overlay was written yet that could be taken for one of these
            own = [only(sha, found) for sha in entry.overlays]
            entry = entry.but(made=tuple(one.id if one else None for one in own))
        self.entry = entry
        # By instance and by what was done to it; several updates of one instance have one outcome.
        self.texts: dict[tuple[str, str], str] = {}
        self.ended: set[str] = set()
        self.left = False
        self.removed: list[Instance] = []
        inverse = {sha for _, sha in entry.undone}
        ours = dict(zip(entry.made, entry.overlays, strict=True))
        others = [
            one
            for one in found
            if ours.get(one.id) != (sha := digest(one.dtbo)) and (one.id in ours or sha not in inverse)
        ]
        self.changed = self._concerned([one for one in others if one.status == "applied"])
        self.touched = self._concerned(others)
        applied = [one for one in found if one.status == "applied" and one not in others]
        self.done = {one.id for one in applied if one.id in ours}
        self.inverted = {digest(one.dtbo) for one in applied if one.id not in ours}

    def _concerned(self, transactions: list[Transaction]) -> set[str]:
        return {name for one in transactions for name in self.wire.concerns(one.instance, one.dtbo)}

    def run(self) -> Undone:
        steps = self.entry.steps
        for index in reversed(range(len(steps))):
            if steps[index].name not in self.ended:
                self._take_back(index)
        new = [step.before for step in steps] == [None]
        nothing = "Nothing was created" if new else "Nothing was changed"
        gone = tuple(one for one in self.removed if one.name not in self.fs.instance_names())
        return Undone(tuple(self.texts.values()) or (nothing,), self.fs, self.left, gone)

    def _take_back(self, index: int) -> None:
        entry = self.entry
        name = entry.steps[index].name
        if any(below < index and entry.steps[below].name == name for below, _ in entry.undone):
            return  # an earlier step of this instance was to be taken back, which comes after this one
        now = state.present(self.fs, self.wire, name)
        step, *earlier = (
            Step(self.wire.expected(one.before, now), self.wire.expected(one.after, now))
            for one in reversed(entry.steps[: index + 1])
            if one.name == name
        )
        if any(same(now, one.before) for one in (step, *earlier)) and not self._stands(index, now, step):
            return
        own = entry.made[index] is not None
        if not own and step.before is not None and not same(now, step.after):
            return  # a later step of the same instance, which was never reached
        # What a creation of ours left that nobody else has touched is ours, though it be less.
        part_of_ours = step.before is None and name not in self.touched and is_part(now, step.after)
        alone = len(entry.steps) == 1
        if not own or name in self.changed or not (within(now, step) or part_of_ours):
            text = self._by_other(index, now, step)
            self.texts[name, step.verb] = text if alone else f"{name}: {text[0].lower()}{text[1:]}"
            self.ended.add(name)  # nor is an earlier step taken back: what is there now follows from that
            return
        part = f"A part of it was {_WAS[step.verb]}" if alone else f"{name}: it was {_WAS[step.verb]}"
        if _in_use(self.fs, name):
            self.texts[name, step.verb] = f"{part}; it is in use by now, and was left alone"
            self.ended.add(name)
            return
        failure = self._write(index, Step(now, step.before))
        if failure is not None:
            self.left = True
            self.ended.add(name)
            self.texts[name, step.verb] = f"{part} and could not be {_BACK[step.verb]}{failure}"
            if now is None and step.before is not None:  # once the journal is given up, nothing else tells
                how = _creation(self.wire, step.before)
                self.texts[name, "anew"] = f"To create {name} as it was: {how}"
            return
        self.texts[name, step.verb] = f"{part}, and was {_BACK[step.verb]}"
        if step.before is None and now is not None:
            self.removed.append(now)

    def _by_other(self, index: int, now: Instance | None, step: Step) -> str:
        """Return what another program did to an instance that is not what the step of this index left."""
        if now is None:
            return "It was deleted by another program, and was not created again"
        made = step.before is None and self.entry.made[index] not in self.done
        what = "An instance of this name is there, made" if made else "It was changed"
        return f"{what} by another program; it was left alone"

    def _stands(self, index: int, now: Instance | None, step: Step) -> bool:
        """Say whether a step is done although the instance looks as before: not all kernels show wishes."""
        taken_back = any(one == index and sha in self.inverted for one, sha in self.entry.undone)
        return same(now, step.after) and self.entry.made[index] in self.done and not taken_back

    def _write(self, index: int, step: Step) -> str | None:
        """Take back the step of this index; return why that failed, empty where that is not known."""
        if self.journal is None:
            if taken := _taken(self.fs, self.wire, step.after):
                return f": {taken}"
            self.fs = self.fs.foresee(step.name, step.after)
            return None
        blob = overlay(self.fs, self.wire, step)
        why = ""
        try:
            one = (index, digest(blob))
            undone = self.entry.undone if one in self.entry.undone else (*self.entry.undone, one)
            self.journal.begin(self.entry.but(undone=undone))
            self.entry = self.entry.but(undone=undone)
            self.fs.write_overlay(blob)
        except OSError as error:
            why = f": {error.strerror}"
        if shows(self.fs, self.wire, step):
            return None
        taken = _taken(self.fs, self.wire, step.after)
        return f": {taken}" if taken else why


def _creation(wire: Wire, instance: Instance) -> str:
    """Return the command that creates an instance as it is."""
    options = {
        "cpus": format_cpus(instance.cpus),
        "memory": exact_size(instance.memory_bytes),
        "memory-base": "" if wire.places_memory else f"{instance.memory_base:#x}",
        "devices": ",".join(map(str, instance.devices)),
        "id": str(instance.id or ""),
        "numa-nodes": format_cpus(instance.numa_nodes) if instance.numa_nodes else "",
        "cpu-affinity": instance.cpu_affinity,
        "memory-policy": instance.memory_policy,
    }
    given = " ".join(f"--{option}={value}" for option, value in options.items() if value)
    return f"zernel create {instance.name} {given}"


def _taken(fs: MultikernelFs, wire: Wire, wanted: Instance | None) -> str | None:
    """Return what another instance has by now of what one is to get back, or None."""
    if wanted is None:
        return None
    found = []
    for name in fs.instance_names():
        other = state.present(fs, wire, name) if name != wanted.name else None
        if other is None:
            continue
        has = common(wanted, other, placed=not wire.places_memory)
        if has.any:
            found.append(f"{name} has {has} by now")
    return "; ".join(found) or None


def _in_use(fs: MultikernelFs, name: str) -> bool:
    """Say whether a kernel was loaded into the instance: it is somebody's then, however it came about."""
    return has_kernel(fs.status(name))


# -- settling what an earlier command left ------------------------------------------------------------------


class Settled(Record):
    """What became of a change that an earlier command left: notes for a person, which instances it had
    created, and which were removed now. ``fs`` is the file system, in a dry run as settling would leave it;
    ``foreseen`` is what it would add to the history then. ``left`` says that a part could not be undone, and
    that the journal still holds it. ``calls`` are those of the notes that are about a system call.
    """

    fs: MultikernelFs
    notes: tuple[str, ...] = ()
    created: frozenset[str] = frozenset()
    removed: tuple[Instance, ...] = ()
    left: bool = False
    foreseen: tuple[Entry, ...] = ()
    calls: tuple[str, ...] = ()

    def then(self, following: Settled) -> Settled:
        """Return what became of two changes, this one's settled first."""
        return Settled(
            following.fs,
            (*self.notes, *following.notes),
            self.created | following.created,
            (*self.removed, *following.removed),
            self.left or following.left,
            (*self.foreseen, *following.foreseen),
        )


def settle(
    fs: MultikernelFs, wire: Wire, journal: Journal, *, dry_run: bool, deletes: str | None = None
) -> Settled:
    """Finish what an earlier command left, and say what was found; in a dry run, what would be.

    A change whose steps were all done is kept; any other is undone. Raises `ZernelError`, and keeps the
    journal, when a part still cannot be undone: no change is safe before that, but one that ``deletes`` an
    instance which the unfinished one is not about.
    """
    entry = journal.pending()
    if entry is None:
        return Settled(fs)
    earlier = f"An earlier '{entry.command}' was interrupted"
    if entry.identity != fs.identity:
        if not dry_run:
            journal.end()
        since = "the simulation was" if fs.simulated else "the host was"
        return Settled(fs, (f"{earlier}: {since} started anew since then, and nothing of it is there",))
    transactions = new_transactions(fs, set(entry.before))
    own = [found for sha in entry.overlays if (found := only(sha, transactions)) is not None]
    last = {step.name: step for step in entry.steps}.values()
    renumbered = _renumbered(fs, wire, entry)
    whole = (
        renumbered is None
        and len(own) == len(entry.steps)
        and all(found.status == "applied" for found in own)
        and not entry.undone
        and all(shows(fs, wire, step) for step in last)
    )
    if whole or own_deletion(fs, wire, entry) is not None:
        done = entry.done(tuple(found.id for found in own))
        if not dry_run:
            record(journal, done)
        created = frozenset(step.name for step in last if step.before is None)
        return Settled(fs, (f"{earlier}: {_done(entry)}",), created, foreseen=(done,) if dry_run else ())
    undone = renumbered or undo(fs, wire, None if dry_run else journal, entry)
    if undone.left:
        if deletes is None or deletes in {step.name for step in entry.steps}:
            raise _leftover(entry, (earlier, *undone.texts))
        note = "; ".join((f"{earlier} and cannot be undone yet", *undone.texts))
        return Settled(undone.fs, (note,), removed=undone.removed, left=True)
    if not dry_run:
        journal.end()
    outcome = "; ".join(undone.texts)
    outcome = {"Nothing was created": "it created nothing", "Nothing was changed": "it changed nothing"}.get(
        outcome, outcome if len(entry.steps) > 1 else outcome[0].lower() + outcome[1:]
    )
    return Settled(undone.fs, (f"{earlier}: {outcome}",), removed=undone.removed)


def _renumbered(fs: MultikernelFs, wire: Wire, entry: Entry) -> Undone | None:
    """Return that a change cannot be taken back, as its CPUs have other numbers now; None where it can."""
    other = wire.renumbered(physical_ids=entry.physical_ids)
    if other is None or (len(entry.steps) == 1 and entry.steps[0].after is None):
        return None
    resources = state.baseline(fs, wire)
    texts = [other, *filter(None, [resources.unknown if resources else None])]
    first = {step.name: step.before for step in reversed(entry.steps)}
    there = fs.instance_names()
    texts += [
        f"To create {name} as it was: {_creation(wire, before)}"
        for name, before in first.items()
        if before is not None and name not in there
    ]
    return Undone(tuple(texts), fs, left=True)


def _done(entry: Entry) -> str:
    if len(entry.steps) > 1:
        return "all of it was done"
    verb = entry.steps[0].verb
    return {
        "create": "the instance is there",
        "delete": "the instance is gone",
        "update": "the instance has what was asked",
    }[verb]


def _leftover(entry: Entry, texts: tuple[str, ...]) -> ZernelError:
    new = entry.action == "create"
    return fail(
        "leftover",
        f"What a failed {'creation' if new else 'change'} left cannot be {'removed' if new else 'undone'}",
        subject=entry.steps[0].name,
        explanation=texts,
        suggestion="Free what is in its way (zernel kill, unload and delete do not wait for this), then run"
        f" it again: each command tries first to undo it; the kernel log may tell more: {KERNEL_LOG}",
        alternative="Leave it as it is, and end that change: zernel rollback --give-up",
    )


def record(journal: Journal, entry: Entry) -> None:
    """Move a change that was done into the history; raises `ZernelError` where that cannot be written."""
    try:
        journal.commit(entry)
    except OSError as error:
        raise fail(
            "history-not-written",
            "The change was made, and could not be recorded",
            subject=entry.steps[0].name,
            explanation=f"{journal.done}: {error.strerror or error}",
            suggestion=os_suggestion(error, "Correct what the line above names")
            + ": the next command records it, and a rollback needs that",
            alternative="Do without its rollback: zernel rollback --give-up",
        ) from error


class GivenUp(Record):
    """What was given up: ``left`` says in words what is left of the unfinished change and why; empty where
    there was none, or where it could be settled, as ``notes`` say. ``calls`` say what became of a load, boot
    or halt whose command was killed: that is no unfinished change."""

    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


def give_up(fs: MultikernelFs, wire: Wire, journal: Journal, *, dry_run: bool) -> GivenUp:
    """Settle what an earlier command left; where that cannot be, leave it as it is and end the journal."""
    try:
        return GivenUp(notes=settle(fs, wire, journal, dry_run=dry_run).notes)
    except ZernelError as error:
        if not dry_run:
            journal.end()
        return GivenUp(tuple(text for one in error.problems for text in (one.category, *one.explanation)))
