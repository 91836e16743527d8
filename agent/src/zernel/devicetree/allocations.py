# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for instances: does everyone own what exists, and nobody what another owns?

The words of the problems are the kerf document's, the suggestions are computed from what is free. Time grows
with the number of items, not with its square: owners are looked up, memory is swept in order of address.
"""

from __future__ import annotations

import re
from collections import Counter

from zernel.devicetree.device_rules import InstanceCheck, check_device_uses
from zernel.devicetree.free import first_fit, first_run, free_memory, without
from zernel.devicetree.model import MAX_INSTANCE_ID, PAGE_BYTES, Instance, System
from zernel.devicetree.reading import Origins
from zernel.devicetree.topology_rules import check_topology
from zernel.devicetree.units import format_cpus, format_size
from zernel.errors import Problem

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def check_allocations(system: System, origins: Origins) -> list[Problem]:
    """Return everything that is wrong with the instances, given a consistent inventory."""
    return _Check(system, origins).run()


def check_name(name: str) -> list[Problem]:
    """Return what is wrong with an instance's name: it becomes a directory's and a device tree node's
    name."""
    if re.fullmatch(_NAME, name):
        return []
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    return [
        Problem(
            "bad-name",
            f"Invalid instance name: {shown!r}",
            explanation=(
                "A name has 1 to 63 characters: letters, digits, '.', '_' and '-'",
                "It begins with a letter or a digit",
            ),
            suggestion="Choose a name such as web-server",
        )
    ]


class _Check(InstanceCheck):
    def run(self) -> list[Problem]:
        self.check_names_and_ids()
        for index, instance in enumerate(self.system.instances):
            self.check_cpus(index, instance)
            self.check_memory(index, instance)
        self.check_cpu_overlaps()
        self.check_memory_overlaps()
        self.check_memory_sum()
        self.problems += check_topology(self.system, self.origins)
        check_device_uses(self.system, self.origins, self.problems)
        return self.problems

    # -- names and ids --------------------------------------------------------------------------------------

    def check_names_and_ids(self) -> None:
        names: dict[str, int] = {}
        ids: dict[int, int] = {}
        for index, instance in enumerate(self.system.instances):
            for problem in check_name(instance.name):
                self.problems.append(problem.but(locations=self.origins.at("instances", index, "name")))
            first = names.setdefault(instance.name, index)
            if first != index:
                self.add(
                    "duplicate-name",
                    f'Duplicate instance name: "{instance.name}"',
                    index,
                    "name",
                    subject=None,
                    explanation=(f'Instance name "{instance.name}" appears multiple times in configuration',),
                    suggestion=f'Rename the second instance to "{self.unused_name(instance.name)}"'
                    " or another unique name",
                    note="Instance names must be unique across the entire system",
                    locations=self.origins.at("instances", first) + self.origins.at("instances", index),
                )
            if instance.id is None:
                continue
            if not 1 <= instance.id <= MAX_INSTANCE_ID:
                self.add(
                    "id-out-of-range",
                    f"Instance id {instance.id} is out of range",
                    index,
                    "id",
                    explanation=(f"Ids run from 1 to {MAX_INSTANCE_ID}; 0 is the host",),
                    suggestion=f"Use id {self.unused_id()}, or give none: a free one is chosen",
                )
            first = ids.setdefault(instance.id, index)
            if first != index:
                other = self.system.instances[first].name
                self.add(
                    "duplicate-id",
                    f"Duplicate instance ID: {instance.id} assigned to both {other} and {instance.name}",
                    index,
                    "id",
                    subject=None,
                    suggestion=f"Use id {self.unused_id()} for {instance.name}",
                    locations=self.origins.at("instances", first, "id")
                    + self.origins.at("instances", index, "id"),
                )

    def unused_name(self, name: str) -> str:
        names = {instance.name for instance in self.system.instances}
        return next(f"{name}-{n}" for n in range(2, len(names) + 3) if f"{name}-{n}" not in names)

    def unused_id(self) -> int:
        ids = {instance.id for instance in self.system.instances}
        return next((number for number in range(1, MAX_INSTANCE_ID + 1) if number not in ids), 1)

    # -- CPUs -----------------------------------------------------------------------------------------------

    def check_cpus(self, index: int, instance: Instance) -> None:
        cpus = self.resources.cpus
        if not instance.cpus:
            self.add("cpu-none", "Instance has no CPU", index, "cpus", suggestion="Give it at least one CPU")
            return
        wanted = set(instance.cpus)
        if self.resources.unknown is not None:
            self.check_pool_cpus(index, wanted.difference(cpus.available), self.resources.unknown)
            wanted.intersection_update(cpus.available)
        missing = {cpu for cpu in wanted if cpu >= cpus.total}
        reserved = wanted.intersection(cpus.host_reserved) - missing
        unavailable = wanted - missing - reserved - set(cpus.available)
        hardware = f"(hardware has 0-{cpus.total - 1})"
        verb = ("does", "is") if len(missing) == 1 else ("do", "are")
        for code, found, what in (
            ("cpu-not-found", missing, f"{verb[0]} not exist {hardware}"),
            ("cpu-reserved", reserved, f"{'is' if len(reserved) == 1 else 'are'} reserved for host kernel"),
            ("cpu-unavailable", unavailable, f"{'is' if len(unavailable) == 1 else 'are'} not available"),
        ):
            if found:
                self.add(
                    code,
                    f"{'CPU' if len(found) == 1 else 'CPUs'} {format_cpus(found)} {what}",
                    index,
                    "cpus",
                    current_state=f"Available CPUs: {format_cpus(cpus.available)}",
                    suggestion=self.suggest_cpus(index),
                )
        twice = [cpu for cpu, count in Counter(instance.cpus).items() if count > 1]
        if twice:
            self.add(
                "cpu-duplicate",
                f"CPUs listed twice: {format_cpus(twice)}",
                index,
                "cpus",
                suggestion="List each CPU once",
            )

    def check_pool_cpus(self, index: int, outside: set[int], unknown: str) -> None:
        """Refuse CPUs of which nobody knows whether the host keeps them, or whether they exist."""
        if outside:
            self.add(
                "cpu-unavailable",
                f"{'CPU' if len(outside) == 1 else 'CPUs'} {format_cpus(outside)}"
                f" {'is' if len(outside) == 1 else 'are'} not in the pool",
                index,
                "cpus",
                explanation=(unknown,),
                current_state=f"Available CPUs: {format_cpus(self.resources.cpus.available)}",
                suggestion=self.suggest_cpus(index),
            )

    def suggest_cpus(self, index: int) -> str:
        """Return the advice for an instance whose CPUs cannot be had."""
        instance = self.system.instances[index]
        free = self.free_cpus(index)
        run = first_run(free, len(set(instance.cpus)))
        if run:
            return f"Change {instance.name} to use CPUs {format_cpus(run)}"
        if free:
            some = (
                f"{len(free)} CPUs: {format_cpus(free)} are" if len(free) > 1 else f"CPU {free[0]}, which is"
            )
            return f"Reduce {instance.name} to {some} free"
        return "No CPU is free: delete an instance, or make more CPUs available in the baseline"

    def check_cpu_overlaps(self) -> None:
        owner: dict[int, int] = {}
        shared: dict[tuple[int, int], list[int]] = {}
        for index, instance in enumerate(self.system.instances):
            for cpu in dict.fromkeys(instance.cpus):
                first = owner.setdefault(cpu, index)
                if first != index:
                    shared.setdefault((first, index), []).append(cpu)
        for (first, second), cpus in shared.items():
            one, other = self.system.instances[first], self.system.instances[second]
            keeps = set(one.cpus).difference(cpus)
            overlap = ", ".join(map(str, cpus)) if len(cpus) <= 32 else format_cpus(cpus)
            reduce_to = f"Reduce {one.name} allocation to CPUs {format_cpus(keeps)}"
            self.add(
                "cpu-overlap",
                f"CPU allocation conflict with {one.name}",
                second,
                "cpus",
                explanation=(
                    f"Instance {one.name} uses CPUs: {format_cpus(one.cpus)}",
                    f"Instance {other.name} requested CPUs: {format_cpus(other.cpus)}",
                    f"Overlapping CPUs: {overlap}",
                ),
                suggestion=self.suggest_cpus(second),
                alternative=reduce_to if keeps else f"Delete {one.name}",
                locations=self.origins.at("instances", first, "cpus")
                + self.origins.at("instances", second, "cpus"),
            )

    # -- memory ---------------------------------------------------------------------------------------------

    def check_memory(self, index: int, instance: Instance) -> None:
        memory = self.resources.memory
        start, end, size = instance.memory_base, instance.memory_end, instance.memory_bytes
        if size == 0:
            self.add(
                "memory-zero",
                "Instance has no memory",
                index,
                "memory-bytes",
                suggestion="Give it at least 4KB",
            )
            return
        if size % PAGE_BYTES:
            self.add(
                "memory-size-not-aligned",
                "Memory size is not a multiple of the page size",
                index,
                "memory-bytes",
                explanation=(f"Requested size: {size:#x}", "Page size: 4KB (0x1000)"),
                suggestion=f"Use {(size + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES:#x}",
            )
        if start % PAGE_BYTES:
            self.add(
                "memory-not-aligned",
                "Memory base address not page-aligned",
                index,
                "memory-base",
                explanation=(
                    f"Requested base: {start:#x}",
                    "Page size: 4KB (0x1000)",
                    "Alignment requirement: Address must be multiple of 0x1000",
                ),
                suggestion=f"Use base address {start // PAGE_BYTES * PAGE_BYTES:#x} (already aligned)",
                note="Misaligned addresses may cause performance issues or boot failures",
                severity="WARNING",
            )
        if start >= memory.pool_base and end <= memory.pool_end:
            return
        gaps = free_memory(memory, without(self.system, index))
        best = first_fit(gaps, size)
        if (
            gaps
            and gaps[-1][1] == memory.pool_end
            and memory.pool_end - gaps[-1][0] >= size
            and start >= memory.pool_base
        ):
            best = memory.pool_end - size
        pool = (
            f"Memory pool range: {memory.pool_base:#x} - {memory.pool_end:#x}"
            f" ({format_size(memory.pool_bytes)} available)"
        )
        requested = f"Instance {instance.name} requested: {start:#x} - {end:#x} ({format_size(size)})"
        if start < memory.pool_base:
            category = f"Memory [{start:#x}-{end:#x}] outside memory pool"
            issue = f"Underflow: Starts {format_size(memory.pool_base - start)} before the pool"
        else:
            category = "Memory allocation exceeds memory pool"
            over = end - memory.pool_end
            issue = f"Overflow: Exceeds pool end by {format_size(over)} ({over:#x} bytes)"
        at_end = best is not None and best + size == memory.pool_end
        self.add(
            "memory-outside-pool",
            category,
            index,
            "memory-base",
            explanation=(pool, requested, issue),
            suggestion=f"Change memory-base to {best:#x}" if best is not None else _no_room(gaps, size),
            note="This would place memory at end of memory pool" if at_end else None,
            context=(
                f"Memory pool ends at: {memory.pool_end:#x}",
                f"Requested start: {start:#x}"
                + (" (exactly at pool end)" if start == memory.pool_end else ""),
                f"Requested size: {size:#x}",
                f"Would end at: {end:#x}" + (" (outside pool)" if end > memory.pool_end else ""),
            ),
        )

    def check_memory_overlaps(self) -> None:
        order = sorted(
            (instance.memory_base, index)
            for index, instance in enumerate(self.system.instances)
            if instance.memory_bytes
        )
        highest: int | None = None
        for _, index in order:
            instance = self.system.instances[index]
            if highest is not None and instance.memory_base < self.system.instances[highest].memory_end:
                self.memory_overlap(*sorted((highest, index)))
            if highest is None or instance.memory_end > self.system.instances[highest].memory_end:
                highest = index

    def memory_overlap(self, first: int, second: int) -> None:
        one, other = self.system.instances[first], self.system.instances[second]
        start, end = max(one.memory_base, other.memory_base), min(one.memory_end, other.memory_end)
        gaps = free_memory(self.resources.memory, without(self.system, second))
        best = first_fit(gaps, other.memory_bytes)
        width = max(len(one.name), len(other.name)) + len(" memory:")
        shrunk = other.memory_base - one.memory_base
        self.add(
            "memory-overlap",
            "Memory region overlap detected",
            second,
            "memory-base",
            subject=f"{one.name} and {other.name}",
            explanation=(
                *(
                    f"{f'{who.name} memory:':<{width}} {who.memory_base:#x} - {who.memory_end:#x}"
                    f" ({format_size(who.memory_bytes)})"
                    for who in (one, other)
                ),
                f"Overlapping region: {start:#x} - {end:#x} ({format_size(end - start)} overlap)",
            ),
            suggestion=(
                f"Move {other.name} memory to {best:#x}"
                if best is not None
                else _no_room(gaps, other.memory_bytes)
            ),
            alternative=(
                f"Reduce {one.name} memory size to {format_size(shrunk)} (end at {other.memory_base:#x})"
                if shrunk > 0
                else None
            ),
            locations=self.origins.at("instances", first, "memory-base")
            + self.origins.at("instances", second, "memory-base"),
        )

    def check_memory_sum(self) -> None:
        total = sum(instance.memory_bytes for instance in self.system.instances)
        pool = self.resources.memory.pool_bytes
        if total > pool:
            self.problems.append(
                Problem(
                    "memory-sum",
                    f"Total memory allocation ({format_size(total)})"
                    f" exceeds memory pool ({format_size(pool)})",
                    suggestion=f"Reduce the instances' memory by {format_size(total - pool)} in all",
                    locations=self.origins.at("memory", "memory-pool-bytes"),
                )
            )


def _no_room(gaps: list[tuple[int, int]], size: int) -> str:
    if not gaps:
        return "The memory pool is full: delete an instance, or enlarge the pool in the baseline"
    start, end = max(gaps, key=lambda gap: gap[1] - gap[0])
    return (
        f"Reduce the memory to {format_size(end - start)}: {format_size(size)} does not fit,"
        f" largest free block is {format_size(end - start)} at {start:#x}"
    )
