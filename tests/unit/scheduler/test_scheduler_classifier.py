# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a process did to its phase and its hint, with a fake of the BPF side's maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.gpu.activity import Missing
from zernel.scheduler import gpu, processes
from zernel.scheduler.classifier import PROC_READS, Classifier, Settings
from zernel.scheduler.maps import Activity, Hint
from zernel.scheduler.policy import Phase
from zernel.scheduler.tables import Numa, PhaseDetection
from zernel.scheduler.topology import Topology

from .fakes import MS, FakeMaps, S, activity, process

SETTINGS = Settings(PhaseDetection(), Numa(), short_burst_ns=MS, stale_ns=5 * S, max_processes=1024)
TWO_NODES = Topology(4, (0, 1), (0, 0, 1, 1), smt=False)
LOADING = activity(io_wait_ns=60 * MS)
OPTIMIZING = activity(bursts=1, burst_ns=4 * MS, run_ns=4 * MS)
NO_GPUS = gpu.Reading()


class Host:
    """A classifier with fake maps, a fake /proc and a clock that each evaluation moves by 100 ms."""

    def __init__(self, root: Path, settings: Settings = SETTINGS, topology: Topology = TWO_NODES) -> None:
        self.root = root
        for pid in range(1, 9):
            process(root, pid)
        self.maps = FakeMaps()
        self.now = 1000 * S
        self.classifier = Classifier(settings, topology, root)
        self.classifier.see_gpus(NO_GPUS)

    def evaluate(self, activity: dict[int, Activity] | None = None, times: int = 1) -> None:
        for _ in range(times):
            self.maps.activity = dict(activity or {})
            self.now += 100 * MS
            self.classifier.evaluate(self.maps, self.now)

    def phase(self, pid: int) -> Phase | None:
        verdict = self.classifier.verdict(pid, self.now)
        return verdict.phase if verdict else None

    def gpus(
        self, holders: dict[int, set[int]], used: dict[int, float], nodes: tuple[int, ...] = (0, 1)
    ) -> None:
        known = tuple(gpu.Gpu(index, f"GPU-{index}", None, node) for index, node in enumerate(nodes))
        held = {pid: frozenset(on) for pid, on in holders.items()}
        self.classifier.see_gpus(gpu.Reading(known, held, used))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_process_changes_its_phase_after_three_evaluations_and_the_hint_follows(host: Host) -> None:
    host.evaluate({7: LOADING}, times=2)
    assert (host.phase(7), host.maps.hints) == (Phase.UNKNOWN, {})
    host.evaluate({7: LOADING})
    assert host.phase(7) is Phase.DATA_LOADING
    assert host.maps.hints == {7: Hint(1, Phase.DATA_LOADING, None)}
    assert host.classifier.totals().changes == {(Phase.UNKNOWN, Phase.DATA_LOADING): 1}


def test_a_gpu_process_that_does_not_run_is_in_gpu_compute(host: Host) -> None:
    process(host.root, 7)
    host.gpus({7: {0}}, {7: 95.0})
    host.evaluate(times=3)
    assert host.phase(7) is Phase.GPU_COMPUTE
    assert host.maps.hints[7].phase is Phase.GPU_COMPUTE
    host.evaluate({7: activity(run_ns=50 * MS, burst_ns=50 * MS)}, times=3)
    assert host.phase(7) is Phase.UNKNOWN


def test_a_kernel_thread_that_waits_for_storage_loads_no_data(host: Host) -> None:
    process(host.root, 7, flags=0x0420_8040)  # of a kworker
    host.evaluate({7: LOADING, 8: LOADING, 99: LOADING}, times=5)
    assert host.phase(8) is Phase.DATA_LOADING
    assert host.phase(7) is Phase.UNKNOWN
    # Gone before it could be looked at
    assert host.phase(99) is Phase.UNKNOWN


def test_a_sync_of_an_earlier_epoch_counts_for_a_second(host: Host) -> None:
    synced = dataclasses.replace(OPTIMIZING, gpu_sync_ns=host.now)
    host.evaluate({7: synced})
    host.evaluate({7: OPTIMIZING}, times=5)
    assert host.phase(7) is Phase.OPTIMIZER_STEP
    host.evaluate({7: OPTIMIZING}, times=10)
    assert host.phase(7) is Phase.UNKNOWN


