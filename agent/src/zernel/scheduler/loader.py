# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads bpf/sched.bpf.c, attaches it, and reads what it tells.

The contract with the BPF side is the names of its constants, maps and struct members: their places come
from the object's own type information, so nothing is written down twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from zernel.bpf import BpfObject, Btf, Link, object_path
from zernel.errors import ZernelError, fail
from zernel.gpu import activity
from zernel.scheduler import kernel, support, topology
from zernel.scheduler.config import Config
from zernel.scheduler.maps import Layout, SchedulerMaps, Settings, fill
from zernel.scheduler.topology import Topology

log = logging.getLogger("zernel.scheduler")

OPS_NAME = "zernel"
"""The scheduler's name in /sys/kernel/sched_ext/root/ops."""

# Constant of sched.bpf.c: the kernel's enumerator that it is set to.
_KERNEL_CONSTANTS = {
    "scx_dsq_local": "SCX_DSQ_LOCAL",
    "scx_enq_wakeup": "SCX_ENQ_WAKEUP",
    "scx_kick_idle": "SCX_KICK_IDLE",
    "scx_kick_preempt": "SCX_KICK_PREEMPT",
    "scx_pick_idle_core": "SCX_PICK_IDLE_CORE",
}
_ENABLE_TIMEOUT_S = 5.0
_DISABLE_TIMEOUT_S = 5.0
_HOTPLUG_ATTEMPTS = 5


class LoadedScheduler:
    """The scheduler in the kernel. Closing it returns the host to the kernel's own scheduler."""

    def __init__(
        self, obj: BpfObject, maps: SchedulerMaps, link: Link, load_seconds: float, attach_seconds: float
    ) -> None:
        self._object = obj
        self.maps = maps
        self._link = link
        self._record = Layout(obj.btf, "exit_record")
        self._futexes: Link | None = None
        # Scrapes read the counters from other threads; what they read must not be freed meanwhile.
        self._lock = threading.Lock()
        self._last: dict[str, int] = {}
        self.load_seconds = load_seconds
        self.attach_seconds = attach_seconds

    @classmethod
    def load(cls, config: Config, host: Topology, btf: Btf, path: Path | None = None) -> Self:
        """Load the object ``path`` (default: where it is installed) and hand the CPUs to it.

        :param btf: the running kernel's type information.

        :raises ZernelError: if the kernel refuses it, or ends it at once.
        """
        sequence = kernel.hotplug_sequence()
        obj = BpfObject.open(path or object_path("sched"))
        try:
            _configure(obj, config, host, btf, sequence)
            unshared = activity.share(obj)
            if unshared is not None:
                log.warning("what zerneld's probes see of GPUs is not known here: %s", unshared)
            started = time.monotonic()
            obj.load()
            loaded = time.monotonic()
            maps = _fill(obj, config, host)
            maps.gpu_unshared = unshared
            link = obj.attach_struct_ops("zernel_ops")
            self = cls(obj, maps, link, loaded - started, time.monotonic() - loaded)
            self._wait_until_enabled()
            self._watch_futexes(config)
        except BaseException:
            obj.close()
            raise
        return self

    def counters(self) -> dict[str, int]:
        """Return the sums over all CPUs of what ``struct counters`` of sched.bpf.c counts.

        Once the scheduler is closed, its last values.
        """
        with self._lock:
            if self._link.closed:
                return self._last
            self._last = self.maps.counters()
            return self._last

    def apply(self, config: Config) -> None:
        """Make other settings hold at once: those of which :func:`replaces` says that they can."""
        self.maps.apply(Settings.of(config))
        self._watch_futexes(config)

    def enabled(self) -> bool:
        """Tell whether it is attached and the kernel has not ended it."""
        with self._lock:
            return not self._link.closed and self.exit() is None

    def _watch_futexes(self, config: Config) -> None:
        wanted = config.phase_detection.nccl_detection_enabled
        if wanted and self._futexes is None:
            try:
                self._futexes = self._object.program("on_futex").attach()
            except ZernelError as error:
                log.warning("futex waits are not seen, nor collectives by them: %s", error)
        elif not wanted and self._futexes is not None:
            self._futexes.close()
            self._futexes = None
        self.maps.futex_signal = self._futexes is not None

    def exit(self) -> kernel.Exit | None:
        """Return why the kernel ended the scheduler, or None while it runs; not once it is closed."""
        record = self._object.bss("exit_record")
        if not self._record.integer(record, "kind"):
            return None
        # The kind is written last: only a copy made after seeing it is whole.
        record = self._object.bss("exit_record")
        code = self._record.integer(record, "code")
        texts = {name: self._record.text(record, name) for name in ("reason", "message", "dump")}
        return kernel.Exit(self._record.integer(record, "kind"), code, **texts)

    def close(self) -> None:
        """Detach and wait until the kernel's own scheduler runs every task again."""
        if self._link.closed:
            return
        self.counters()
        with self._lock:
            self._link.close()
            _wait(lambda: kernel.state() in ("disabled", None), _DISABLE_TIMEOUT_S)
            self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_enabled(self) -> None:
        """A refusal in init() or during the switch comes after attaching, as an exit.

        A stall is no refusal: the kernel took the scheduler, which may have let a task wait already.
        """
        _wait(lambda: kernel.state() == "enabled" or self.exit() is not None, _ENABLE_TIMEOUT_S)
        ended = self.exit()
        if ended is None and kernel.state() == "enabled":
            return
        if ended is not None and ended.stalled:
            return
        if ended is not None and ended.restart:
            raise _Superseded
        raise fail(
            "scheduler-refused",
            "The kernel did not take the scheduler",
            subject="scheduler",
            explanation=ended.sentence() if ended else f"its state is '{kernel.state()}'",
            suggestion="'journalctl -k -g sched_ext' shows what the kernel says about it",
        )


