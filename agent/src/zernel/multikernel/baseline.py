# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel init --apply``: hand a valid baseline to the kernel, in the form that it takes."""

from __future__ import annotations

import errno

from zernel.devicetree.model import Resources
from zernel.devicetree.validate import validate
from zernel.errors import ZernelError, fail
from zernel.multikernel import inventory_record, live_tree, pool, proc, state
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.inventory_record import Recorded
from zernel.multikernel.journal import Journal, directory_of
from zernel.multikernel.transactions import change
from zernel.multikernel.wire import Wire
from zernel.multikernel.wire_v1 import V1
from zernel.multikernel.wire_v2 import V2, cpu_unknown
from zernel.record import Record


class Applied(Record):
    """What became of a baseline: the inventory before it, and the one that the kernel has now.

    ``wire`` names the form that was used, None where only the kernel's answer would tell. ``placed`` is
    False while the kernel has yet to choose where the pool is. ``notes`` are for a person.
    """

    before: Resources | None
    after: Resources
    changed: bool
    wire: str | None
    placed: bool = True
    notes: tuple[str, ...] = ()


def apply_baseline(fs: MultikernelFs, resources: Resources, *, dry_run: bool) -> Applied:
    """Hand a valid baseline to the kernel.

    Where the kernel's tree does not tell its form, both are tried: a baseline is taken whole or not at all.
    Raises `ZernelError`, and then the baseline is what it was, or the error says what is there.
    """
    with change(fs, dry_run) as (wire, journal, settled):
        fs = settled.fs
        blob = fs.baseline()
        told = live_tree.form(blob)
        before = state.baseline(fs, wire)
        recorded = before is not None and before.complete
        asked = resources
        if wire.places_memory and before is not None:
            memory = resources.memory.but(pool_base=before.memory.pool_base)
            asked = resources.but(memory=memory)
        known = before.but(unknown=None) if before is not None and not wire.places_memory else before
        if known == asked:
            return Applied(before, asked, False, wire.name, notes=settled.notes)
        names = fs.instance_names()
        differs = _differs(fs, wire, resources) if names and isinstance(wire, V2) and not recorded else None
        if names and differs != ():
            raise _in_use(fs, names, differs)
        if wire.places_memory:
            _recorded(fs, resources)  # its problems are a dry run's, too
        if journal is None:
            placed = not wire.places_memory
            return Applied(before, resources, True, told, placed, settled.notes)
        used, after = _write(fs, wire, told, resources, journal)
        notes = settled.notes
        if after.memory.pool_base != resources.memory.pool_base:
            base, asked_base = after.memory.pool_base, resources.memory.pool_base
            notes += (f"The kernel placed the memory pool at {base:#x}; the baseline says {asked_base:#x}",)
        return Applied(before, after, True, used, notes=notes)


def _write(
    fs: MultikernelFs, wire: Wire, told: str | None, resources: Resources, journal: Journal
) -> tuple[str, Resources]:
    """Write the baseline in the form that the tree suggests, then in the other; return which, and what is."""
    forms = {"v1": _write_v1, "v2": _write_v2}
    order = sorted(forms, key=lambda name: name != wire.name)
    answers: list[str] = []
    for name in order:
        try:
            return name, forms[name](fs, resources, journal)
        except OSError as error:
            answers.append(f"Wire format {name}: {error.strerror}")
            if error.errno != errno.EINVAL:
                break
        except ZernelError as error:
            if not answers or error.problems[0].code != "cpu-without-id":
                raise  # the kernel took this form, and the error says what it made of it
            answers.append(f"Wire format {name}: {error.problems[0].category}")
    raise fail(
        "baseline-refused",
        "The kernel refused the baseline",
        explanation=(*answers, "Nothing was changed: the kernel takes a baseline whole or not at all"),
        suggestion="Check that the memory pool lies within the kernel's mkkernel_pool= region"
        if told != "v2"
        else "Look for the reason in the kernel log: journalctl -k -g multikernel",
    )


def _write_v1(fs: MultikernelFs, resources: Resources, journal: Journal) -> Resources:
    wire = V1()
    fs.write_baseline(wire.baseline(resources))
    if state.baseline(fs, wire) != resources:
        raise fail(
            "baseline-not-verified",
            "The kernel took the baseline and shows another one",
            suggestion="Look at it with 'zernel show', and at the kernel log",
        )
    return resources


def _write_v2(fs: MultikernelFs, resources: Resources, journal: Journal) -> Resources:
    return pool.establish(fs, journal.directory, _recorded(fs, resources)).resources


def _in_use(fs: MultikernelFs, names: list[str], differs: tuple[str, ...] | None) -> ZernelError:
    """Return the error for a baseline with instances; ``differs``: see `_differs`, None with its record."""
    path = inventory_record.path_in(directory_of(fs))
    lost = differs is not None
    return fail(
        "baseline-in-use",
        "The baseline cannot be replaced while there are instances",
        explanation=(f"Instances: {', '.join(names)}", *(differs or ())),
        # Nobody is told to delete what runs, where putting the record back is enough.
        suggestion=f"Put back {path}, which tells what the baseline was"
        if lost
        else f"Delete them first: zernel delete {names[0]}",
        alternative="Apply the baseline that the pool was made of" if lost else None,
    )


def _differs(fs: MultikernelFs, wire: V2, resources: Resources) -> tuple[str, ...]:
    """Return why the pool, whose record is lost, and its instances cannot be of this inventory; none: it is
    recorded anew, and nothing else is changed."""
    shown = live_tree.pool(fs.baseline())
    try:
        recorded = _recorded(fs, resources)
        whole = shown.but(devices=(*shown.devices, *wire.lent)) if shown else None
        if shown is None or shown.base is None or not recorded.agrees(whole, anywhere=True):
            return ("The pool that there is was not made of this baseline",)
        recorded = recorded.at(shown.base)
        problems = validate(state.load(fs, V2(wire.host, shown, recorded)).system)
    except ZernelError as error:
        problems = list(error.problems)
    wrong = [problem for problem in problems if problem.severity != "WARNING"]
    return tuple(": ".join(filter(None, (one.subject, one.category))) for one in wrong)


def _recorded(fs: MultikernelFs, resources: Resources) -> Recorded:
    """Return the inventory with the physical ids of its CPUs; raises `ZernelError` for one without.

    CPUs that are in the pool are not in /proc/cpuinfo any more: theirs are known from the record. Where that
    is lost, debugfs tells them; what it tells of a CPU that is not in the pool may be of another time.
    """
    shown = live_tree.pool(fs.baseline())
    record = inventory_record.read(directory_of(fs)).believed(shown)
    ids = {**(record.ids if record else {}), **proc.apic_ids(fs.cpuinfo)}
    lost = inventory_record.path_in(directory_of(fs)) if record is None and shown is not None else None
    if shown is not None and lost is not None:
        offline = [cpu for cpu in resources.cpus.available if cpu not in ids]
        pooled = set(shown.cpus).difference(ids.values())
        kept = proc.offline_apic_ids(fs.cpu_topology, offline)
        ids |= {cpu: number for cpu, number in kept.items() if number in pooled}
    unknown = [cpu for cpu in resources.cpus.available if cpu not in ids]
    if unknown:
        raise ZernelError(cpu_unknown(unknown, lost=lost))
    return Recorded(resources, ids)
