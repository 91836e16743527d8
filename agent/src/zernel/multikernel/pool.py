# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool of a kernel of the second version: made, changed, verified, and taken back when it is not right.

Where there is no pool the kernel takes a baseline, whole or not at all; a pool that is there is changed by an
overlay. What was asked for is recorded before the kernel is asked, and believed once it shows the pool.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from zernel.devicetree.model import System
from zernel.devicetree.validate import is_valid, validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import inventory_record, live_tree, wire_v2
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.inventory_record import Inventory, Recorded
from zernel.multikernel.live_tree import Pool

_COMMAND = "An earlier 'zernel init --apply' was interrupted"


def establish(fs: MultikernelFs, directory: Path, wanted: Recorded) -> Recorded:
    """Make the pool what is ``wanted``, and return it with the place that the kernel gave it.

    Raises OSError when the kernel refuses the write, and nothing was changed then; `ZernelError` when it did
    something else than it was asked for, which was taken back.
    """
    before = live_tree.pool(fs.baseline())
    earlier = inventory_record.read(directory).believed(before)
    inventory_record.write(directory, Inventory(earlier, wanted))
    try:
        _ask(fs, before, wanted)
    except OSError:
        if live_tree.pool(fs.baseline()) == before:
            inventory_record.write(directory, Inventory(earlier))
            raise
    after = live_tree.pool(fs.baseline())
    problems = _wrong(after, wanted)
    if not problems and after is not None and after.base is not None:
        found = wanted.at(after.base)
        inventory_record.write(directory, Inventory(found))
        return found
    if before is not None and earlier is None:
        inventory_record.write(directory, Inventory())
        now = f"memory {after.where}" if after else "none"
        outcome = f"The pool before it was another program's; it has now: {now}"
        if after == before:
            outcome = "Nothing was changed"
    else:
        outcome = _restore(fs, directory, earlier)
    raise ZernelError(*(problem.but(explanation=(*problem.explanation, outcome)) for problem in problems))


def settle(fs: MultikernelFs, directory: Path) -> tuple[str, ...]:
    """Finish what an earlier ``init --apply`` left; return a note that says what was found, or nothing."""
    record = inventory_record.read(directory)
    if record.begun is None:
        return ()
    pool = live_tree.pool(fs.baseline())
    applied = record.applied if record.applied is not None and record.applied.agrees(pool) else None
    if applied is not None or pool is None:
        outcome = "it changed nothing"
    elif not _wrong(pool, record.begun) and pool.base is not None:
        applied = record.begun.at(pool.base)
        outcome = "the baseline is applied"
    elif fs.instance_names():
        outcome = f"the pool is neither the old nor the new one, and in use; its memory is {pool.where}"
    elif record.applied is None and not record.begun.agrees(pool, anywhere=True):
        outcome = "the pool is another program's, and was left alone"
    else:
        outcome = _restore(fs, directory, record.applied)
        return (f"{_COMMAND}: {outcome[0].lower()}{outcome[1:]}",)
    inventory_record.write(directory, Inventory(applied))
    return (f"{_COMMAND}: {outcome}",)


def _ask(fs: MultikernelFs, pool: Pool | None, wanted: Recorded | None) -> None:
    if pool is None:
        if wanted is not None:
            fs.write_baseline(wire_v2.baseline(wanted))
    elif (blob := wire_v2.pool_change(pool, wanted)) is not None:
        fs.write_overlay(blob)


def _restore(fs: MultikernelFs, directory: Path, earlier: Recorded | None) -> str:
    """Bring back the pool of ``earlier``, or none; return in words how things stand, and record it."""
    with suppress(OSError):  # what the kernel shows tells
        _ask(fs, live_tree.pool(fs.baseline()), earlier)
    now = live_tree.pool(fs.baseline())
    if now is None or earlier is None or now.base is None or _wrong(now, earlier):
        inventory_record.write(directory, Inventory())
        if now is None and earlier is None:
            return "The pool was given back to the host: nothing was changed"
        where = f"memory {now.where}" if now else "none"
        return f"The pool could not be brought back to what it was; it has now: {where}"
    inventory_record.write(directory, Inventory(earlier.at(now.base)))
    return "The pool before it was brought back"


def _wrong(pool: Pool | None, wanted: Recorded) -> list[Problem]:
    """Return why a pool is not what was asked for, or not one that Zernel can manage."""
    if pool is None or not wanted.agrees(pool, anywhere=True):
        shown = f"{len(pool.cpus)} CPUs, memory {pool.where}" if pool else "no pool"
        return list(
            fail(
                "baseline-not-verified",
                "The kernel took the baseline and shows another one",
                explanation=f"It shows {shown}",
                suggestion="Look for the reason in the kernel log: journalctl -k -g multikernel",
            ).problems
        )
    if pool.base is None:
        return list(
            fail(
                "memory-in-pieces",
                "The kernel placed the memory pool in several pieces; Zernel manages one",
                explanation=f"Memory: {pool.where}",
                suggestion="Ask for less memory, or for memory of one NUMA node only",
            ).problems
        )
    problems = validate(System(wanted.at(pool.base).resources))
    if is_valid(problems):
        return []
    place = f"The kernel placed the memory pool at {pool.where}, which does not fit the baseline"
    return [
        problem.but(note="; ".join(filter(None, (place, problem.note))))
        for problem in problems
        if problem.severity != "WARNING"
    ]