def _configure(obj: BpfObject, config: Config, host: Topology, btf: Btf, hotplug_sequence: int) -> None:
    for constant, enumerator in _KERNEL_CONSTANTS.items():
        value = btf.enum_value(enumerator)
        if value is None:
            raise fail(
                "kernel-constant",
                f"This kernel's sched_ext has no {enumerator}",
                subject="scheduler",
                explanation="The scheduler knows sched_ext as of Linux 6.12 to 7.3",
                suggestion="Boot one of these kernels, or upgrade zernel-agent",
            )
        obj.set_rodata(constant, value)
    obj.set_rodata("nr_cpus", host.nr_cpus)
    obj.set_rodata("nr_nodes", len(host.nodes))
    obj.set_rodata("smt", host.smt)
    obj.map("cpus").set_max_entries(host.nr_cpus)
    obj.map("nodes").set_max_entries(len(host.nodes))
    obj.map("queues").set_max_entries(len(host.nodes) * obj.map("queues").max_entries)
    for table in ("hints", "activity_0", "activity_1"):
        obj.map(table).set_max_entries(config.general.max_tracked_tasks)
    ops = ("zernel_ops", "sched_ext_ops")
    obj.set_struct_ops_member(*ops, "timeout_ms", config.scheduler.watchdog_timeout_ms)
    # The kernel refuses the scheduler if a CPU came or went since: its map of CPUs would be wrong.
    obj.set_struct_ops_member(*ops, "hotplug_seq", hotplug_sequence)
    # 7.1 has SCX_ENQ_IMMED, which replaces the operation cpu_release; 7.2 warns about the latter.
    if immediate := btf.enum_value("SCX_ENQ_IMMED"):
        obj.set_rodata("scx_enq_immed", immediate)
        obj.set_struct_ops_member(*ops, "cpu_release", 0)


def _fill(obj: BpfObject, config: Config, host: Topology) -> SchedulerMaps:
    """Tell the scheduler its settings, each CPU's node and each node's number; all else starts at zero."""
    fill(obj.map("nodes"), Layout(obj.btf, "node"), "numa_id", dict(enumerate(host.nodes)))
    fill(obj.map("cpus"), Layout(obj.btf, "cpu"), "node", dict(enumerate(host.node_of_cpu)))
    maps = SchedulerMaps(obj)
    maps.apply(Settings.of(config))
    return maps


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


def replaces(old: Config, new: Config) -> bool:
    """Tell whether a change of settings needs another load, and cannot just be applied."""
    return (old.general.max_tracked_tasks, old.scheduler.watchdog_timeout_ms) != (
        new.general.max_tracked_tasks,
        new.scheduler.watchdog_timeout_ms,
    )


def load_checked(config: Config) -> LoadedScheduler:
    """Check the host, then load the scheduler on it.

    :raises ZernelError: with every reason why this host cannot run it.
    """
    try:
        btf = Btf.of_kernel()
    except ZernelError:
        btf = None  # check() tells it, among the other reasons
    problems = support.check(btf=btf)
    if problems or btf is None:
        raise ZernelError(*problems)
    for _ in range(_HOTPLUG_ATTEMPTS):
        try:
            return LoadedScheduler.load(config, topology.read(), btf)
        except _Superseded:
            _wait(lambda: kernel.state() == "disabled", _DISABLE_TIMEOUT_S)
    raise fail(
        "scheduler-hotplug",
        "CPUs keep coming and going while the scheduler is loaded",
        subject="scheduler",
        explanation=f"{_HOTPLUG_ATTEMPTS} attempts were ended by it",
        suggestion="Start the service again once the CPUs that the host uses are settled",
    )


class _Superseded(Exception):
    """A CPU came or went between reading the topology and enabling: the map of CPUs is wrong."""
