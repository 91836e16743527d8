# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change is to lead to: the choices that a request leaves open, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zernel.devicetree.model import DeviceUse, Instance, Resources, System
from zernel.devicetree.reading import bounded
from zernel.devicetree.units import format_cpus, format_size
from zernel.devicetree.validate import validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import allocate, growth
from zernel.multikernel.changes import Step, check_in_place, kept, operations
from zernel.multikernel.fs import LOADED, has_kernel
from zernel.multikernel.placement import Layout
from zernel.multikernel.wire import Wire
from zernel.record import Record
from zernel.topology import Topology, locate_devices
from zernel.topology import read as read_topology

T = TypeVar("T")

WISHES = ("numa_nodes", "cpu_affinity", "memory_policy")
"""The fields of an instance that say where it was asked to be."""


class Update(Record):
    """What ``zernel update`` is asked for; None: stays as it is.

    CPUs are given as all that there shall be (``cpus``), as a number (``cpu_count``), or as what is to come
    (``add_cpus``) and to go (``remove_cpus``).
    """

    name: str
    cpus: tuple[int, ...] | None = None
    cpu_count: int | None = None
    add_cpus: tuple[int, ...] = ()
    remove_cpus: tuple[int, ...] = ()
    memory_bytes: int | None = None
    devices: tuple[DeviceUse, ...] | None = None
    numa_nodes: tuple[int, ...] | None = None
    cpu_affinity: str | None = None
    memory_policy: str | None = None
    memory_base: int | None = None
    id: int | None = None

    def all_cpus(self, existing: Instance) -> tuple[int, ...] | None:
        """Return the CPUs that there shall be; None where they are not named."""
        if self.add_cpus or self.remove_cpus:
            return tuple(sorted({*existing.cpus, *self.add_cpus}.difference(self.remove_cpus)))
        return self.cpus

    def moves(self, existing: Instance) -> bool:
        """Say whether the instance shall be somewhere else than it was asked to be until now."""
        return any(
            wished is not None and wished != getattr(existing, name)
            for name, wished in self.__dict__.items()
            if name in WISHES
        )


class Request(Record):
    """What ``zernel create`` is asked for. Either ``cpus`` or ``cpu_count`` is given."""

    name: str
    memory_bytes: int
    cpus: tuple[int, ...] | None = None
    cpu_count: int | None = None
    memory_base: int | None = None
    devices: tuple[DeviceUse, ...] = ()
    id: int | None = None
    numa_nodes: tuple[int, ...] = ()
    cpu_affinity: str | None = None
    memory_policy: str | None = None

    @property
    def wishes(self) -> allocate.Wishes:
        """Where the instance should be."""
        return allocate.Wishes(self.numa_nodes, self.cpu_affinity, self.memory_policy, self.devices)

    @property
    def wished(self) -> dict[str, Any]:
        """Those of `WISHES` that are given."""
        return {name: found for name in WISHES if (found := getattr(self, name))}

    def over(self, existing: Instance) -> Instance:
        """Return ``existing`` with what is given here, but for CPUs and the size of memory."""
        return existing.but(
            id=existing.id if self.id is None else self.id,
            memory_base=existing.memory_base if self.memory_base is None else self.memory_base,
            devices=self.devices,
            **self.wished,
        )

    def anew(self, existing: Instance) -> Request:
        """Return the request that creates anew what is there: where it is not to be somewhere else, what is
        left open stays as it is."""
        after = self.over(existing)
        request = self.but(id=after.id, **{name: getattr(after, name) for name in WISHES})
        if any(getattr(after, name) != getattr(existing, name) for name in WISHES):
            return request
        if self.cpu_count == len(existing.cpus):
            request = request.but(cpus=existing.cpus, cpu_count=None)
        if self.memory_bytes <= existing.memory_bytes:
            request = request.but(memory_base=after.memory_base)
        return request