def test_a_sync_while_the_evaluation_goes_on_is_of_just_now(host: Host) -> None:
    for _ in range(3):
        later = host.now + 100 * MS + MS
        host.evaluate({7: dataclasses.replace(OPTIMIZING, gpu_sync_ns=later)})
    assert host.phase(7) is Phase.OPTIMIZER_STEP


def test_nccl_is_told_apart_where_it_is_switched_on(tmp_path: Path) -> None:
    collective = activity(futexes=3, nccl_ns=1000 * S)
    for enabled in (False, True):
        detection = PhaseDetection(nccl_detection_enabled=enabled)
        host = Host(tmp_path, dataclasses.replace(SETTINGS, detection=detection))
        host.evaluate({7: collective}, times=3)
        assert host.phase(7) is (Phase.NCCL_COLLECTIVE if enabled else Phase.UNKNOWN)
        assert (host.classifier.absent()["nccl_active"] is None) == enabled


def test_nobody_is_put_behind_where_nothing_tells_which_thread_launches(host: Host) -> None:
    host.maps.missing = Missing(libcuda="no probe is on it")
    process(host.root, 7)
    host.gpus({7: {0}}, {7: 95.0})
    host.evaluate(times=3)
    assert host.phase(7) is Phase.GPU_COMPUTE
    assert host.maps.hints[7].phase is Phase.UNKNOWN


@pytest.mark.parametrize("signal", ["libcuda", "libnccl", "futex", "nvml"])
def test_a_signal_that_is_absent_decides_nothing_and_says_why(tmp_path: Path, signal: str) -> None:
    detection = PhaseDetection(nccl_detection_enabled=True)
    host = Host(tmp_path, dataclasses.replace(SETTINGS, detection=detection))
    doing = {
        1: dataclasses.replace(OPTIMIZING, gpu_sync_ns=host.now),
        2: activity(futexes=3, nccl_ns=host.now),
        3: LOADING,
    }
    if signal == "nvml":
        host.classifier.see_gpus(gpu.Reading(unavailable="no driver"))
    if signal in ("libcuda", "libnccl"):
        host.maps.missing = Missing(**{signal: "no probe is on it"})
    host.maps.futex_signal = signal != "futex"
    host.evaluate(doing, times=3)
    unknown = {pid for pid in doing if host.phase(pid) is Phase.UNKNOWN}
    assert unknown == {"libcuda": {1}, "libnccl": {2}, "futex": {2}, "nvml": {3}}[signal]
    absent = {name for name, why in host.classifier.absent().items() if why}
    assert (
        absent
        == {
            "libcuda": {"since_gpu_sync_s"},
            "libnccl": {"nccl_active"},
            "futex": {"futex_waits"},
            "nvml": {"gpu_utilization"},
        }[signal]
    )


def test_a_burst_that_goes_on_counts_as_long_as_it_was_seen(host: Host) -> None:
    running = activity(run_ns=100 * MS, sleep_ns=0, bursts=0, burst_ns=0, gpu_sync_ns=host.now)
    host.evaluate({7: running}, times=3)
    assert host.phase(7) is Phase.UNKNOWN
    verdict = host.classifier.verdict(7, host.now)
    assert verdict is not None
    assert verdict.signals.cpu_burst_ns == 100 * MS


def test_another_process_with_the_same_pid_begins_anew(host: Host) -> None:
    host.evaluate({7: LOADING}, times=3)
    host.evaluate({7: dataclasses.replace(LOADING, start_ticks=2)})
    assert host.phase(7) is Phase.UNKNOWN
    assert host.maps.hints == {}
    assert host.classifier.totals().ml == 0


def test_what_nvml_says_of_a_pid_is_not_said_of_the_next_process_with_it(host: Host) -> None:
    process(host.root, 7, start_ticks=1)
    host.gpus({7: {0}}, {7: 95.0})
    host.evaluate({7: activity(start_ticks=2)}, times=3)
    verdict = host.classifier.verdict(7, host.now)
    assert verdict is not None
    assert (verdict.phase, verdict.signals.gpu_utilization) == (Phase.UNKNOWN, None)
    assert verdict.node is None


