# SPDX-License-Identifier: GPL-3.0-or-later
"""Tenants: which cgroups are theirs, which GPUs they hold, and what weight follows from that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zernel import files
from zernel.scheduler.classes import MAX_WEIGHT, class_priority, scaled
from zernel.scheduler.tables import MAX_TENANTS, OWN_CLASS, MultiTenant, PriorityClass, Tenant

DEFAULT = "default"
"""Name of the tenant of all tasks that belong to no other; its index is 0."""

_CGROUPS = Path("sys/fs/cgroup")
_MAX_BYTES = 1 << 16  # of /proc/PID/cgroup: a path has at most 4096


@dataclass(frozen=True, slots=True)
class Part:
    """One tenant as it is now.

    ``gpus`` is the number of GPUs that its processes hold, None where that is not known; one that several
    tenants hold is split. ``cgroup`` and ``cgroup_id`` (the inode of its directory) are None for the default
    tenant; without an id there is no such cgroup now, and ``absent`` says so.
    """

    index: int
    name: str
    cgroup: str | None
    cgroup_id: int | None
    priority_class: str
    priority: int
    gpus: float | None
    weight: int
    absent: str | None = None


class Numbers:
    """Gives tenants their numbers, from 1 on. A scheduler counts by number for as long as it is loaded.

    A name keeps its number meanwhile, in the settings or not: no tenant is said to have got what another did.
    Only when all are given, a new tenant gets that of the one that is gone for the longest.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # first those that are gone, the longest gone before the others

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of each of these names, of which there are at most ``MAX_TENANTS``."""
        present = dict.fromkeys(names, 0)
        gone = {name: number for name, number in self._known.items() if name not in present}
        free = sorted(set(range(1, MAX_TENANTS + 1)) - set(self._known.values()))
        for name in present:
            present[name] = self._known.get(name) or (free.pop(0) if free else gone.pop(next(iter(gone))))
        self._known = gone | present
        return present


class Tenants:
    """The tenants of a configuration on this host."""

    def __init__(
        self,
        settings: MultiTenant,
        classes: PriorityClass,
        configured: Mapping[str, Tenant],
        numbers: Numbers,
        root: Path = Path("/"),
    ) -> None:
        self._settings = settings
        self._classes = classes
        self._configured = dict(configured) if settings.enabled else {}
        self._numbers = numbers.of(self._configured)
        self._root = root

    def parts(self, holders: Mapping[int, Iterable[int]] | None) -> list[Part]:
        """Return the tenants, the default one first.

        :param holders: pid → indices of the GPUs that it holds; None where that is not known.
        """
        gpus = None if holders is None else self._gpus(holders)
        parts = []
        for name, tenant in self._configured.items():
            index, inode = self._numbers[name], self._inode(tenant.cgroup)
            parts.append(self._part(index, name, tenant.cgroup, inode, tenant.class_, tenant.weight, gpus))
        default = self._part(0, DEFAULT, None, None, OWN_CLASS, 0, gpus)
        percent = self._settings.default_floor_percent
        floor = math.ceil(sum(part.weight for part in parts) * percent / (100 - percent))
        return [replace(default, weight=max(default.weight, min(floor, MAX_WEIGHT))), *parts]

    def index_of(self, cgroup: str) -> int:
        """Return the tenant of a cgroup path: that of the nearest ancestor that is one's, else 0."""
        best, index = -1, 0
        for name, tenant in self._configured.items():
            inside = cgroup == tenant.cgroup or cgroup.startswith(tenant.cgroup + "/")
            if inside and len(tenant.cgroup) > best:
                best, index = len(tenant.cgroup), self._numbers[name]
        return index

    def name_of(self, index: int) -> str:
        """Return a tenant's name; one that the settings no longer have is a number."""
        names = {0: DEFAULT} | {number: name for name, number in self._numbers.items()}
        return names.get(index, str(index))

    def _part(
        self,
        index: int,
        name: str,
        cgroup: str | None,
        inode: int | None,
        class_: str,
        fixed: int,
        gpus: Mapping[int, float] | None,
    ) -> Part:
        held = None if gpus is None else gpus.get(index, 0.0)
        default = self._settings.default_priority_class
        priority = class_priority(class_, default, self._classes)
        # The default tenant's weight is a floor for what runs beside the jobs, whatever GPUs it uses.
        by_gpus = (held or 0) * self._settings.weight_per_gpu if index else 0
        weight = scaled(fixed or by_gpus or self._settings.cpu_only_weight, priority)
        absent = None
        if cgroup is not None and inode is None:
            absent = f"there is no cgroup {self._root / _CGROUPS}{cgroup}"
        shown = default if class_ == OWN_CLASS else class_
        return Part(index, name, cgroup, inode, shown, priority, held, weight, absent)

    def _gpus(self, holders: Mapping[int, Iterable[int]]) -> dict[int, float]:
        """Return tenant → GPUs held."""
        tenants_of_gpu: dict[int, set[int]] = {}
        for pid, gpus in holders.items():
            path = cgroup_of(pid, self._root)
            if path is not None:
                for gpu in gpus:
                    tenants_of_gpu.setdefault(gpu, set()).add(self.index_of(path))
        held: dict[int, float] = {}
        for tenants in tenants_of_gpu.values():
            for tenant in tenants:
                held[tenant] = held.get(tenant, 0.0) + 1 / len(tenants)
        return held

    def _inode(self, cgroup: str) -> int | None:
        path = Path(f"{self._root / _CGROUPS}{cgroup}")
        try:
            return path.stat().st_ino if path.is_dir() else None
        except OSError:
            return None


def cgroup_of(pid: int, root: Path = Path("/")) -> str | None:
    """Return the path of a process's cgroup in the v2 hierarchy; None where it has none, or is gone."""
    try:
        text = files.read_regular(root / f"proc/{pid}/cgroup", _MAX_BYTES).decode(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            return path.removesuffix(" (deleted)")
    return None


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's part of the CPU time that all got in a while: as its weight wants it, and as it was.

    ``wanted`` is among those who ran or waited; None where it did neither.
    """

    wanted: float | None
    received: float | None


class Shares:
    """Works out shares between two looks at what each tenant got so far."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}

    def since_last(
        self, used: Mapping[int, tuple[float, float]], weights: Mapping[int, int]
    ) -> dict[int, Share]:
        """Return the shares since the last call.

        :param used: tenant → seconds run, seconds waited, since the scheduler was loaded.
        :param weights: tenant → weight.
        """
        # One that is gone may come back, and all that it got before is not of the last while then.
        before, self._before = self._before, {**self._before, **used}
        # A scheduler that was loaded anew counts from zero: what it counted is all new.
        ran = {index: _grown(run, before.get(index, (0.0, 0.0))[0]) for index, (run, _) in used.items()}
        waited = {index: _grown(wait, before.get(index, (0.0, 0.0))[1]) for index, (_, wait) in used.items()}
        wanting = [index for index in weights if ran.get(index, 0) > 0 or waited.get(index, 0) > 0]
        total_weight, total = sum(weights[index] for index in wanting), sum(ran.values())
        shares = {}
        for index in weights:
            wanted = weights[index] / total_weight if index in wanting else None
            shares[index] = Share(wanted, ran.get(index, 0.0) / total if total > 0 else None)
        return shares


def _grown(now: float, before: float) -> float:
    return now - before if now >= before else now
