# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for devices given to instances: they exist, may be given away, and have one owner each."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice

from zernel.devicetree.free import free_parts
from zernel.devicetree.model import Device, DeviceUse, System
from zernel.devicetree.reading import Findings, Origins
from zernel.devicetree.units import format_cpus
from zernel.errors import Problem


def check_device_uses(system: System, origins: Origins, problems: list[Problem]) -> None:
    """Add everything that is wrong with the devices of the instances to ``problems``."""
    check = _Check(system, origins, problems)
    for index, instance in enumerate(system.instances):
        for use, count in Counter(instance.devices).items():
            check.check_device(index, use, count)
    check.check_device_sharing()


class InstanceCheck:
    """Rules for the instances of a state; what breaks them is collected in ``problems``."""

    def __init__(self, system: System, origins: Origins, problems: list[Problem] | None = None) -> None:
        self.system = system
        self.resources = system.resources
        self.origins = origins
        self.problems = Findings() if problems is None else problems
        # What is free is counted at the first suggestion, once: each problem has one.
        self._takers: Counter[int] | None = None
        self._available: list[int] = []
        self._taken_parts: set[DeviceUse] | None = None
        self._parted: set[str] = set()
        self._free_parts: dict[str, list[DeviceUse]] = {}

    def add(self, code: str, category: str, index: int, name: str, **rest: object) -> None:
        """Add a problem of the instance at ``index``, located at its property ``name``."""
        rest.setdefault("subject", self.system.instances[index].name)
        rest.setdefault("locations", self.origins.at("instances", index, name))
        self.problems.append(Problem(code, category, **rest))  # type: ignore[arg-type]

    def free_cpus(self, index: int) -> list[int]:
        """Return the CPUs, ascending, that the instance at ``index`` could have: nobody else has them."""
        if self._takers is None:
            self._takers = Counter(
                chain.from_iterable(set(instance.cpus) for instance in self.system.instances)
            )
            cpus = self.resources.cpus
            usable = set(cpus.available).difference(cpus.host_reserved)
            self._available = sorted(cpu for cpu in usable if cpu < cpus.total)
        own, takers = set(self.system.instances[index].cpus), self._takers
        return [cpu for cpu in self._available if takers[cpu] == (cpu in own)]

    def free_parts(self, device: Device) -> list[DeviceUse]:
        """Return the parts of ``device`` that can be given away and that no instance has."""
        if self._taken_parts is None:
            self._taken_parts = {use for instance in self.system.instances for use in instance.devices}
            self._parted = {use.device for use in self._taken_parts if use != DeviceUse(use.device)}
        if device.name not in self._free_parts:
            taken, whole = self._taken_parts, DeviceUse(device.name)
            shared = device.host_reserved_vf or device.host_reserved_ns or device.name in self._parted
            if shared and whole in taken:
                taken = taken - {whole}  # it cannot be given whole: that is the mistake
            self._free_parts[device.name] = free_parts(device, taken)
        return self._free_parts[device.name]


