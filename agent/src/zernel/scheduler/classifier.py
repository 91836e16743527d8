# SPDX-License-Identifier: GPL-3.0-or-later
"""Classifies processes: what the BPF side measured of them → signals → phase → hints for the BPF side.

A process is its pid and its start time: another one with the same pid begins anew. Only processes that did
something since the last evaluation, or hold a GPU, are looked at; one that sleeps keeps its phase until its
hint would be stale, and is then forgotten.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from zernel.gpu.activity import Missing
from zernel.scheduler import gpu, processes
from zernel.scheduler.config import Config
from zernel.scheduler.maps import Activity, Hint
from zernel.scheduler.phases import RECENT_S, Evidence, Rules, Signals, Stability
from zernel.scheduler.policy import Phase, Role
from zernel.scheduler.tables import Numa, PhaseDetection
from zernel.scheduler.tenants import cgroup_of
from zernel.scheduler.topology import Topology

PROC_READS = 16
"""Processes per evaluation that are looked up in /proc: a fork storm must not keep the daemon busy."""

_RECENT_NS = int(RECENT_S * 1e9)


class Maps(Protocol):
    """What is asked of zernel.scheduler.maps."""

    @property
    def futex_signal(self) -> bool:
        """Whether futex waits are measured."""

    def gpu_missing(self) -> Missing:
        """Return what zerneld does not tell of GPU syncs, launches and NCCL calls, and why."""

    def drain(self) -> Mapping[int, Activity]:
        """Return pid → what it did since the last call."""

    def set_hints(self, hints: Mapping[int, Hint]) -> None:
        """Make these all the hints there are, as of now."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of a configuration that counts here."""

    detection: PhaseDetection
    numa: Numa
    short_burst_ns: int
    stale_ns: int
    max_processes: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a settings file asks for."""
        return cls(
            detection=config.phase_detection,
            numa=config.numa,
            short_burst_ns=config.scheduler.short_burst_us * 1000,
            stale_ns=config.safety.hint_lifetime_ms * 1_000_000,
            max_processes=config.general.max_tracked_tasks,
        )


class Process:
    """What is known of one process."""

    __slots__ = (
        "cgroup",
        "evaluated",
        "is_program",
        "last_cpu",
        "launch_ns",
        "looked_up",
        "memory_node",
        "nccl_ns",
        "pid",
        "roles",
        "run_ns",
        "seen_ns",
        "signals",
        "stability",
        "start_ticks",
        "sync_ns",
        "tenant",
        "uses_gpu",
    )

    def __init__(self, pid: int, start_ticks: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.stability = Stability()
        self.signals = Signals()
        self.seen_ns = 0
        self.sync_ns = self.launch_ns = self.nccl_ns = 0
        self.roles: frozenset[Role] = frozenset()
        self.run_ns = self.tenant = 0
        self.cgroup: str | None = None
        self.last_cpu: int | None = None
        self.memory_node: int | None = None
        self.uses_gpu = self.evaluated = self.looked_up = self.is_program = False

    @property
    def is_ml(self) -> bool:
        """Tell whether it counts as machine learning: it uses a GPU, or is in one of the phases."""
        return self.uses_gpu or self.stability.phase is not Phase.UNKNOWN


@dataclass(frozen=True, slots=True)
class Verdict:
    """One process, for people: its phase, the signals behind it, and what follows.

    ``evidence`` is empty in a list of many; ``node`` is the kernel's number; ``run_ns`` is of the last epoch
    in which it ran.
    """

    pid: int
    start_ticks: int
    phase: Phase
    candidate: Phase
    streak: int
    signals: Signals
    roles: frozenset[Role]
    tenant: int
    node: int | None
    node_from: str | None
    last_cpu: int | None
    run_ns: int
    idle_s: float
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures for metrics. ``in_phase`` and ``seconds`` are of processes of machine learning."""

    processes: int
    ml: int
    in_phase: dict[Phase, int]
    seconds: dict[Phase, float]
    changes: dict[tuple[Phase, Phase], int]
    untracked: int