def plan(system: System, request: Request, root: Path = Path("/")) -> tuple[Instance, list[Problem]]:
    """Choose what the request leaves open, and return the instance with everything that is wrong with it.

    Sockets, cores and the places of devices are read from ``root``/sys. Warnings about other instances are
    left out: they were given when those were made.

    When CPUs, memory or an id cannot be chosen, the rest is validated all the same: a person should see every
    problem at once. What is validated then has stand-ins, whose own problems are left out.
    """
    topology = read_topology(system.resources, root)
    if not topology.foreign:
        system = system.but(resources=locate_devices(system.resources, root))
    resources, layout = system.resources, Layout(system, topology)
    problems = by_physical_ids(request.name, resources)
    problems += unknown_topology(request.name, request.cpu_affinity, topology)

    def choose(given: T | None, choice: Callable[[], T], stand_in: T) -> T:
        if given is not None:
            return given
        try:
            return choice()
        except ZernelError as error:
            problems.extend(error.problems)
            return stand_in

    name, size = request.name, request.memory_bytes
    wishes, count = request.wishes, request.cpu_count or 0
    cpus = choose(request.cpus, lambda: allocate.choose_cpus(resources, layout, count, name, wishes), ())
    no_cpus = request.cpus is None and not cpus
    no_memory = len(problems)
    base = choose(request.memory_base, lambda: allocate.choose_memory(system, size, name, wishes, cpus), 0)
    left_out = ["cpu-none" if no_cpus else "", "memory-" if len(problems) > no_memory else ""]
    number = choose(request.id, lambda: allocate.choose_id(system, name), 0)
    instance = Instance(
        name,
        number or None,
        cpus,
        base,
        size,
        request.devices,
        request.numa_nodes,
        request.cpu_affinity,
        request.memory_policy,
    )
    if request.cpus is None:
        # Nothing better is free, as far as cores allow it; where that is not local, it is worth saying.
        left_out += ["cpu-not-compact", "cpu-not-spread"]
    others = {found.name for found in system.instances} - {name}
    for problem in validate(System(system.resources, (*system.instances, instance))):
        of_others = problem.severity == "WARNING" and problem.subject in others
        if not of_others and not any(code and problem.code.startswith(code) for code in left_out):
            problems.append(problem)
    problems += allocate.shared_cores(resources, system.instances, layout, instance, topology)
    return instance, problems


def by_physical_ids(name: str, resources: Resources) -> list[Problem]:
    """Say that CPUs are named by other numbers than Linux's, where they are: those are easily mistaken."""
    if not resources.physical_ids:
        return []
    return [
        Problem(
            "cpu-physical-ids",
            "CPUs are shown and taken by their physical (APIC) ids",
            subject=name,
            explanation=(resources.unknown or "",),
            suggestion="To have Linux's numbers again, put that file back, or apply the same baseline:"
            " zernel init --input=FILE --apply",
            severity="WARNING",
        )
    ]


def unknown_topology(name: str, affinity: str | None, topology: Topology) -> list[Problem]:
    """Say that cores are not known, where that matters: for another machine's baseline only when an affinity
    is asked for, as nobody expects to find that one's cores here."""
    if topology.unknown is None or (topology.foreign and affinity is None):
        return []
    return [
        Problem(
            "topology-unknown",
            "SMT siblings are not known: each CPU counts as a core of its own",
            subject=name,
            explanation=(topology.unknown[0].upper() + topology.unknown[1:],),
            suggestion="Choose the CPUs by yourself where cores matter: --cpus=LIST",
            severity="WARNING",
        )
    ]


def exists(existing: Instance, *, by_interrupted: bool) -> ZernelError:
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


def require_equal(existing: Instance, request: Request) -> None:
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
    if request.numa_nodes and set(request.numa_nodes) != set(existing.numa_nodes):
        has, asked = format_cpus(existing.numa_nodes), format_cpus(request.numa_nodes)
        differences.append(f"NUMA nodes: has {has}, asked {asked}")
    for what, asked_word, has_word in (
        ("CPU affinity", request.cpu_affinity, existing.cpu_affinity),
        ("Memory policy", request.memory_policy, existing.memory_policy),
    ):
        if asked_word is not None and asked_word != has_word:
            differences.append(f"{what}: has {has_word or 'none'}, asked {asked_word}")
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


