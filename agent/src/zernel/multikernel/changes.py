# SPDX-License-Identifier: GPL-3.0-or-later
"""The difference between two states of an instance, as the operations that the kernel knows.

A `Step` is what one overlay does: it creates an instance, removes it, or moves it from one state to another.
Its inverse is the step with both states exchanged, so what was done can be undone the same way.
"""

from __future__ import annotations

from zernel.devicetree.model import DeviceUse, Instance, Resources
from zernel.devicetree.units import format_cpus, format_size
from zernel.record import Record


class Step(Record):
    """One overlay: an instance before it and after it. None: not there; one of the two is."""

    before: Instance | None
    after: Instance | None

    @property
    def name(self) -> str:
        """The instance's name."""
        found = self.before or self.after
        assert found is not None
        return found.name

    @property
    def verb(self) -> str:
        """What the step does: ``create``, ``delete`` or ``update``."""
        return "create" if self.before is None else "delete" if self.after is None else "update"


class Operation(Record):
    """One operation of an update, with what it moves: a memory range (base, bytes), CPUs or devices."""

    kind: str
    memory: tuple[int, int] | None = None
    cpus: tuple[int, ...] = ()
    devices: tuple[DeviceUse, ...] = ()

    def __str__(self) -> str:
        """Return the operation for a person: ``cpu-add 16-19``."""
        if self.memory is not None:
            return f"{self.kind} {format_size(self.memory[1])} at {self.memory[0]:#x}"
        return f"{self.kind} {format_cpus(self.cpus) if self.cpus else ','.join(map(str, self.devices))}"

    def as_dict(self) -> dict[str, object]:
        """Return the operation for JSON: its kind, and ``memory_base`` and ``memory_bytes``, ``cpus`` or
        ``devices``."""
        if self.memory is not None:
            return {"operation": self.kind, "memory_base": self.memory[0], "memory_bytes": self.memory[1]}
        if self.cpus:
            return {"operation": self.kind, "cpus": list(self.cpus)}
        return {"operation": self.kind, "devices": [str(use) for use in self.devices]}


def operations(before: Instance, after: Instance) -> list[Operation]:
    """Return the least that leads from one state to the other, in the order in which the kernel does it.

    An instance has one range of memory; only its end moves.
    """
    found = []
    if after.memory_end < before.memory_end:
        taken = before.memory_end - after.memory_end
        found.append(Operation("memory-remove", memory=(after.memory_end, taken)))
    if after.memory_end > before.memory_end:
        given = after.memory_end - before.memory_end
        found.append(Operation("memory-add", memory=(before.memory_end, given)))
    for kind, one, other in (("remove", before, after), ("add", after, before)):
        cpus = tuple(sorted(set(one.cpus).difference(other.cpus)))
        if cpus:
            found.append(Operation(f"cpu-{kind}", cpus=cpus))
    for kind, one, other in (("remove", before, after), ("add", after, before)):
        devices = _without(one.devices, other.devices)
        if devices:
            found.append(Operation(f"device-{kind}", devices=devices))
    return found


def _without(devices: tuple[DeviceUse, ...], others: tuple[DeviceUse, ...]) -> tuple[DeviceUse, ...]:
    left_out = set(others)
    return tuple(use for use in devices if use not in left_out)


def same(shown: Instance | None, asked: Instance | None) -> bool:
    """Say whether ``shown``, read from the kernel, is what was asked for; devices and CPUs have no order."""
    if shown is None or asked is None:
        return shown is asked
    return _ordered(shown) == _ordered(as_shown(asked, shown))


def as_shown(asked: Instance, shown: Instance) -> Instance:
    """Return ``asked`` without NUMA nodes and policies if ``shown`` has none of them.

    They say where an instance was put, not what it owns, and kernels are not known to keep them.
    """
    if shown.numa_nodes or shown.cpu_affinity is not None or shown.memory_policy is not None:
        return asked
    return asked.but(numa_nodes=(), cpu_affinity=None, memory_policy=None)


def _ordered(instance: Instance) -> Instance:
    return instance.but(cpus=tuple(sorted(instance.cpus)), devices=tuple(sorted(instance.devices, key=str)))


def kept(before: Instance, after: Instance) -> Instance:
    """Return ``before`` without what ``after`` does not have: what is left when only removals were done."""
    cpus, devices = set(after.cpus), set(after.devices)
    return before.but(
        memory_bytes=min(before.memory_bytes, after.memory_bytes),
        cpus=tuple(cpu for cpu in before.cpus if cpu in cpus),
        devices=tuple(use for use in before.devices if use in devices),
    )


def union(before: Instance, after: Instance) -> Instance:
    """Return ``before`` with what ``after`` has more: what there is when only additions were done."""
    return before.but(
        memory_bytes=max(before.memory_bytes, after.memory_bytes),
        cpus=tuple(sorted({*before.cpus, *after.cpus})),
        devices=(*before.devices, *_without(after.devices, before.devices)),
    )


