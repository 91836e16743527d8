# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the inventory behind a pool, for kernels that do not keep it themselves.

Kernels of the second version show the pool only, and the CPUs that they took vanish from /proc/cpuinfo. So
``zernel init --apply`` records what the baseline told of the host, and the physical ids of its CPUs, beside
the journal: first as what was ``begun``, then, once the kernel shows the pool, as what is ``applied``.
Neither is believed unless it agrees with the pool that the kernel shows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zernel import files
from zernel.devicetree.model import Cpus, Device, Memory, NumaNode, Resources
from zernel.multikernel.live_tree import Pool
from zernel.record import Record

MAX_BYTES = 16 << 20
"""More than the largest inventory takes: 8,192 CPUs and 8,192 devices with their parts."""


class Recorded(Record):
    """An inventory, and the physical ids of CPUs by logical number, those given away among them."""

    resources: Resources
    ids: dict[int, int]

    @property
    def cpus(self) -> tuple[int, ...]:
        """The pool's CPUs by physical id, ascending."""
        return tuple(sorted(self.ids[cpu] for cpu in self.resources.cpus.available))

    def agrees(self, pool: Pool | None, *, anywhere: bool = False) -> bool:
        """Say whether ``pool`` can be of this inventory; with ``anywhere``, wherever its memory lies."""
        if pool is None or pool.cpus != self.cpus:
            return False
        memory = self.resources.memory
        if pool.bytes != memory.pool_bytes or not (anywhere or pool.base == memory.pool_base):
            return False
        known = {device.pci_id.lower() for device in pooled(self.resources) if device.pci_id}
        return all(device.pci_id in known for device in pool.devices)

    def at(self, base: int) -> Recorded:
        """Return the same with the pool's memory at ``base``."""
        memory = self.resources.memory.but(pool_base=base)
        return self.but(resources=self.resources.but(memory=memory))


class Inventory(Record):
    """The content of the record. ``begun`` is there while an ``init --apply`` is in progress."""

    applied: Recorded | None = None
    begun: Recorded | None = None

    def believed(self, pool: Pool | None) -> Recorded | None:
        """Return the inventory that agrees with the pool; its base is the pool's. None: none does."""
        if self.applied is not None and self.applied.agrees(pool):
            return self.applied
        if self.begun is not None and pool is not None and self.begun.agrees(pool, anywhere=True):
            return self.begun.at(pool.base) if pool.base is not None else None
        return None


def pooled(resources: Resources) -> list[Device]:
    """Return the devices that go into a pool: those with a PCI address that the host keeps no part of."""
    return [
        device
        for device in resources.devices
        if device.pci_id and not device.host_reserved_vf and not device.host_reserved_ns
    ]


def path_in(directory: Path) -> Path:
    """Return where the record is."""
    return directory / "inventory.json"


def read(directory: Path) -> Inventory:
    """Return the record; an empty one where there is none, or one that is not as it was written."""
    try:
        data = json.loads(files.read_regular(path_in(directory), MAX_BYTES))
        if data.pop("sha256") != _digest(data):
            return Inventory()  # then the pool alone is known, and every output says so
        return Inventory(_recorded(data["applied"]), _recorded(data["begun"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Inventory()


def write(directory: Path, inventory: Inventory) -> None:
    """Replace the record; on disk when this returns."""
    data = {"applied": _data(inventory.applied), "begun": _data(inventory.begun)}
    files.replace(path_in(directory), json.dumps(data | {"sha256": _digest(data)}))


def _digest(data: dict[str, Any]) -> str:
    """Return the sum over the content, so that one byte that changed is no other host."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _data(found: Recorded | None) -> dict[str, Any] | None:
    if found is None:
        return None
    resources = found.resources
    return {
        "cpus": vars(resources.cpus),
        "memory": vars(resources.memory),
        "devices": [vars(device) for device in resources.devices],
        "numa_nodes": [vars(node) for node in resources.numa_nodes],
        "physical_ids": [[cpu, physical] for cpu, physical in sorted(found.ids.items())],
    }


def _recorded(data: Any) -> Recorded | None:
    if data is None:
        return None
    resources = Resources(
        Cpus(**_values(data["cpus"])),
        Memory(**_values(data["memory"])),
        tuple(Device(**_values(device)) for device in data["devices"]),
        tuple(NumaNode(**_values(node)) for node in data["numa_nodes"]),
    )
    return Recorded(resources, dict(data["physical_ids"]))


def _values(data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a record's fields: JSON has lists where records have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
