# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing CPUs, memory and an id for a new instance: lowest first, neighbours together, pages of 4 KiB."""

from __future__ import annotations

from zernel.devicetree.free import first_fit, first_run, free_cpus, free_memory
from zernel.devicetree.model import MAX_INSTANCE_ID, System
from zernel.devicetree.units import format_cpus, format_size
from zernel.errors import fail


def choose_cpus(system: System, count: int, subject: str) -> tuple[int, ...]:
    """Return ``count`` free CPUs, neighbours where there are as many; raises `ZernelError` when there are
    not."""
    free = free_cpus(system.resources, system.instances)
    chosen = first_run(free, count) if count > 0 else None
    if chosen is None:
        raise fail(
            "not-enough-cpus" if count > 0 else "bad-cpu-count",
            f"{count} CPUs cannot be given",
            subject=subject,
            explanation=f"Free CPUs: {format_cpus(free)} ({len(free)})",
            suggestion=f"Use --cpu-count={len(free)} or less"
            if free
            else "Delete an instance that is not needed",
        )
    return chosen


def choose_memory(system: System, size: int, subject: str) -> int:
    """Return the lowest address in the pool where ``size`` bytes are free; raises `ZernelError` if there
    is none."""
    gaps = free_memory(system.resources.memory, system.instances)
    base = first_fit(gaps, size)
    if base is not None:
        return base
    free = sum(end - start for start, end in gaps)
    start, end = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
    largest = f"{format_size(end - start)} at {start:#x}" if gaps else "none"
    raise fail(
        "not-enough-memory",
        f"{format_size(size)} of memory cannot be given in one piece",
        subject=subject,
        explanation=(
            f"Memory pool: {format_size(system.resources.memory.pool_bytes)}, {format_size(free)} free",
            f"Largest free block: {largest}",
        ),
        suggestion=f"Use --memory={end - start:#x} ({format_size(end - start)}) or less"
        if gaps
        else "Delete an instance that is not needed",
    )


def choose_id(system: System, subject: str) -> int:
    """Return the lowest free instance id; raises `ZernelError` when all are taken."""
    taken = {instance.id for instance in system.instances}
    number = next((number for number in range(1, MAX_INSTANCE_ID + 1) if number not in taken), None)
    if number is None:
        raise fail(
            "no-id",
            f"All {MAX_INSTANCE_ID} instance ids are taken",
            subject=subject,
            suggestion="Delete an instance that is not needed",
        )
    return number
