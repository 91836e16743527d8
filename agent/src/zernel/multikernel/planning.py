# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change is to lead to: the choices that a request leaves open, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from zernel.devicetree.model import DeviceUse, Instance, System
from zernel.devicetree.units import format_cpus, format_size
from zernel.devicetree.validate import validate
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import allocate
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


def plan(system: System, request: Request) -> tuple[Instance, list[Problem]]:
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
