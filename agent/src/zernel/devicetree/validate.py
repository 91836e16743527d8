# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of the full state: the baseline, the instances on it, and the change that is asked for.

It cannot be switched off. Everything that is wrong is reported at once.
"""

from __future__ import annotations

from zernel.devicetree.allocations import check_allocations
from zernel.devicetree.free import free_cpus
from zernel.devicetree.inventory import check_inventory
from zernel.devicetree.model import System
from zernel.devicetree.reading import Interpretation, Origins, TooManyProblems, bounded
from zernel.devicetree.units import format_cpus
from zernel.errors import Problem


def validate(system: System, origins: Origins | None = None) -> list[Problem]:
    """Return every problem of the state; an empty list, or one of warnings only, means that it is valid."""
    places = origins or Origins()
    problems = check_inventory(system.resources, places)
    try:
        return problems + check_allocations(system, places)
    except TooManyProblems as stopped:
        return problems + stopped.problems


def validate_interpretation(found: Interpretation, *, baseline: bool) -> list[Problem]:
    """Return every problem of a file: its form's and its content's. ``baseline`` forbids instances."""
    problems = list(found.problems)
    if baseline and found.has_instances:
        problems.append(
            Problem(
                "baseline-has-instances",
                "Baseline must not contain instances. Instances should be created via overlays.",
                explanation=(
                    "Baseline must contain:",
                    "  ✓ /resources (hardware inventory)",
                    "  ✗ /instances (must be empty or absent)",
                ),
                suggestion="Remove instances section from baseline",
                note="Instances should be created via 'zernel create' using overlays",
                locations=found.instances_at,
            )
        )
    if found.system is not None:
        problems += validate(found.system, found.origins)
        if not baseline and is_valid(problems):
            problems += unallocated(found.system, found.origins)
    return bounded(problems)


def unallocated(system: System, origins: Origins | None = None) -> list[Problem]:
    """Return the document's warning about CPUs that nobody has, where there are instances at all."""
    free = free_cpus(system.resources, system.instances)
    if not system.instances or not free:
        return []
    share = round(100 * len(free) / len(set(system.resources.cpus.available)))
    return [
        Problem(
            "cpu-unallocated",
            f"{len(free)} CPU{'s' * (len(free) != 1)} ({share}% of memory pool)"
            f" {'is' if len(free) == 1 else 'are'} unallocated",
            explanation=(f"Unallocated CPUs: {format_cpus(free)}",),
            suggestion=f"Give them to an instance (zernel update NAME --add-cpus={format_cpus(free)}),"
            " or keep them for a later one",
            locations=origins.at("cpus", "available") if origins else (),
            severity="WARNING",
        )
    ]


def is_valid(problems: list[Problem]) -> bool:
    """Say whether nothing but warnings was found."""
    return all(problem.severity == "WARNING" for problem in problems)