def within(now: Instance | None, step: Step) -> bool:
    """Say whether ``now`` can be what a step made that the kernel carried out in part or as a whole."""
    before, after = step.before, step.after
    if before is None and after is not None and now is not None:
        # Kernels of the second version add the devices in an operation of their own.
        has, wanted = set(now.devices), set(after.devices)
        return has <= wanted and same(now.but(devices=()), after.but(devices=()))
    if before is None or after is None or now is None:
        return same(now, after)
    before, after = as_shown(before, now), as_shown(after, now)
    least, most = kept(before, after), union(before, after)
    return (
        now.but(cpus=(), memory_bytes=0, devices=()) == before.but(cpus=(), memory_bytes=0, devices=())
        and least.memory_bytes <= now.memory_bytes <= most.memory_bytes
        and set(least.cpus) <= set(now.cpus) <= set(most.cpus)
        and set(least.devices) <= set(now.devices) <= set(most.devices)
    )


def is_part(now: Instance | None, made: Instance | None) -> bool:
    """Say whether ``now`` can be what is there of ``made``, an instance that was created in part."""
    if now is None or made is None or (made.id is not None and now.id != made.id):
        return False
    return (
        set(now.cpus) <= set(made.cpus)
        and set(now.devices) <= set(made.devices)
        and (now.memory_bytes == 0 or now.memory_base == made.memory_base)
        and now.memory_bytes <= made.memory_bytes
    )


class Common(Record):
    """What one instance has of what another one is to have."""

    cpus: tuple[int, ...]
    memory: bool
    devices: tuple[DeviceUse, ...]
    id: int | None

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return bool(self.cpus or self.memory or self.devices or self.id is not None)

    def __str__(self) -> str:
        """Return it for a person: ``CPUs 4-5, its memory, eth0:vf1, id 3``."""
        words = [f"CPUs {format_cpus(self.cpus)}"] if self.cpus else []
        words += ["its memory"] if self.memory else []
        words += sorted(map(str, self.devices))
        words += [f"id {self.id}"] if self.id is not None else []
        return ", ".join(words)


def common(wanted: Instance, other: Instance, *, placed: bool) -> Common:
    """Return what ``other`` has of ``wanted``; memory counts only where its place is ``placed`` by us.

    Who has a whole device has its functions and namespaces, too.
    """
    has = set(other.devices)
    parted = {use.device for use in has}
    return Common(
        tuple(sorted({*wanted.cpus} & {*other.cpus})),
        placed and wanted.memory_base < other.memory_end and other.memory_base < wanted.memory_end,
        tuple(
            use
            for use in wanted.devices
            if use in has
            or DeviceUse(use.device) in has
            or (use.device in parted and use == DeviceUse(use.device))
        ),
        other.id if other.id == wanted.id else None,
    )


def differences(found: Instance | None, expected: Instance | None) -> list[str]:
    """Return in words how an instance that was ``found`` differs from the one ``expected``."""
    if found is None or expected is None:
        return [] if found is expected else ["It is not there" if found is None else "It is there"]
    expected = as_shown(expected, found)
    pairs = [
        ("Id", str(found.id), str(expected.id)),
        ("CPUs", format_cpus(found.cpus), format_cpus(expected.cpus)),
        ("Memory", _memory(found), _memory(expected)),
        ("Devices", _devices(found), _devices(expected)),
        ("NUMA nodes", format_cpus(found.numa_nodes), format_cpus(expected.numa_nodes)),
        ("CPU affinity", str(found.cpu_affinity), str(expected.cpu_affinity)),
        ("Memory policy", str(found.memory_policy), str(expected.memory_policy)),
    ]
    return [f"{what}: has {has}, not {other}" for what, has, other in pairs if has != other]


def _memory(instance: Instance) -> str:
    return f"{format_size(instance.memory_bytes)} at {instance.memory_base:#x}"


def _devices(instance: Instance) -> str:
    return ", ".join(sorted(map(str, instance.devices))) or "none"


def check_in_place(before: Instance, after: Instance, resources: Resources) -> list[str]:
    """Return in words why no operation of an update leads from one state to the other; both have the same
    name."""
    why = []
    if after.id != before.id:
        why += [
            "An instance's id cannot be changed in place",
            f"It is {before.id}, and is to be {after.id}",
        ]
    if after.memory_base != before.memory_base:
        why += [
            "Where an instance's memory begins cannot be changed in place",
            f"It begins at {before.memory_base:#x}, and is to begin at {after.memory_base:#x}",
        ]
    policies = ("numa_nodes", "cpu_affinity", "memory_policy")
    if any(getattr(before, name) != getattr(after, name) for name in policies):
        why.append("NUMA nodes, CPU affinity and memory policy cannot be changed in place")
    whole = {device.name for device in resources.devices if device.pci_id is not None}
    moved = set(before.devices) ^ set(after.devices)
    parts = sorted(str(use) for use in moved if use.label not in whole)
    if parts:
        why += [
            f"Device {', '.join(parts)} cannot be changed in place",
            "The kernel's overlays add and remove a device by its PCI address",
            "A virtual function or namespace has none of its own there: it is given at creation only",
        ]
    return why
