# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon tells the scheduler while it runs, and what it reads from it: the maps of sched_intf.h.

Places of members come from the object's own type information, so nothing is written down twice.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from zernel.bpf import BpfObject, Map
from zernel.bpf.btf import STRUCT, Btf
from zernel.scheduler.config import Config
from zernel.scheduler.policy import Policy, Role

MAX_TENANTS = 32
"""Tenants that the scheduler tells apart. Tenant 0 has every task that belongs to no other."""

_ONLY = bytes(4)  # the key of a map with one entry
_FORMATS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What may change while the scheduler runs: members of ``struct settings`` by name, in its units."""

    slice_ns: int
    starvation_ns: int
    priority_step_ns: int
    short_burst_ns: int
    optimizer_burst_ns: int
    io_wait_permille: int
    latency_budget_permille: int
    preemptions_per_s: int
    nccl_detection: bool
    numa: bool
    policies: Mapping[str, Policy]
    """The policy table, by the enumerators of its rows."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a settings file asks for."""
        return cls(
            slice_ns=config.scheduler.slice_us * 1000,
            starvation_ns=config.safety.starvation_bound_ms * 1_000_000,
            priority_step_ns=config.scheduler.priority_step_us * 1000,
            short_burst_ns=config.scheduler.short_burst_us * 1000,
            optimizer_burst_ns=config.phase_detection.optimizer_burst_max_ns,
            io_wait_permille=round(config.phase_detection.io_wait_threshold * 1000),
            latency_budget_permille=config.scheduler.latency_budget_percent * 10,
            preemptions_per_s=round(config.scheduler.preemptions_per_ms * 1000),
            nccl_detection=config.phase_detection.nccl_detection_enabled,
            numa=config.numa.enabled,
            policies=config.policy.rows(),
        )


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's part. ``weight`` is relative to the others' (100: one GPU); ``priority`` -20 to 20."""

    weight: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Use:
    """What a tenant's tasks got since the scheduler was loaded: CPU time, and time that they waited for one.

    ``longest_wait_seconds`` is that of this epoch and the one before.
    """

    run_seconds: float
    wait_seconds: float
    longest_wait_seconds: float


@dataclass(frozen=True, slots=True)
class Delay:
    """How long threads of a role waited from waking up to running, since the scheduler was loaded.

    ``buckets[n]`` counts delays below 2**n microseconds that are in no bucket before; the last, all longer
    ones.
    """

    buckets: tuple[int, ...]
    sum_seconds: float


class Layout:
    """A struct of the object: where its members are."""

    def __init__(self, btf: Btf, name: str) -> None:
        """Read ``struct name``.

        :raises KeyError: if the object has none.
        """
        found = btf.find(name, STRUCT)
        if found is None:
            raise KeyError(f"the object has no struct {name}")
        members = btf.members(found).items()
        self.places = {key: (member.offset, btf.size(member.type_id)) for key, member in members}

    def integer(self, data: bytes, member: str, index: int = 0, width: int | None = None) -> int:
        """Return an unsigned integer; of an array of integers of ``width`` bytes, the one at ``index``."""
        offset, size = self.places[member]
        size = width or size
        start = offset + index * size
        return int.from_bytes(data[start : start + size], "little")

    def text(self, data: bytes, member: str) -> str:
        """Return a text that a zero byte ends."""
        offset, size = self.places[member]
        return data[offset : offset + size].split(b"\0", 1)[0].decode("utf-8", "replace")

    def put(self, data: bytearray, member: str, value: int, base: int = 0) -> None:
        """Write an integer into the struct that begins at ``base``."""
        offset, size = self.places[member]
        struct.pack_into(_FORMATS[size], data, base + offset, value % (1 << (8 * size)))


class SchedulerMaps:
    """The maps of a loaded scheduler. Not for use from several threads at once."""

    gpu_signal = False
    """Whether probes can tell when threads work with a GPU."""

    futex_signal = False
    """Whether waits for futexes are seen."""

    def __init__(self, obj: BpfObject) -> None:
        self._settings = obj.map(".data.settings")
        self._tenants = obj.map(".data.tenants")
        self._cgroups = obj.map("tenant_cgroups")
        self._use = obj.map("tenant_use")
        self._counters = obj.map("counters")
        btf = obj.btf
        self._btf = btf
        self._delays = obj.map("delays")
        self._delay_layout = Layout(btf, "delays")
        self._policy_layout = Layout(btf, "policy")
        self._policy_size = btf.size(btf.find("policy", STRUCT) or 0)
        self._settings_layout = Layout(btf, "settings")
        self._tenant_layout = Layout(btf, "tenant_settings")
        self._use_layout = Layout(btf, "tenant_use")
        self._counter_layout = Layout(btf, "counters")
        self._tenant_size = self._tenants.value_size // MAX_TENANTS

    def apply(self, settings: Settings) -> None:
        """Make the settings hold, at once."""
        plain = {
            part.name: int(getattr(settings, part.name))
            for part in fields(settings)
            if part.name != "policies"
        }
        table = {self._enumerator(row): policy for row, policy in settings.policies.items()}
        self._change(table, **plain)

    def set_tenants(self, tenants: Mapping[int, Tenant], cgroups: Mapping[int, int]) -> None:
        """Say which tenants there are.

        :param tenants: index (0 to 31) → part. Tenant 0 has those tasks that no other has.
        :param cgroups: id of a cgroup (the inode of its v2 directory) → the tenant of what it contains.
        :raises ZernelError: if there are more cgroups than the map holds.
        """
        parts = bytearray(self._tenants.value_size)
        for index, tenant in tenants.items():
            if not 0 <= index < MAX_TENANTS:
                raise ValueError(f"tenant {index} is not one of {MAX_TENANTS}")
            base = index * self._tenant_size
            self._tenant_layout.put(parts, "weight", tenant.weight, base)
            self._tenant_layout.put(parts, "priority", tenant.priority, base)
        self._tenants.update(_ONLY, bytes(parts))
        wanted = {key.to_bytes(8, "little"): index.to_bytes(4, "little") for key, index in cgroups.items()}
        for stale in set(self._cgroups.keys()) - wanted.keys():
            self._cgroups.delete(stale)
        for cgroup, value in wanted.items():
            self._cgroups.update(cgroup, value)
        now = self._settings.lookup(_ONLY) or bytes(self._settings.value_size)
        generation = self._settings_layout.integer(now, "generation") + 1
        self._change(tenants=int(bool(cgroups)), generation=generation)

    def counters(self) -> dict[str, int]:
        """Return the sums over all CPUs of what ``struct counters`` counts."""
        values = self._counters.lookup_percpu(_ONLY) or []
        # A task may join on one CPU and leave on another: only the sum, which wraps, has a meaning.
        return {
            name: sum(self._counter_layout.integer(value, name) for value in values) % (1 << 64)
            for name in self._counter_layout.places
        }

    def tenant_use(self) -> dict[int, Use]:
        """Return what each tenant got; those that never got anything are left out."""
        result = {}
        for index in range(MAX_TENANTS):
            cpus = self._use.lookup_percpu(index.to_bytes(4, "little")) or []
            run = sum(self._use_layout.integer(cpu, "run_ns") for cpu in cpus)
            wait = sum(self._use_layout.integer(cpu, "wait_ns") for cpu in cpus)
            waits = (self._use_layout.integer(c, "longest_wait_ns", n, 8) for c in cpus for n in (0, 1))
            longest = max(waits, default=0)
            if run or wait:
                result[index] = Use(run / 1e9, wait / 1e9, longest / 1e9)
        return result

    def next_epoch(self) -> None:
        """Begin a new epoch: the longest waits of the one before the present one are forgotten."""
        now = self._settings.lookup(_ONLY) or bytes(self._settings.value_size)
        self._change(epoch=(self._settings_layout.integer(now, "epoch") + 1) % (1 << 32))

    def delays(self) -> dict[Role, Delay]:
        """Return the delays of each role."""
        cpus = self._delays.lookup_percpu(_ONLY) or []
        roles = self._enumerator("NR_ROLES")
        count = self._delay_layout.places["buckets"][1] // 8 // roles
        result = {}
        for role in Role:
            index = self._enumerator(f"ROLE_{role.name}")
            buckets = [
                sum(self._delay_layout.integer(cpu, "buckets", index * count + n, 8) for cpu in cpus)
                for n in range(count)
            ]
            total = sum(self._delay_layout.integer(cpu, "sum_ns", index, 8) for cpu in cpus)
            result[role] = Delay(tuple(buckets), total / 1e9)
        return result

    def _enumerator(self, name: str) -> int:
        value = self._btf.enum_value(name)
        if value is None:
            raise KeyError(f"the object has no enumerator {name}")
        return value

    def _change(self, policies: Mapping[int, Policy] | None = None, /, **members: int) -> None:
        data = bytearray(self._settings.lookup(_ONLY) or bytes(self._settings.value_size))
        for name, value in members.items():
            self._settings_layout.put(data, name, value)
        for row, policy in (policies or {}).items():
            base = self._settings_layout.places["policies"][0] + row * self._policy_size
            self._policy_layout.put(data, "priority", policy.priority, base)
            preemption = self._enumerator(f"PREEMPT_{policy.preemption.name}")
            self._policy_layout.put(data, "preemption", preemption, base)
            self._policy_layout.put(data, "latency_target_ns", policy.latency_target_us * 1000, base)
        self._settings.update(_ONLY, bytes(data))


def fill(table: Map, layout: Layout, member: str, values: Mapping[int, int]) -> None:
    """Set one member of each entry of an array map, all else zero."""
    for index, value in values.items():
        entry = bytearray(table.value_size)
        layout.put(entry, member, value)
        table.update(index.to_bytes(4, "little"), bytes(entry))