class _Check(InstanceCheck):
    def __init__(self, system: System, origins: Origins, problems: list[Problem]) -> None:
        super().__init__(system, origins, problems)
        self.devices = {device.name: device for device in reversed(system.resources.devices)}
        self.offered: set[DeviceUse] = set()
        self.parts = {
            name: (frozenset(device.available_vfs), frozenset(device.available_ns))
            for name, device in self.devices.items()
        }

    def check_device(self, index: int, use: DeviceUse, count: int) -> None:
        device = self.devices.get(use.device)
        if device is None:
            self.unknown_device(index, use)
        elif use.vf is not None:
            self.check_part(index, device, use, use.vf)
        elif use.namespace is not None:
            self.check_part(index, device, use, use.namespace)
        elif device.host_reserved_vf or device.host_reserved_ns:
            self.add(
                "device-host-reserved",
                f"Device {device.name} is shared with the host kernel",
                index,
                "devices",
                explanation=(f"Requested device: {use}, the whole of it",),
                suggestion=self.suggest_part(device),
            )
        if count > 1:
            self.add(
                "device-duplicate",
                f"Device {use} is listed twice",
                index,
                "devices",
                suggestion="List it once",
            )

    def unknown_device(self, index: int, use: DeviceUse) -> None:
        wanted = "network" if use.vf is not None else "storage" if use.namespace is not None else None
        kind = use.device.rstrip("0123456789")  # of a whole device, only the name tells what it is
        devices = [
            device
            for device in self.resources.devices
            if (device.name.startswith(kind) if wanted is None else device.category == wanted)
        ]
        shown = devices if wanted else self.resources.devices
        names = ", ".join(device.name for device in shown[:16]) or "none"
        explanation = [
            f"Requested device: {use}",
            f"Available {wanted + ' ' if wanted else ''}devices: {names}",
        ]
        note = None
        for device in devices[:4]:
            parts = self.free_parts(device)[:16]
            free = ", ".join(str(part).partition(":")[2] for part in parts)
            if use.namespace is not None:
                explanation.append(f"Available namespaces on {device.name}: {free or 'none'}")
                if use.namespace in device.host_reserved_ns:
                    note = f"Note: Namespace ns{use.namespace} is reserved for host kernel"
            elif use.vf is not None:
                explanation.append(f"Available VFs on {device.name}: {free or 'none'}")
                if use.vf in device.host_reserved_vf:
                    note = f"Note: VF vf{use.vf} is reserved for host kernel"
        every = chain.from_iterable(self.free_parts(device) for device in devices)
        choices = list(islice(every, 5))
        self.add(
            "device-not-found",
            "Invalid device reference",
            index,
            "devices",
            explanation=(*explanation, *((note,) if note else ())),
            conflict=f"Reference to non-existent device '{use.device}'",
            suggestion=(
                f"Change device reference to {self.offer(choices)}"
                if choices
                else "Add the device to the baseline, or leave it out"
            ),
            did_you_mean=tuple(f"{choice} (available)" for choice in choices),
        )

    def check_part(self, index: int, device: Device, use: DeviceUse, number: int) -> None:
        if use.vf is not None:
            word, plural, available, reserved = "VF", "VFs", device.available_vfs, device.host_reserved_vf
        else:
            word, plural = "Namespace", "namespaces"
            available, reserved = device.available_ns, device.host_reserved_ns
        if number in self.parts[device.name][use.vf is None]:
            return
        named = "VF ID" if use.vf is not None else word
        outside = f"{named} {number} exceeds available {plural} ({format_cpus(available)})"
        if not available:
            outside = f"Device {device.name} has no {plural} to give away"
        self.add(
            "device-part-reserved" if number in reserved else "device-part-range",
            f"{word} {number} is reserved for host kernel" if number in reserved else outside,
            index,
            "devices",
            explanation=(f"Requested device: {use}",),
            suggestion=self.suggest_part(device),
        )

    def offer(self, choices: list[DeviceUse]) -> DeviceUse:
        """Return the first that was not suggested yet: whoever follows all advice asks for none twice."""
        chosen = next((choice for choice in choices if choice not in self.offered), choices[0])
        self.offered.add(chosen)
        return chosen

    def suggest_part(self, device: Device) -> str:
        parts = self.free_parts(device)
        if parts:
            return f"Change device reference to {self.offer(parts)}"
        return f"Nothing of {device.name} is free: leave it out, or delete the instance that has it"

    def check_device_sharing(self) -> None:
        owner: dict[DeviceUse, int] = {}
        parts: dict[str, list[tuple[int, DeviceUse]]] = {}
        whole: dict[str, int] = {}
        for index, instance in enumerate(self.system.instances):
            for use in dict.fromkeys(instance.devices):
                first = owner.setdefault(use, index)
                if first != index:
                    self.shared_device(first, index, use, use)
                if use.vf is None and use.namespace is None:
                    whole.setdefault(use.device, index)
                else:
                    parts.setdefault(use.device, []).append((index, use))
        # A device that is given away whole takes its functions and namespaces with it.
        for name, index in whole.items():
            for other, use in parts.get(name, ()):
                self.shared_device(
                    *(
                        (index, other, DeviceUse(name), use)
                        if index <= other
                        else (other, index, use, DeviceUse(name))
                    )
                )

    def shared_device(self, first: int, second: int, one_use: DeviceUse, other_use: DeviceUse) -> None:
        one, other = self.system.instances[first], self.system.instances[second]
        device = self.devices.get(one_use.device)
        if first == second:
            part = other_use if one_use == DeviceUse(one_use.device) else one_use
            self.add(
                "device-duplicate",
                f"Device {one_use.device} is listed whole and in part",
                first,
                "devices",
                explanation=(f"Requested devices: {one_use.device} and {part}",),
                suggestion=f"List {part} only",
                alternative=f"List {one_use.device} only: {part} is a part of it",
            )
            return
        self.add(
            "device-shared",
            f"Both allocated {one_use if one_use == other_use else one_use.device}",
            second,
            "devices",
            subject=f"{one.name} and {other.name}",
            explanation=(
                f"Instance {one.name} uses {one_use}",
                f"Instance {other.name} requested {other_use}",
            )
            if one_use != other_use
            else (),
            suggestion=self.suggest_part(device) if device else None,
            alternative=f"Remove {one_use} from {one.name}",
            locations=self.origins.at("instances", first, "devices")
            + self.origins.at("instances", second, "devices"),
        )