def test_a_process_that_sleeps_keeps_its_phase_and_is_then_forgotten(host: Host) -> None:
    host.evaluate({7: LOADING}, times=3)
    host.evaluate(times=50)
    assert host.phase(7) is Phase.DATA_LOADING
    assert 7 in host.maps.hints
    host.evaluate(times=2)
    assert host.phase(7) is None
    assert host.maps.hints == {}


def test_hints_are_written_when_they_change_and_before_they_are_stale(host: Host) -> None:
    host.evaluate({7: LOADING}, times=3)
    before = host.maps.writes
    host.evaluate({7: LOADING}, times=50)
    assert before + 1 <= host.maps.writes <= before + 3
    host.classifier.loaded()
    host.maps.hints = {}
    host.evaluate({7: LOADING})
    assert 7 in host.maps.hints


def test_without_hints_nothing_is_written(host: Host) -> None:
    host.evaluate({7: activity()}, times=100)
    assert host.maps.writes <= 1


def test_a_gpus_node_is_preferred_by_its_processes_and_those_beside_them(host: Host) -> None:
    for pid, cgroup in {1: "/a", 2: "/a", 3: "/b", 4: "/c"}.items():
        process(host.root, pid, cgroup=cgroup)
    doing = dict.fromkeys((1, 2, 3, 4), activity())
    host.evaluate(doing)
    host.gpus({1: {1}, 4: {0, 1}}, {})
    host.evaluate(doing)
    assert {pid: hint.node for pid, hint in host.maps.hints.items()} == {1: 1, 2: 1}
    found = {pid: host.classifier.verdict(pid, host.now) for pid in doing}
    assert [(one.node, one.node_from) for one in found.values() if one] == [
        (1, "gpu"),
        (1, "gpu of its cgroup"),
        (None, None),
        (None, None),
    ]


def test_memory_of_one_node_is_preferred_where_no_gpu_says_otherwise(host: Host) -> None:
    process(host.root, 1, memory="1")
    process(host.root, 2, memory="0-1")
    host.evaluate({1: activity(), 2: activity()}, times=3)
    assert host.maps.hints == {1: Hint(1, Phase.UNKNOWN, 1)}


@pytest.mark.parametrize(
    ("numa", "nodes"),
    [
        (Numa(), {1: 1, 2: 1}),
        (Numa(gpu_affinity=False), {2: 1}),
        (Numa(memory_affinity=False), {1: 1}),
        (Numa(gpu_affinity=False, memory_affinity=False), {}),
        (Numa(enabled=False), {}),
    ],
    ids=["both", "memory", "gpu", "neither", "off"],
)
def test_each_affinity_can_be_switched_off(tmp_path: Path, numa: Numa, nodes: dict[int, int]) -> None:
    """Process 1 holds a GPU of node 1; process 2 may use the memory of node 1 only."""
    host = Host(tmp_path, dataclasses.replace(SETTINGS, numa=numa))
    process(tmp_path, 2, memory="1")
    host.gpus({1: {1}}, {})
    host.evaluate({1: activity(), 2: activity()}, times=3)
    assert {pid: hint.node for pid, hint in host.maps.hints.items()} == nodes


def test_what_is_short_for_a_launch_is_a_setting(tmp_path: Path) -> None:
    phases = []
    for short_burst_ns in (MS, 3 * MS):
        host = Host(tmp_path, dataclasses.replace(SETTINGS, short_burst_ns=short_burst_ns))
        host.gpus({7: {0}}, {7: 95.0})
        host.evaluate({7: activity(burst_ns=2 * MS, run_ns=2 * MS)}, times=3)
        phases.append(host.phase(7))
    assert phases == [Phase.UNKNOWN, Phase.GPU_COMPUTE]


