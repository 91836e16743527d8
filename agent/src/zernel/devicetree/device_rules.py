# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules for devices given to instances: they exist, may be given away, and have one owner each."""

from __future__ import annotations

from zernel.devicetree.free import free_parts, without
from zernel.devicetree.model import Device, DeviceUse, Instance, System
from zernel.devicetree.reading import Origins
from zernel.devicetree.units import format_cpus
from zernel.errors import Problem


def check_device_uses(system: System, origins: Origins) -> list[Problem]:
    """Return everything that is wrong with the devices of the instances."""
    check = _Check(system, origins)
    for index, instance in enumerate(system.instances):
        for use in dict.fromkeys(instance.devices):
            check.check_device(index, instance, use)
    check.check_device_sharing()
    return check.problems


class InstanceCheck:
    """Rules for the instances of a state; what breaks them is collected in ``problems``."""

    def __init__(self, system: System, origins: Origins) -> None:
        self.system = system
        self.resources = system.resources
        self.origins = origins
        self.problems: list[Problem] = []

    def add(self, code: str, category: str, index: int, name: str, **rest: object) -> None:
        """Add a problem of the instance at ``index``, located at its property ``name``."""
        rest.setdefault("subject", self.system.instances[index].name)
        rest.setdefault("locations", self.origins.at("instances", index, name))
        self.problems.append(Problem(code, category, **rest))  # type: ignore[arg-type]


class _Check(InstanceCheck):
    def __init__(self, system: System, origins: Origins) -> None:
        super().__init__(system, origins)
        self.devices = {device.name: device for device in reversed(system.resources.devices)}

    def check_device(self, index: int, instance: Instance, use: DeviceUse) -> None:
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
                suggestion=self.suggest_part(index, device),
            )
        if instance.devices.count(use) > 1:
            self.add(
                "device-duplicate",
                f"Device {use} is listed twice",
                index,
                "devices",
                suggestion="List it once",
            )

    def unknown_device(self, index: int, use: DeviceUse) -> None:
        wanted = "network" if use.vf is not None else "storage" if use.namespace is not None else None
        devices = [device for device in self.resources.devices if wanted in (None, device.category)]
        others = without(self.system, index)
        names = ", ".join(device.name for device in devices[:16]) or "none"
        explanation = [
            f"Requested device: {use}",
            f"Available {wanted + ' ' if wanted else ''}devices: {names}",
        ]
        note = None
        for device in devices[:4]:
            free = ", ".join(str(part).partition(":")[2] for part in free_parts(device, others)[:16])
            if use.namespace is not None:
                explanation.append(f"Available namespaces on {device.name}: {free or 'none'}")
                if use.namespace in device.host_reserved_ns:
                    note = f"Note: Namespace ns{use.namespace} is reserved for host kernel"
            elif use.vf is not None:
                explanation.append(f"Available VFs on {device.name}: {free or 'none'}")
                if use.vf in device.host_reserved_vf:
                    note = f"Note: VF vf{use.vf} is reserved for host kernel"
        choices = [part for device in devices for part in free_parts(device, others)]
        self.add(
            "device-not-found",
            "Invalid device reference",
            index,
            "devices",
            explanation=(*explanation, *((note,) if note else ())),
            conflict=f"Reference to non-existent device '{use.device}'",
            suggestion=(
                f"Change device reference to {choices[0]}"
                if choices
                else "Add the device to the baseline, or leave it out"
            ),
            did_you_mean=tuple(f"{choice} (available)" for choice in choices[:5]),
        )

    def check_part(self, index: int, device: Device, use: DeviceUse, number: int) -> None:
        if use.vf is not None:
            word, plural, available, reserved = "VF", "VFs", device.available_vfs, device.host_reserved_vf
        else:
            word, plural = "Namespace", "namespaces"
            available, reserved = device.available_ns, device.host_reserved_ns
        if number in available:
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
            suggestion=self.suggest_part(index, device),
        )

    def suggest_part(self, index: int, device: Device) -> str:
        parts = free_parts(device, without(self.system, index))
        if parts:
            return f"Change device reference to {parts[0]}"
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
            suggestion=self.suggest_part(second, device) if device else None,
            alternative=f"Remove {one_use} from {one.name}",
            locations=self.origins.at("instances", first, "devices")
            + self.origins.at("instances", second, "devices"),
        )