def place_not_chosen(name: str) -> Problem:
    """Return the problem of an address that was asked for, where the kernel chooses it."""
    return Problem(
        "memory-base-not-chosen",
        "Where an instance's memory is cannot be asked for on this kernel",
        subject=name,
        explanation=("This kernel (wire format v2) places the memory itself, and takes no address",),
        suggestion="Leave the memory's base out; --numa-nodes says on which NUMA node it should be",
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


def update(
    system: System, existing: Instance, wish: Update, root: Path = Path("/")
) -> tuple[Instance, list[Problem]]:
    """Return what ``existing`` shall be, with everything that is wrong with it. ``root`` is where sys/ is.

    Where it shall be somewhere else, what is left open is chosen anew: it keeps its name, its id, and how
    much it has.
    """
    problems = _pointless_cpus(existing, wish)
    if wish.moves(existing):
        after, found = _moved(system, existing, wish, root)
        return after, problems + found
    topology = read_topology(system.resources, root)
    layout = Layout(system, topology)
    has, named = set(existing.cpus), wish.all_cpus(existing)
    cpus = existing.cpus if named is None else named
    if wish.cpu_count is not None:
        try:
            cpus = growth.resized(system, existing, wish.cpu_count, layout)
        except ZernelError as error:
            problems.extend(error.problems)
    after = existing.but(
        cpus=cpus,
        memory_bytes=existing.memory_bytes if wish.memory_bytes is None else wish.memory_bytes,
        devices=existing.devices if wish.devices is None else wish.devices,
        memory_base=existing.memory_base if wish.memory_base is None else wish.memory_base,
        id=existing.id if wish.id is None else wish.id,
    )
    blocked = growth.check_growth(system, existing, after)
    if blocked and wish.memory_base is None and check_in_place(existing, after, system.resources):
        after, blocked = growth.placed_anew(system, after)
    problems += blocked
    # What speaks against the growth in better words is not told twice.
    final = after.but(memory_bytes=existing.memory_bytes) if blocked else after
    others = tuple(final if one.name == existing.name else one for one in system.instances)
    problems += validate(System(system.resources, others))
    if not set(after.cpus) <= has:
        problems += by_physical_ids(existing.name, system.resources)
        problems += allocate.shared_cores(system.resources, system.instances, layout, after, topology)
    return after, problems


def _pointless_cpus(existing: Instance, wish: Update) -> list[Problem]:
    has, there, gone = set(existing.cpus), "the instance has it already", "the instance does not have it"
    return [
        Problem(
            "cpu-not-changed",
            f"{option}: CPU {format_cpus(wrong)} makes no sense here: {why}",
            subject=existing.name,
            current_state=f"CPUs {format_cpus(existing.cpus)}",
            suggestion="Leave it out, or name with --cpus all CPUs that there shall be",
        )
        for option, wrong, why in (
            ("--add-cpus", has.intersection(wish.add_cpus), there),
            ("--remove-cpus", set(wish.remove_cpus) - has, gone),
        )
        if wrong
    ]


def _moved(system: System, existing: Instance, wish: Update, root: Path) -> tuple[Instance, list[Problem]]:
    cpus = wish.all_cpus(existing)
    count = len(existing.cpus) if wish.cpu_count is None else wish.cpu_count
    request = Request(
        existing.name,
        existing.memory_bytes if wish.memory_bytes is None else wish.memory_bytes,
        cpus,
        cpu_count=count if cpus is None else None,
        devices=existing.devices if wish.devices is None else wish.devices,
        numa_nodes=wish.numa_nodes or (),
        cpu_affinity=wish.cpu_affinity,
        memory_policy=wish.memory_policy,
        memory_base=wish.memory_base,
        id=wish.id,
    ).anew(existing)
    rest = tuple(one for one in system.instances if one.name != existing.name)
    return plan(system.but(instances=rest), request, root)


def replacements(
    before: tuple[Instance, ...],
    after: tuple[Instance, ...],
    resources: Resources,
    statuses: dict[str, str],
    wire: Wire,
) -> tuple[frozenset[str], list[Problem]]:
    """Return which instances must be deleted and created anew, as no operation leads from one state to the
    other, and a problem for each: a warning, or an error where a kernel is loaded."""
    there = {one.name: one for one in before}
    names, problems = set(), []
    for target in after:
        here = there.get(target.name)
        wanted = wire.expected(target, here)  # a stand-in for the place of memory is no reason
        why = check_in_place(here, wanted, resources) if here is not None and wanted is not None else []
        if not why:
            continue
        names.add(target.name)
        status = statuses.get(target.name)
        loaded = has_kernel(status)
        problems.append(
            Problem(
                "instance-busy" if loaded else "instance-replaced",
                f"The instance is {status}" if loaded else "The instance is deleted and created anew",
                subject=target.name,
                explanation=tuple(why),
                conflict="It would have to be deleted and created anew" if loaded else None,
                suggestion=unload_first(target.name, status) if loaded else None,
                note=None if loaded else "No kernel is loaded into it: nothing that runs is lost",
                severity="ERROR" if loaded else "WARNING",
            )
        )
    return frozenset(names), problems


def refused(problems: list[Problem]) -> ZernelError:
    """Return the error of a change that cannot be; as nothing is replaced then, no warning says that."""
    return ZernelError(*bounded([problem for problem in problems if problem.code != "instance-replaced"]))


def check_busy(statuses: dict[str, str], steps: list[Step]) -> list[Problem]:
    """Return why steps that take something away cannot be: what a loaded kernel has is not taken from it."""
    problems = []
    for step in steps:
        status = statuses.get(step.name)
        if step.before is None or status is None or not has_kernel(status):
            continue
        if step.after is None:
            problems.append(busy(step.name, status))
        elif kept(step.before, step.after) != step.before:
            taken = [str(one) for one in operations(step.before, step.after) if "remove" in one.kind]
            problems.append(
                Problem(
                    "instance-busy",
                    f"The instance is {status}",
                    subject=step.name,
                    explanation=(
                        "What its kernel uses is not taken from it",
                        f"Asked for: {', '.join(taken)}",
                    ),
                    suggestion=unload_first(step.name, status),
                    alternative="Let it grow only: that is possible as it is",
                )
            )
    return problems


def busy(name: str, status: str) -> Problem:
    """Return the problem of deleting an instance that has a kernel."""
    return Problem(
        "instance-busy",
        f"The instance is {status}",
        subject=name,
        explanation=("The kernel deletes an instance only when no kernel is loaded into it",),
        current_state=status,
        suggestion=unload_first(name, status),
    )


def unload_first(name: str, status: str | None) -> str:
    """Return how an instance that has a kernel becomes ready."""
    if status == LOADED:
        return f"Unload its kernel first: zernel unload {name}"
    return f"Stop and unload its kernel first: zernel kill {name} && zernel unload {name}"