class Classifier:
    """All processes that did something lately. One thread evaluates; any thread may ask for verdicts."""

    def __init__(self, settings: Settings, topology: Topology, root: Path = Path("/")) -> None:
        self._lock = threading.Lock()
        self._root = root
        self._processes: OrderedDict[int, Process] = OrderedDict()
        self._hints: dict[int, Hint] = {}
        self._hints_changed = True
        self._written_ns = 0
        self._evaluated_ns: int | None = None
        self._in_phase: Counter[Phase] = Counter()
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._changes: Counter[tuple[Phase, Phase]] = Counter()
        self._untracked = 0
        self._gpu = gpu.Reading(unavailable="NVML was not asked yet")
        # Of the processes that hold GPUs: when each started, and its cgroup.
        self._identities: dict[int, int] = {}
        self._holders_cgroups: dict[int, str | None] = {}
        self._node_of_gpu: dict[int, int] = {}
        self._node_of_cgroup: dict[str, int | None] = {}
        self._futex = False
        self._probes = Missing("not asked yet", "not asked yet")
        self.configure(settings, topology)

    def configure(self, settings: Settings, topology: Topology) -> None:
        """Take over settings, and the host's nodes; what is known of processes stays."""
        with self._lock:
            self._settings = settings
            self._topology = topology
            self._rules = Rules(settings.detection, settings.short_burst_ns)
            self._hints_changed = True
            self._place_gpus()

    def loaded(self) -> None:
        """Note that the scheduler was loaded anew: it knows no hints yet, and nobody was looked at before."""
        with self._lock:
            self._hints_changed = True
            self._evaluated_ns = None

    def see_gpus(self, reading: gpu.Reading) -> None:
        """Take in what NVML said. A pid in it means the process that has it now."""
        ticks = {pid: processes.start_ticks(pid, self._root) for pid in reading.holders}
        cgroups = {pid: cgroup_of(pid, self._root) for pid in reading.holders}
        with self._lock:
            self._gpu = reading
            self._identities = {pid: start for pid, start in ticks.items() if start is not None}
            self._holders_cgroups = cgroups
            self._place_gpus()

    def evaluate(self, maps: Maps, now_ns: int) -> None:
        """Classify what did something since the last call, and tell the BPF side.

        :param now_ns: CLOCK_MONOTONIC.
        """
        drained = maps.drain()
        with self._lock:
            self._futex, self._probes = maps.futex_signal, maps.gpu_missing()
            self._account(now_ns)
            reads = PROC_READS
            for pid, activity in drained.items():
                process = self._of(pid, activity.start_ticks)
                if process is None:
                    continue
                if reads and self._looks_up(process, activity):
                    reads -= 1
                    process.looked_up = True
                    process.is_program = processes.is_program(pid, self._root)
                    process.memory_node = processes.memory_node(pid, self._root)
                    process.cgroup = cgroup_of(pid, self._root)
                self._judge(process, activity, now_ns)
            for pid, start in self._identities.items():
                if pid not in drained and (process := self._of(pid, start)) is not None:
                    self._judge(process, None, now_ns)
            self._forget(now_ns)
            hints = self._due_hints(now_ns)
        if hints is not None:
            maps.set_hints(hints)

    def verdicts(self, now_ns: int, limit: int) -> list[Verdict]:
        """Return those of machine learning and then the others, each by CPU time used, at most ``limit``."""
        with self._lock:
            top = sorted(self._processes.values(), key=lambda one: (not one.is_ml, -one.run_ns))[:limit]
            return [self._verdict(process, now_ns) for process in top]

    def verdict(self, pid: int, now_ns: int) -> Verdict | None:
        """Return the verdict on a process with its evidence; None if it did nothing lately."""
        with self._lock:
            process = self._processes.get(pid)
            return None if process is None else self._verdict(process, now_ns, evidence=True)

    def totals(self) -> Totals:
        """Return the figures for metrics."""
        with self._lock:
            counts = {phase: self._in_phase[phase] for phase in Phase}
            return Totals(
                len(self._processes),
                sum(counts.values()),
                counts,
                dict(self._seconds),
                dict(self._changes),
                self._untracked,
            )

    def absent(self) -> dict[str, str | None]:
        """Return each signal and, where it is absent on this host, why."""
        with self._lock:
            nccl, futex = self._probes.libnccl, None
            if not self._futex:
                futex = "the tracepoint of futex system calls cannot be used"
            if not self._settings.detection.nccl_detection_enabled:
                nccl = futex = "nccl_detection_enabled is false"
            return {
                "io_wait_fraction": None,
                "cpu_burst_ns": None,
                "gpu_utilization": self._gpu.unavailable,
                "since_gpu_sync_s": self._probes.libcuda,
                "nccl_active": nccl,
                "futex_waits": futex,
            }

    def _of(self, pid: int, start_ticks: int) -> Process | None:
        """Return the process, as the one seen last; None where there are too many."""
        process = self._processes.get(pid)
        if process is not None and process.start_ticks == start_ticks:
            self._processes.move_to_end(pid)
            return process
        if process is not None:
            self._drop(process)
        elif len(self._processes) >= self._settings.max_processes:
            self._untracked += 1
            return None
        process = self._processes[pid] = Process(pid, start_ticks)
        return process

    def _drop(self, process: Process) -> None:
        del self._processes[process.pid]
        if process.is_ml:
            self._in_phase[process.stability.phase] -= 1
        if self._hints.pop(process.pid, None) is not None:
            self._hints_changed = True

    def _judge(self, process: Process, activity: Activity | None, now_ns: int) -> None:
        before, was_ml = process.stability.phase, process.is_ml
        if activity is not None:
            process.seen_ns = now_ns
            process.run_ns = activity.run_ns
            process.tenant, process.roles, process.last_cpu = activity.tenant, activity.roles, activity.cpu
            process.sync_ns = max(process.sync_ns, activity.gpu_sync_ns or 0)
            process.launch_ns = max(process.launch_ns, activity.gpu_launch_ns or 0)
            process.nccl_ns = max(process.nccl_ns, activity.nccl_ns or 0)
        elif not process.seen_ns:
            process.seen_ns = now_ns
        process.evaluated = True
        process.signals = self._signals(process, activity, now_ns)
        seen = self._rules.classify(process.signals)
        holds = self._identities.get(process.pid) == process.start_ticks
        process.uses_gpu = holds or bool(process.sync_ns or process.launch_ns or process.nccl_ns)
        if process.stability.observe(seen, self._settings.detection.phase_stability_count):
            self._changes[before, process.stability.phase] += 1
        if was_ml:
            self._in_phase[before] -= 1
        if process.is_ml:
            self._in_phase[process.stability.phase] += 1
        self._hint(process)

    def _signals(self, process: Process, activity: Activity | None, now_ns: int) -> Signals:
        io_wait = None
        burst = 0
        futex = 0 if self._futex else None
        if activity is not None:
            lived = activity.run_ns + activity.sleep_ns
            io_wait = min(1.0, activity.io_wait_ns / lived) if lived > 0 else None
            # A burst that goes on since the last epoch has ended in none: it lasted as long as was run.
            burst = activity.burst_ns // activity.bursts if activity.bursts else activity.run_ns
            futex = activity.futexes if self._futex else None
        nccl = None
        if (
            self._probes.libnccl is None
            and self._settings.detection.nccl_detection_enabled
            and process.nccl_ns
        ):
            nccl = now_ns - process.nccl_ns <= _RECENT_NS
        since_sync = None
        if self._probes.libcuda is None and process.sync_ns:
            # One that came after this evaluation began is of just now.
            since_sync = max(0, now_ns - process.sync_ns) / 1e9
        return Signals(io_wait, burst, self._utilization(process), since_sync, nccl, futex)

    def _utilization(self, process: Process) -> float | None:
        """Return percent of the GPU that it uses: 0 for a program that NVML, which works, does not name."""
        if self._gpu.unavailable is not None:
            return None
        if process.pid not in self._gpu.holders:
            # A kernel thread that waits for storage loads no data of its own.
            return 0.0 if process.is_program else None
        if self._identities.get(process.pid) != process.start_ticks:
            return None  # NVML means another process that had, or has, this pid
        return self._gpu.utilization.get(process.pid)

    def _hint(self, process: Process) -> None:
        node, _ = self._node(process)
        phase = process.stability.phase
        if phase is Phase.GPU_COMPUTE and self._probes.libcuda is not None:
            # Nothing tells the thread apart that launches the GPU's work: so none is put behind.
            phase = Phase.UNKNOWN
        hint = None
        if phase is not Phase.UNKNOWN or node is not None:
            hint = Hint(process.start_ticks, phase, node)
        if self._hints.get(process.pid) != hint:
            self._hints_changed = True
            if hint is None:
                del self._hints[process.pid]
            else:
                self._hints[process.pid] = hint

    def _due_hints(self, now_ns: int) -> dict[int, Hint] | None:
        """Return the hints when they must be written: they changed, or are halfway to being stale."""
        old = now_ns - self._written_ns >= self._settings.stale_ns // 2
        if not self._hints_changed and not (old and self._hints):
            return None
        self._hints_changed, self._written_ns = False, now_ns
        return dict(self._hints)

    def _node(self, process: Process) -> tuple[int | None, str | None]:
        """Return the index of the node that a process belongs to, and where that is from."""
        numa = self._settings.numa
        if numa.enabled and numa.gpu_affinity:
            if self._identities.get(process.pid) == process.start_ticks:
                node = self._node_of(self._gpu.holders.get(process.pid, frozenset()))
                if node is not None:
                    return node, "gpu"
            # Its workers hold no GPU themselves: what runs beside it in its cgroup is part of the job.
            node = self._node_of_cgroup.get(process.cgroup) if process.cgroup else None
            if node is not None:
                return node, "gpu of its cgroup"
        if numa.enabled and numa.memory_affinity:
            node = self._topology.index_of(process.memory_node)
            if node is not None:
                return node, "memory"
        return None, None

    def _node_of(self, gpus: frozenset[int]) -> int | None:
        """Return the node of all the GPUs, None where they have several or one is not known."""
        nodes = {self._node_of_gpu.get(index) for index in gpus}
        return nodes.pop() if len(nodes) == 1 else None

    def _place_gpus(self) -> None:
        """Work out the node of each GPU, and of each cgroup whose processes hold some."""
        self._node_of_gpu = {}
        for one in self._gpu.gpus:
            index = self._topology.index_of(one.node)
            if index is not None:
                self._node_of_gpu[one.index] = index
        gpus_of: dict[str, frozenset[int]] = {}
        for pid, cgroup in self._holders_cgroups.items():
            # What is in the root's cgroup has nothing in common.
            if cgroup is not None and cgroup != "/":
                gpus_of[cgroup] = gpus_of.get(cgroup, frozenset()) | self._gpu.holders[pid]
        self._node_of_cgroup = {cgroup: self._node_of(gpus) for cgroup, gpus in gpus_of.items()}

    def _looks_up(self, process: Process, activity: Activity) -> bool:
        """Tell whether to look in /proc what and where it is: once, and only where something follows."""
        if process.looked_up:
            return False
        several = len(self._topology.nodes) > 1 and self._settings.numa.enabled
        if several and process.evaluated:  # not for what lives only a moment
            return True
        waited = self._settings.detection.io_wait_threshold * (activity.run_ns + activity.sleep_ns)
        return self._gpu.unavailable is None and activity.io_wait_ns > waited

    def _account(self, now_ns: int) -> None:
        """Add the time since the last evaluation to the phases."""
        if self._evaluated_ns is not None:
            seconds = max(0, now_ns - self._evaluated_ns) / 1e9
            for phase, number in self._in_phase.items():
                self._seconds[phase] += number * seconds
        self._evaluated_ns = now_ns

    def _forget(self, now_ns: int) -> None:
        while self._processes:
            process = next(iter(self._processes.values()))
            holds = self._identities.get(process.pid) == process.start_ticks
            if holds or now_ns - process.seen_ns <= self._settings.stale_ns:
                return
            self._drop(process)

    def _verdict(self, process: Process, now_ns: int, *, evidence: bool = False) -> Verdict:
        index, node_from = self._node(process)
        return Verdict(
            pid=process.pid,
            start_ticks=process.start_ticks,
            phase=process.stability.phase,
            candidate=process.stability.candidate,
            streak=process.stability.streak,
            signals=process.signals,
            roles=process.roles,
            tenant=process.tenant,
            node=None if index is None else self._topology.nodes[index],
            node_from=node_from,
            last_cpu=process.last_cpu,
            run_ns=process.run_ns,
            idle_s=max(0, now_ns - process.seen_ns) / 1e9,
            evidence=tuple(self._rules.evidence(process.signals)) if evidence else (),
        )
