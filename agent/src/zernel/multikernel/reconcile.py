# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is there to what is declared: a plan of the final state, and all of it or nothing.

Nothing that was declared is moved without need: an instance keeps its memory's place, its id, and with
``cpu_count`` the CPUs that it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zernel.devicetree.model import Instance, System
from zernel.devicetree.reading import Origins
from zernel.devicetree.validate import is_valid, validate
from zernel.errors import Location, Problem, ZernelError
from zernel.multikernel import allocate, growth, planning, state
from zernel.multikernel.changes import Step, check_in_place, same
from zernel.multikernel.desired import Declaration
from zernel.multikernel.fs import MultikernelFs, Transaction
from zernel.multikernel.operations import placed
from zernel.multikernel.ordering import order
from zernel.multikernel.placement import Layout
from zernel.multikernel.transactions import apply, change
from zernel.record import Record
from zernel.topology import locate_devices
from zernel.topology import read as read_topology

_PROPERTIES = {
    "": "",
    "name": "name",
    "cpus": "cpus",
    "cpu_count": "cpus",
    "memory": "memory-bytes",
    "memory_base": "memory-base",
    "devices": "devices",
    "id": "id",
    "numa_nodes": "numa-nodes",
    "cpu_affinity": "cpu-affinity",
    "memory_policy": "memory-policy",
}
"""The keys of a declaration, and what the rules for instances call them."""

_ABOUT = {
    "memory-base-not-chosen": "memory_base",
    "memory-cannot-grow": "memory",
    "not-enough-cpus": "cpu_count",
    "not-enough-memory": "memory",
}
"""Problems of a choice or a change, and the keys that they are about."""


