# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon tells the scheduler while it runs, and what it reads from it: the maps of sched_intf.h.

Places of members come from the object's own type information, so nothing is written down twice.
"""

from __future__ import annotations

import operator
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from zernel.bpf import BpfObject, Map
from zernel.bpf.btf import STRUCT, Btf
from zernel.gpu.activity import Missing, missing
from zernel.scheduler.config import Config
from zernel.scheduler.policy import DEFAULTS, Phase, Policy, Role

MAX_TENANTS = 32
"""Tenants that the scheduler tells apart. Tenant 0 has every task that belongs to no other."""

_ONLY = bytes(4)  # the key of a map with one entry
_PIDFD_THREAD = os.O_EXCL  # include/uapi/linux/pidfd.h, Linux 6.9
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
    hint_lifetime_ns: int
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
            hint_lifetime_ns=config.safety.hint_lifetime_ms * 1_000_000,
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


@dataclass(frozen=True, slots=True)
class Hint:
    """What was found out about a process.

    ``start_ticks`` is field 22 of /proc/PID/stat; ``node`` is the index in ``Topology.nodes`` of the node
    that its GPU, or its memory, is on.
    """

    start_ticks: int
    phase: Phase
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Activity:
    """What the threads of a process did in one epoch; members of ``struct activity`` by name, in its units.

    Times of day are CLOCK_MONOTONIC; None for what no probe ever saw. ``cgroup`` is the id of the cgroup (v2)
    of one of its threads, 0 while there are no tenants.
    """

    start_ticks: int
    run_ns: int
    wait_ns: int
    sleep_ns: int
    io_wait_ns: int
    bursts: int
    burst_ns: int
    longest_burst_ns: int
    futexes: int
    gpu_sync_ns: int | None
    gpu_launch_ns: int | None
    nccl_ns: int | None
    cgroup: int
    tenant: int
    cpu: int
    roles: frozenset[Role]


_ACTIVITY = [field.name for field in fields(Activity)]
_OPTIONAL = [_ACTIVITY.index(name) for name in ("gpu_sync_ns", "gpu_launch_ns", "nccl_ns")]
_ROLES = _ACTIVITY.index("roles")


@dataclass(frozen=True, slots=True)
class Task:
    """What the scheduler remembers of a thread; averages are moving ones over its last few bursts."""

    role: Role
    policy: str
    """The row of the policy table that holds for it, without ``POLICY_``."""
    phase: Phase | None
    """What the hint for its process says, if that is fresh."""
    node: int | None
    tenant: int
    cgroup: int
    run_avg_ns: int
    sleep_avg_ns: int
    io_avg_ns: int


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

    def reader(self, *members: str) -> Callable[[bytes], tuple[int, ...]]:
        """Return a function that reads these members, all unsigned, at once: for what is read often."""
        form, end = "<", 0
        for offset, size in sorted(self.places[member] for member in members):
            form += f"{offset - end}x{_FORMATS[size][1:]}"
            end = offset + size
        by_place = sorted(members, key=self.places.__getitem__)
        unpack = struct.Struct(form).unpack_from
        pick = operator.itemgetter(*map(by_place.index, members))
        return lambda data: pick(unpack(data))

    def text(self, data: bytes, member: str) -> str:
        """Return a text that a zero byte ends."""
        offset, size = self.places[member]
        return data[offset : offset + size].split(b"\0", 1)[0].decode("utf-8", "replace")

    def put(self, data: bytearray, member: str, value: int, base: int = 0) -> None:
        """Write an integer into the struct that begins at ``base``."""
        offset, size = self.places[member]
        struct.pack_into(_FORMATS[size], data, base + offset, value % (1 << (8 * size)))


class HintTable:
    """The map of hints. Only what is new or getting old is written: most processes stay in their phase."""

    def __init__(self, table: Map, layout: Layout, phases: Mapping[Phase, int]) -> None:
        """Take an empty map; ``phases`` are the enumerators."""
        self._table = table
        self._layout = layout
        self._phases = phases
        self._written: dict[int, tuple[Hint, int]] = {}

    def write(self, hints: Mapping[int, Hint], now_ns: int, lifetime_ns: int) -> bool:
        """Make these all the hints there are; return whether anything was written."""
        gone = self._written.keys() - hints.keys()
        for pid in gone:
            self._table.delete(pid.to_bytes(4, "little"))
            del self._written[pid]
        due = [pid for pid, hint in hints.items() if self._is_due(pid, hint, now_ns, lifetime_ns)]
        for pid in due:
            hint = hints[pid]
            data = bytearray(self._table.value_size)
            self._layout.put(data, "start_ticks", hint.start_ticks)
            self._layout.put(data, "written_at", now_ns)
            self._layout.put(data, "phase", self._phases[hint.phase])
            self._layout.put(data, "node", -1 if hint.node is None else hint.node)
            self._table.update(pid.to_bytes(4, "little"), bytes(data))
            self._written[pid] = hint, now_ns
        return bool(gone or due)

    def _is_due(self, pid: int, hint: Hint, now_ns: int, lifetime_ns: int) -> bool:
        before = self._written.get(pid)
        return before is None or before[0] != hint or now_ns - before[1] >= lifetime_ns // 4


class SchedulerMaps:
    """The maps of a loaded scheduler. Not for use from several threads at once."""

    gpu_unshared: str | None = None
    """Why no map is shared with the probes that tell when threads work with a GPU; None when one is."""

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
        self._hint_lifetime_ns = 0
        self._activity = obj.map("activity_0"), obj.map("activity_1")
        self._read_activity = Layout(btf, "activity").reader(*_ACTIVITY)
        self._role_sets: dict[int, frozenset[Role]] = {}
        self._probes = obj.map("gpu_probes")
        self._tasks = obj.map("tasks")
        self._task_layout = Layout(btf, "task")
        self._roles = {role: self._enumerator(f"ROLE_{role.name}") for role in Role}
        self._phases = {phase: self._enumerator(f"POLICY_{phase.name}") for phase in Phase}
        self._hints = HintTable(obj.map("hints"), Layout(btf, "hint"), self._phases)
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
        self._hint_lifetime_ns = settings.hint_lifetime_ns

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
        self._change(tenants=int(bool(cgroups)))
        self._raise("generation")

    def counters(self) -> dict[str, int]:
        """Return the sums over all CPUs of what ``struct counters`` counts."""
        values = self._counters.lookup_percpu(_ONLY) or []
        # A task may join on one CPU and leave on another: only the sum, which wraps, has a meaning.
        return {
            name: sum(self._counter_layout.integer(value, name) for value in values) % (1 << 64)
            for name in self._counter_layout.places
        }

    def tenant_use(self, tenants: Iterable[int] = range(MAX_TENANTS)) -> dict[int, Use]:
        """Return what each of these tenants got; those that never got anything are left out."""
        result = {}
        epoch = self._settings_layout.integer(self._settings_now(), "epoch")
        recent = (epoch, (epoch - 1) % (1 << 32))
        for index in tenants:
            cpus = self._use.lookup_percpu(index.to_bytes(4, "little")) or []
            run = sum(self._use_layout.integer(cpu, "run_ns") for cpu in cpus)
            wait = sum(self._use_layout.integer(cpu, "wait_ns") for cpu in cpus)
            waits = (
                self._use_layout.integer(cpu, "longest_wait_ns", slot, 8)
                for cpu in cpus
                for slot in (0, 1)
                if self._use_layout.integer(cpu, "epochs", slot, 4) in recent
            )
            longest = max(waits, default=0)
            if run or wait:
                result[index] = Use(run / 1e9, wait / 1e9, longest / 1e9)
        return result

    def set_hints(self, hints: Mapping[int, Hint]) -> None:
        """Say what was found out about processes, by their ids; hints of before for others are taken back.

        To be repeated: each holds for ``hint_lifetime_ms`` only.
        """
        if self._hints.write(hints, time.monotonic_ns(), self._hint_lifetime_ns):
            self._raise("hint_generation")

    def drain(self) -> dict[int, Activity]:
        """Begin a new epoch, and return what processes did in the one that ended, by their ids."""
        ended = self._raise("epoch") - 1
        table = self._activity[ended & 1]
        return {int.from_bytes(pid, "little"): self._activity_of(data) for pid, data in table.drain()}

    def gpu_missing(self) -> Missing:
        """Return what zerneld's probes do not tell now of threads and GPUs, and why."""
        if self.gpu_unshared is not None:
            return Missing(self.gpu_unshared, self.gpu_unshared)
        return missing(self._probes)

    def task(self, thread: int) -> Task | None:
        """Return what is remembered of a thread; None for one that is gone, or has another scheduler."""
        try:
            descriptor = os.pidfd_open(thread, _PIDFD_THREAD)
        except OSError:
            return None
        try:
            data = self._tasks.lookup(descriptor.to_bytes(4, "little"))
        finally:
            os.close(descriptor)
        if data is None:
            return None
        place, role = self._task_layout, self._task_layout.integer(data, "role")
        fresh = place.integer(data, "hint_until") > time.monotonic_ns()
        phase, node = place.integer(data, "phase"), place.integer(data, "node")
        return Task(
            role=next(name for name, value in self._roles.items() if value == role),
            policy=next(row for row in DEFAULTS if self._enumerator(row) == place.integer(data, "policy")),
            phase=next(name for name, value in self._phases.items() if value == phase) if fresh else None,
            node=node if fresh and node < 1 << 31 else None,
            **{
                name: place.integer(data, name)
                for name in ("tenant", "cgroup", "run_avg_ns", "sleep_avg_ns", "io_avg_ns")
            },
        )

    def _activity_of(self, data: bytes) -> Activity:
        # Ten times a second for each process that does something: by place, not by name.
        values: list[Any] = list(self._read_activity(data))
        for place in _OPTIONAL:
            values[place] = values[place] or None
        bits = values[_ROLES]
        if bits not in self._role_sets:
            self._role_sets[bits] = frozenset(role for role, n in self._roles.items() if bits >> n & 1)
        values[_ROLES] = self._role_sets[bits]
        return Activity(*values)

    def _settings_now(self) -> bytes:
        return self._settings.lookup(_ONLY) or bytes(self._settings.value_size)

    def _raise(self, member: str) -> int:
        """Add 1 to one of the settings and return it."""
        value = (self._settings_layout.integer(self._settings_now(), member) + 1) % (1 << 32)
        self._change(**{member: value})
        return value

    def delays(self) -> dict[Role, Delay]:
        """Return the delays of each role."""
        cpus = self._delays.lookup_percpu(_ONLY) or []
        roles = self._enumerator("NR_ROLES")
        count = self._delay_layout.places["buckets"][1] // 8 // roles
        result = {}
        for role in Role:
            index = self._roles[role]
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
        data = bytearray(self._settings_now())
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