def test_a_fork_storm_reads_little_of_proc(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(processes, "memory_node", lambda pid, root: read.append(pid))
    storm = {pid: activity() for pid in range(1, 500)}
    host.evaluate(storm)
    assert not read
    host.evaluate(storm)
    assert len(read) == PROC_READS
    host.evaluate(storm, times=40)
    assert sorted(read) == sorted(storm)


def test_one_process_too_many_is_counted_and_runs_as_unknown(tmp_path: Path) -> None:
    host = Host(tmp_path, dataclasses.replace(SETTINGS, max_processes=2))
    host.evaluate({1: LOADING, 2: LOADING, 3: LOADING}, times=3)
    totals = host.classifier.totals()
    assert (totals.processes, totals.untracked) == (2, 3)
    assert set(host.maps.hints) == {1, 2}


def test_time_in_a_phase_adds_up(host: Host) -> None:
    process(host.root, 1)
    host.gpus({1: {0}}, {1: 99.0})
    host.evaluate({2: LOADING}, times=11)
    seconds = host.classifier.totals().seconds
    assert seconds[Phase.GPU_COMPUTE] == pytest.approx(0.8)
    assert seconds[Phase.DATA_LOADING] == pytest.approx(0.8)
    assert seconds[Phase.UNKNOWN] == pytest.approx(0.2)


def test_time_without_a_scheduler_is_no_time_in_a_phase(host: Host) -> None:
    host.evaluate({7: LOADING}, times=6)
    before = host.classifier.totals().seconds[Phase.DATA_LOADING]
    host.now += 3600 * S
    host.classifier.loaded()
    host.evaluate({7: LOADING}, times=3)
    assert host.classifier.totals().seconds[Phase.DATA_LOADING] == pytest.approx(before + 0.2)


def test_new_thresholds_count_at_once_and_phases_stay(host: Host) -> None:
    host.evaluate({7: LOADING}, times=3)
    detection = PhaseDetection(io_wait_threshold=0.9, phase_stability_count=1)
    host.classifier.configure(dataclasses.replace(SETTINGS, detection=detection), TWO_NODES)
    assert host.phase(7) is Phase.DATA_LOADING
    host.evaluate({7: LOADING})
    assert host.phase(7) is Phase.UNKNOWN


ACTIVITY = st.builds(
    activity,
    start_ticks=st.integers(1, 2),
    run_ns=st.integers(0, S),
    io_wait_ns=st.integers(0, S),
    sleep_ns=st.integers(0, S),
    bursts=st.integers(0, 5),
    burst_ns=st.integers(0, S),
    futexes=st.integers(0, 3),
    gpu_sync_ns=st.integers(999 * S, 1010 * S),
    nccl_ns=st.integers(999 * S, 1010 * S),
)
EPOCHS = st.lists(st.dictionaries(st.integers(1, 4), ACTIVITY, max_size=4), max_size=12)


@given(EPOCHS, st.integers(1, 3), st.integers(1, 5))
def test_counts_and_hints_always_agree_with_the_verdicts(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[dict[int, Activity]], stable: int, tracked: int
) -> None:
    detection = PhaseDetection(phase_stability_count=stable, nccl_detection_enabled=True)
    settings = dataclasses.replace(SETTINGS, detection=detection, max_processes=tracked, stale_ns=300 * MS)
    host = Host(tmp_path_factory.getbasetemp(), settings)
    for epoch in epochs:
        host.evaluate(epoch)
        verdicts = host.classifier.verdicts(host.now, limit=100)
        totals = host.classifier.totals()
        assert len(verdicts) == totals.processes <= tracked
        for phase in set(Phase) - {Phase.UNKNOWN}:
            assert totals.in_phase[phase] == sum(one.phase is phase for one in verdicts)
        hinted = {pid: hint for pid, hint in host.maps.hints.items() if hint.phase is not Phase.UNKNOWN}
        classified = {one.pid: one for one in verdicts if one.phase is not Phase.UNKNOWN}
        assert {pid: (hint.start_ticks, hint.phase) for pid, hint in hinted.items()} == {
            pid: (one.start_ticks, one.phase) for pid, one in classified.items()
        }
        assert all(0 <= (one.signals.io_wait_fraction or 0) <= 1 for one in verdicts)