class Reconciled(Record):
    """What was done: the instances before and after, by name, and what differs, one step an instance.

    ``undeclared`` are instances that no file names and that were left alone. ``placed`` is False for a plan
    whose new instances get their memory where the kernel chooses.
    """

    before: tuple[Instance, ...]
    after: tuple[Instance, ...]
    steps: tuple[Step, ...]
    undeclared: tuple[str, ...]
    statuses: dict[str, str]
    placed: bool = True
    transactions: tuple[Transaction, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def reconcile(
    fs: MultikernelFs,
    declarations: list[Declaration],
    *,
    prune: bool,
    dry_run: bool,
    root: Path = Path("/"),
) -> Reconciled:
    """Make the instances what is declared; with ``prune``, delete those that no file names.

    ``root`` is where sys/ is, which tells of the host's cores. Raises `ZernelError`, and then all is as it
    was, or the error says what is not.
    """
    with change(fs, dry_run) as (wire, journal, settled):
        fs = settled.fs
        current = state.load(fs, wire)
        before = current.system.instances
        declared = {one.name for one in declarations}
        others = tuple(one.name for one in before if one.name not in declared)
        base = tuple(one for one in before if one.name in declared or not prune)
        resources = current.system.resources
        target = _Target(System(resources, base), declarations, root)
        after, problems = target.run()
        if wire.places_memory:
            for one in declarations:
                if one.name not in target.there and one.request.memory_base is not None:
                    target.add(one, [planning.place_not_chosen(one.name)])
        replaced, why = planning.replacements(before, after, resources, current.statuses, wire)
        problems += target.placed(why)
        if not is_valid(problems):
            raise planning.refused(problems)
        try:
            steps = order(before, after, replaced)
        except ZernelError as error:
            raise ZernelError(*target.placed(error.problems)) from error
        if refusals := planning.check_busy(current.statuses, steps) + wire.refusals(steps, resources):
            raise ZernelError(*target.placed(refusals))
        done: tuple[Transaction, ...] = ()
        net = _net(before, after, replaced)
        if steps and journal is not None:
            done = apply(fs, wire, journal, "apply", steps)
            net = placed(fs, wire, net)
            made = {step.name: step.after for step in net if step.before is None and step.after is not None}
            after = tuple(made.get(one.name, one) for one in after)
        return Reconciled(
            before,
            after,
            net,
            () if prune else others,
            _statuses(fs) if done else current.statuses,
            journal is not None or not wire.places_memory,
            done,
            tuple(problems),
            settled.notes,
        )


def _statuses(fs: MultikernelFs) -> dict[str, str]:
    found = ((name, fs.status(name)) for name in fs.instance_names())
    return {name: status for name, status in found if status is not None}


def plan(
    system: System, declarations: list[Declaration], root: Path = Path("/")
) -> tuple[tuple[Instance, ...], list[Problem]]:
    """Return the instances that there shall be, with everything that is wrong with them; asks no kernel."""
    return _Target(system, declarations, root).run()


def _net(
    before: tuple[Instance, ...], after: tuple[Instance, ...], replaced: frozenset[str]
) -> tuple[Step, ...]:
    was, will = {one.name: one for one in before}, {one.name: one for one in after}
    steps: list[Step] = []
    for name in {**was, **will}:
        here, target = was.get(name), will.get(name)
        if name in replaced:
            steps += [Step(here, None), Step(None, target)]
        elif not same(here, target):
            steps.append(Step(here, target))
    return tuple(steps)


def _kept(one: Declaration, here: Instance | None) -> Declaration:
    """Return the declaration with the devices that are there, where it says nothing about devices."""
    if here is None or "devices" in one.places:
        return one
    return one.but(request=one.request.but(devices=here.devices))


class _Target:
    """Finds the final state: what is given first, then what is left open, so that neither is in the way."""

    def __init__(self, system: System, declarations: list[Declaration], root: Path) -> None:
        self.topology = read_topology(system.resources, root)
        foreign = self.topology.foreign
        self.resources = system.resources if foreign else locate_devices(system.resources, root)
        there = {one.name: one for one in system.instances}
        declarations = [_kept(one, there.get(one.name)) for one in declarations]
        replaced = {
            one.name
            for one in declarations
            if (here := there.get(one.name)) is not None
            and check_in_place(here, one.request.over(here), self.resources)
        }
        self.there = {name: one for name, one in there.items() if name not in replaced}
        self.working = dict(self.there)
        self.layout = Layout(self.system, self.topology)
        self.declarations = [
            one.but(request=one.request.anew(there[one.name])) if one.name in replaced else one
            for one in declarations
        ]
        self.problems: list[Problem] = []
        self.open: set[tuple[str, str]] = set()
        """Names with the kind of value that could not be chosen; the stand-in's own problems are left out."""

    @property
    def system(self) -> System:
        """What is known of the final state so far."""
        return System(self.resources, tuple(self.working.values()))

    def put(self, target: Instance) -> None:
        """Make an instance what it shall be, as far as that is known."""
        before = self.working.get(target.name)
        self.working[target.name] = target
        self.layout.move(target.name, before.cpus if before else (), target.cpus)

    def run(self) -> tuple[tuple[Instance, ...], list[Problem]]:
        for one in self.declarations:
            self.place_given(one)
        for one in self.declarations:
            if one.name in self.there:
                self.grow(one)
        for one in self.declarations:
            if one.name not in self.there:
                self.choose(one)
        for problem in validate(self.system, self.origins()):
            kind = "memory-" if problem.code.startswith("memory-") else problem.code
            if (problem.subject, kind) not in self.open:
                self.problems.append(problem)
        for one in self.declarations:
            self.check_cores(one)
        return tuple(self.working.values()), self.problems

    def check_cores(self, one: Declaration) -> None:
        """Warn where an instance that gets CPUs now shares a core, or where cores are not known."""
        target, here = self.working[one.name], self.there.get(one.name)
        if here is not None and set(target.cpus) <= set(here.cpus):
            return
        self.add(one, planning.by_physical_ids(one.name, self.resources))
        self.add(one, planning.unknown_topology(one.name, one.request.cpu_affinity, self.topology))
        others = self.working.values()
        self.add(one, allocate.shared_cores(self.resources, others, self.layout, target, self.topology))

    def place_given(self, one: Declaration) -> None:
        here, wanted = self.there.get(one.name), one.request
        if here is None:
            size = 0 if wanted.memory_base is None else wanted.memory_bytes
            self.put(
                Instance(
                    one.name,
                    wanted.id,
                    wanted.cpus or (),
                    wanted.memory_base or 0,
                    size,
                    wanted.devices,
                    wanted.numa_nodes,
                    wanted.cpu_affinity,
                    wanted.memory_policy,
                )
            )
            return
        cpus = here.cpus if wanted.cpus is None else wanted.cpus
        if wanted.cpu_count is not None and wanted.cpu_count < len(cpus):
            cpus = growth.resized(self.system, here, wanted.cpu_count, self.layout)
        self.put(wanted.over(here).but(cpus=cpus, memory_bytes=min(here.memory_bytes, wanted.memory_bytes)))

    def grow(self, one: Declaration) -> None:
        target, wanted = self.working[one.name], one.request
        if wanted.cpu_count is not None and wanted.cpu_count > len(target.cpus):
            try:
                target = target.but(cpus=growth.resized(self.system, target, wanted.cpu_count, self.layout))
            except ZernelError as error:
                self.add(one, error.problems)
        grown = target.but(memory_bytes=wanted.memory_bytes)
        problems = growth.check_growth(self.system, target, grown)
        self.add(one, problems)
        self.put(target if problems else grown)

    def choose(self, one: Declaration) -> None:
        target, wanted = self.working[one.name], one.request
        if wanted.cpu_count is not None:
            try:
                cpus = allocate.choose_cpus(
                    self.resources, self.layout, wanted.cpu_count, one.name, wanted.wishes
                )
                target = target.but(cpus=cpus)
            except ZernelError as error:
                self.add(one, error.problems)
                self.open.add((one.name, "cpu-none"))
        if wanted.memory_base is None:
            try:
                base = allocate.choose_memory(
                    self.system, wanted.memory_bytes, one.name, wanted.wishes, target.cpus
                )
                target = target.but(memory_base=base, memory_bytes=wanted.memory_bytes)
            except ZernelError as error:
                self.add(one, error.problems)
                self.open.add((one.name, "memory-"))
        if wanted.id is None:
            try:
                target = target.but(id=allocate.choose_id(self.system, one.name))
            except ZernelError as error:
                self.add(one, error.problems)
        self.put(target)

    def add(self, one: Declaration, problems: list[Problem] | tuple[Problem, ...]) -> None:
        """Add problems of a declaration, with the place of the key that they are about."""
        for problem in problems:
            place = one.places.get(_ABOUT.get(problem.code, ""), one.places[""])
            self.problems.append(problem.but(locations=problem.locations or (place,)))

    def placed(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return problems of declared instances with the places of the declarations."""
        places = {one.name: (one.places[""],) for one in self.declarations}
        return [problem.but(locations=places.get(problem.subject or "", ())) for problem in problems]

    def origins(self) -> Origins:
        """Return where the values stand, for the rules."""
        places = {one.name: one.places for one in self.declarations}
        origins = Origins()
        for index, name in enumerate(self.working):
            found: dict[str, Location] = places.get(name, {})
            for key, place in found.items():
                property_name = _PROPERTIES[key]
                origins.places[("instances", index, *filter(None, [property_name]))] = (place,)
        return origins
