# SPDX-License-Identifier: GPL-3.0-or-later
"""The work beside the scheduler: tenants follow GPUs and cgroups, figures follow what tenants got."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

from zernel.config import parse
from zernel.scheduler import gpu
from zernel.scheduler.collector import Collector
from zernel.scheduler.config import Config
from zernel.scheduler.engine import MAX_THREADS, Engine
from zernel.scheduler.maps import Delay, Task, Tenant, Use
from zernel.scheduler.policy import Phase, Role
from zernel.scheduler.report import Pages, quantile
from zernel.scheduler.status import Status

from .fakes import MS, FakeMaps, activity, process, two_nodes

TENANTS = """
[multi_tenant]
enabled = true
[tenant.a]
cgroup = "/a"
[tenant.b]
cgroup = "/b"
class = "background"
"""


class FakeNvml:
    """Answers with what the test put there."""

    def __init__(self) -> None:
        self.answer = gpu.Reading()
        self.asked = threading.Semaphore(0)
        self.closed = False

    def read(self) -> gpu.Reading:
        answer = self.answer
        self.asked.release()
        return answer

    def close(self) -> None:
        self.closed = True


class Host:
    """An engine over a directory, with fake maps and a fake NVML."""

    def __init__(self, root: Path, text: str) -> None:
        self.root, self.now, self.maps, self.nvml = root, 1000.0, FakeMaps(), FakeNvml()
        two_nodes(root)
        config = parse(Config, text)
        fast = dataclasses.replace(config.general, gpu_poll_interval_ms=50)
        self.engine = Engine(dataclasses.replace(config, general=fast), self.nvml, root)  # type: ignore[arg-type]
        self.engine.loaded(self.maps)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.engine.tick(self.now)

    def gpus(self, holders: dict[int, set[int]]) -> None:
        held = {pid: frozenset(on) for pid, on in holders.items()}
        used = dict.fromkeys(holders, 5.0)
        self.nvml.answer = gpu.Reading((gpu.Gpu(0, "GPU-0", "0000:3b:00.0", 1),), held, used)
        for _ in range(2):  # the answer that was on its way, and this one
            while self.nvml.asked.acquire(blocking=False):
                pass
            assert self.nvml.asked.acquire(timeout=10)
        threading.Event().wait(0.01)

    def page(self, name: str, **query: str) -> tuple[int, dict[str, Any]]:
        status = Status()
        status.loaded(_Running())
        return Pages(status, self.engine, lambda: self.now).by_path()[name](query)

    def metrics(self) -> str:
        status = Status()
        status.loaded(_Running())
        registry = CollectorRegistry()
        registry.register(Collector(status, self.engine.figures, self.root))
        return generate_latest(registry).decode()


class _Running:
    load_seconds = attach_seconds = 0.1

    def enabled(self) -> bool:
        return True

    def counters(self) -> dict[str, int]:
        names = ("idle_hits", "queued_node", "queued_cpu", "queued_local", "tasks", "rescues", "stolen")
        return dict.fromkeys(names, 2)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, TENANTS)
    yield made
    made.engine.close()
    assert made.nvml.closed


def cgroup(root: Path, path: str) -> int:
    directory = Path(f"{root}/sys/fs/cgroup{path}")
    directory.mkdir(parents=True)
    return directory.stat().st_ino


def test_the_scheduler_is_told_tenants_once_and_again_when_they_change(host: Host) -> None:
    a = cgroup(host.root, "/a")
    host.tick()
    assert host.maps.tenants == {0: Tenant(100, 0), 1: Tenant(100, 0), 2: Tenant(33, -5)}
    assert host.maps.cgroups == {a: 1}
    for _ in range(5):
        host.tick()
    assert host.maps.tenant_writes == 1
    b = cgroup(host.root, "/b")
    process(host.root, 7, cgroup="/a/job")
    host.gpus({7: {0, 1}})
    host.tick()
    assert host.maps.tenants[1] == Tenant(200, 0)
    assert host.maps.cgroups == {a: 1, b: 2}
    assert host.maps.tenant_writes == 2


def test_a_scheduler_that_was_loaded_anew_is_told_again(host: Host) -> None:
    host.tick()
    host.engine.unloading()
    host.tick()
    assert host.engine.figures().tenants == ()
    host.engine.loaded(host.maps)
    host.tick()
    assert host.maps.tenant_writes == 2


def test_new_settings_count_from_the_next_tick(host: Host) -> None:
    host.tick()
    host.engine.configure(parse(Config, TENANTS.replace("true", "false")))
    host.tick(0.001)
    assert host.maps.tenants == {0: Tenant(100, 0)}
    assert host.maps.cgroups == {}


def test_figures_are_worked_out_anew_after_the_interval(host: Host) -> None:
    host.tick()
    host.maps.use = {0: Use(1.0, 0.5, 0.02), 1: Use(3.0, 0.0, 0.25)}
    host.tick(0.5)
    assert host.engine.figures().tenants[1].use is None
    # The scheduler remembers the longest wait of two epochs, so that of an earlier one must be kept.
    host.maps.use = {0: Use(1.0, 0.5, 0.02), 1: Use(3.0, 0.0, 0.01)}
    host.tick(0.6)
    default, a, b = host.engine.figures().tenants
    assert (default.share.wanted, default.share.received) == (0.5, 0.25)
    assert (a.share.wanted, a.share.received) == (0.5, 0.75)
    assert (b.share.wanted, b.use) == (None, None)
    text = host.metrics()
    assert 'zernel_scheduler_tenant_share_wanted_ratio{tenant="a"} 0.5' in text
    assert 'zernel_scheduler_tenant_share_received_ratio{tenant="a"} 0.75' in text
    assert 'zernel_scheduler_longest_wait_seconds{tenant="a"} 0.25' in text
    assert 'share_wanted_ratio{tenant="b"}' not in text
    assert 'longest_wait_seconds{tenant="b"}' not in text


def test_a_tenant_keeps_what_it_got_when_another_is_removed(host: Host) -> None:
    b = cgroup(host.root, "/b")
    host.tick()
    host.maps.use = {1: Use(3.0, 0.0, 0.25), 2: Use(7.0, 0.0, 0.25)}
    without_a = TENANTS.replace("[tenant.a]", "[tenant.c]").replace('"/a"', '"/c"')
    host.engine.configure(parse(Config, without_a))
    host.tick()
    assert host.maps.cgroups == {b: 2}
    shown = {one["name"]: one["run_seconds"] for one in host.page("/status")[1]["tenants"]}
    assert shown == {"default": None, "b": 7.0, "c": None}
    assert [host.engine.tenant_name(index) for index in range(4)] == ["default", "1", "b", "c"]
    # A scheduler that is loaded anew has counted nothing yet.
    host.engine.loaded(host.maps)
    assert [host.engine.tenant_name(index) for index in range(3)] == ["default", "c", "b"]


def configured(host: Host, **general: int) -> None:
    config = parse(Config, TENANTS)
    telemetry = {"push_interval_ms": general.pop("push_interval_ms", 1000)}
    host.engine.configure(
        dataclasses.replace(
            config,
            general=dataclasses.replace(config.general, **general),
            telemetry=dataclasses.replace(config.telemetry, **telemetry),
        )
    )
    host.tick()


@pytest.mark.parametrize(("interval_ms", "times"), [(100, 20), (500, 4), (5000, 0)])
def test_processes_are_classified_as_often_as_the_settings_say(
    host: Host, interval_ms: int, times: int
) -> None:
    configured(host, phase_eval_interval_ms=interval_ms)
    before = host.maps.epochs
    for _ in range(200):
        host.tick(0.01)
    # What is due a moment after a tick waits for the next one.
    assert 0.8 * times - 1 <= host.maps.epochs - before <= times


@pytest.mark.parametrize("interval_ms", [50, 5000])
def test_tenants_follow_as_often_as_the_settings_say(host: Host, interval_ms: int) -> None:
    configured(host, gpu_poll_interval_ms=interval_ms)
    cgroup(host.root, "/a")
    host.tick(0.06)
    assert bool(host.maps.cgroups) == (interval_ms == 50)
    host.tick(5.0)
    assert host.maps.cgroups


@pytest.mark.parametrize("interval_ms", [50, 60_000])
def test_nvml_is_asked_as_often_as_the_settings_say(host: Host, interval_ms: int) -> None:
    configured(host, gpu_poll_interval_ms=interval_ms)
    # By the longer one it is asked no more, once what was under way is over.
    patience = 10 if interval_ms == 50 else 0.5
    asked = [host.nvml.asked.acquire(timeout=patience) for _ in range(30)]
    assert all(asked) == (interval_ms == 50)


@pytest.mark.parametrize("interval_ms", [100, 10_000])
def test_figures_are_as_old_as_the_settings_say(host: Host, interval_ms: int) -> None:
    configured(host, push_interval_ms=interval_ms)
    host.maps.use = {1: Use(3.0, 0.0, 0.25)}
    host.tick(0.2)
    assert (host.engine.figures().tenants[1].use is None) == (interval_ms == 10_000)


def test_wakeup_delays_are_a_histogram_by_role(host: Host) -> None:
    # 3 below 16 us, 5 from 64 to 128 us, 2 longer than a second.
    host.maps.delay = Delay(tuple({0: 3, 7: 5, 23: 2}.get(n, 0) for n in range(24)), 9.5)
    host.tick()
    text = host.metrics()
    name = "zernel_scheduler_wakeup_delay_seconds"
    for end, count in (("1.6e-05", 3), ("6.4e-05", 3), ("0.000128", 8), ("1.04858", 8), ("+Inf", 10)):
        assert f'{name}_bucket{{le="{end}",role="launcher"}} {count}.0' in text
    assert f'{name}_sum{{role="launcher"}} 9.5' in text
    assert f'{name}_count{{role="launcher"}} 10.0' in text


@given(st.lists(st.integers(0, 1000), min_size=24, max_size=24), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_that_reaches_that_part_of_the_delays(
    buckets: list[int], part: float
) -> None:
    found = quantile(Delay(tuple(buckets), 0.0), part)
    if found is None:
        assert sum(buckets) == 0
        return
    above, below = found
    # Bucket n ends at 2^n microseconds; the last has no end.
    number = 23 if below is None else round(math.log2(below * 1e6))
    assert above == pytest.approx(2 ** (number - 1) / 1e6 if number else 0)
    assert sum(buckets[: number + 1]) >= part * sum(buckets)
    assert sum(buckets[:number]) < part * sum(buckets)


def test_nothing_is_due_until_the_pause_is_over(host: Host) -> None:
    host.tick()
    pause = host.engine.pause(host.now)
    assert 0 < pause <= 0.05
    host.tick(pause)
    assert host.engine.pause(host.now) > 0
    host.engine.unloading()
    assert host.engine.pause(host.now) > 0


def test_what_the_kernel_counts_is_shown_where_it_does(host: Host) -> None:
    host.tick()
    assert "kernel_events" not in host.metrics()
    directory = host.root / "sys/kernel/sched_ext/root"
    directory.mkdir(parents=True)
    (directory / "events").write_text("SCX_EV_SELECT_CPU_FALLBACK 3\njunk\nSCX_EV_X y\n")
    text = host.metrics()
    assert 'zernel_scheduler_kernel_events_total{event="SCX_EV_SELECT_CPU_FALLBACK"} 3.0' in text
    assert text.count("kernel_events_total{") == 1


def test_processes_are_classified_at_their_interval_and_shown_with_the_documents_names(host: Host) -> None:
    process(host.root, 7)
    host.gpus({7: {0}})
    for _ in range(12):
        host.maps.activity = {7: activity(io_wait_ns=60 * MS), 8: activity()}
        host.tick(0.1)
    assert host.maps.hints[7].phase is Phase.DATA_LOADING
    host.tick(0.01)
    assert host.maps.epochs == 12
    host.tick(0.99)
    text = host.metrics()
    for line in (
        'tasks{type="total"} 2.0',
        'tasks{type="ml"} 1.0',
        "decisions_total 8.0",
        "phase_transitions_total 1.0",
        'phase_changes_total{from="unknown",to="data_loading"} 1.0',
        'phase_tasks{phase="data_loading"} 1.0',
        'phase_tasks{phase="gpu_compute"} 0.0',
        'signal_up{signal="gpu_utilization"} 1.0',
        'signal_up{signal="nccl_active"} 0.0',
    ):
        assert f"zernel_scheduler_{line}\n" in text
    percent = dict(re.findall(r'phase_time_pct{phase="(\w+)"} ([0-9.]+)', text))
    assert float(percent["data_loading"]) > 50
    assert sum(map(float, percent.values())) == pytest.approx(100, abs=0.1)


def test_the_time_in_a_phase_is_that_of_the_last_minute(host: Host) -> None:
    process(host.root, 7)
    host.gpus({7: {0}})
    for _ in range(5):
        host.maps.activity = {7: activity(io_wait_ns=60 * MS)}
        host.tick()
    for _ in range(70):
        host.tick()
    assert host.engine.figures().phase_pct[Phase.DATA_LOADING] == 0
    assert host.engine.figures().totals.seconds[Phase.DATA_LOADING] > 0


def test_a_process_is_explained_by_its_signals_tenant_cpus_and_threads(host: Host) -> None:
    process(host.root, 7, cgroup="/a/job")
    host.gpus({7: {0}})
    for _ in range(3):
        host.maps.activity = {7: activity(io_wait_ns=60 * MS, roles=frozenset({Role.LOADER}))}
        host.tick()
    host.maps.tasks[7] = Task(Role.LOADER, "POLICY_DATA_LOADING", None, None, 1, 0, 1000, 2000, 1500)
    code, page = host.page("/explain", pid="7")
    assert code == 200
    assert (page["name"], page["cgroup"], page["tenant"]["name"]) == ("py) th)on", "/a/job", "a")
    assert page["verdict"]["phase"] == "data_loading"
    assert (page["gpus"], page["verdict"]["node"], page["verdict"]["node_from"]) == ([0], 1, "gpu")
    assert (page["cpus_allowed"], page["cpus_preferred"]) == ("0-3", [2, 3])
    held = {one["phase"] for one in page["evidence"] if one["holds"]}
    assert "data_loading" in held
    assert page["absent"]["nccl_active"] == "nccl_detection_enabled is false"
    assert [(one["tid"], one["role"]) for one in page["threads"]] == [(7, "loader")]
    assert page["thread_count"] == 1
    json.dumps(page)
    shown = host.page("/status")[1]["processes"]
    assert [(one["pid"], one["phase"], one["roles"]) for one in shown] == [(7, "data_loading", ["loader"])]


def test_of_many_threads_some_are_shown_and_all_are_counted(host: Host) -> None:
    process(host.root, 7)
    for tid in range(8, 107):
        (host.root / f"proc/7/task/{tid}").mkdir()
    task = Task(Role.LOADER, "POLICY_DATA_LOADING", None, None, 1, 0, 1000, 2000, 1500)
    host.maps.tasks = dict.fromkeys(range(7, 107), task)
    page = host.page("/explain", pid="7")[1]
    assert (len(page["threads"]), page["thread_count"]) == (MAX_THREADS, 100)


def test_a_process_that_did_nothing_lately_has_no_verdict(host: Host) -> None:
    process(host.root, 9)
    host.tick()
    code, page = host.page("/explain", pid="9")
    assert (code, page["verdict"], page["evidence"], page["threads"]) == (200, None, [], [])
    assert page["tenant"]["name"] == "default"


def test_what_was_known_of_a_process_is_not_said_of_the_next_with_its_pid(host: Host) -> None:
    process(host.root, 7)
    for _ in range(3):
        host.maps.activity = {7: activity(io_wait_ns=60 * MS), 8: activity()}
        host.tick()
    assert host.page("/explain", pid="7")[1]["verdict"] is not None
    process(host.root, 7, start_ticks=2)
    page = host.page("/explain", pid="7")[1]
    assert (page["name"], page["verdict"], page["evidence"]) == ("py) th)on", None, [])
    # Nor is one shown that is gone without a successor.
    assert host.page("/status")[1]["processes"] == []


@pytest.mark.parametrize(
    ("pid", "code"), [("", 400), ("x", 400), ("1" * 11, 400), ("-1", 400), ("424242", 404)]
)
def test_what_is_no_process_is_refused(host: Host, pid: str, code: int) -> None:
    assert host.page("/explain", pid=pid)[0] == code


def test_while_no_scheduler_runs_nothing_is_asked_of_it(host: Host) -> None:
    process(host.root, 9)
    host.tick()
    host.engine.unloading()
    epochs = host.maps.epochs
    host.tick()
    assert host.maps.epochs == epochs
    assert host.page("/explain", pid="9")[1]["threads"] == []
    assert host.engine.figures().absent == {}


def test_counters_that_the_object_lacks_are_left_out(host: Host) -> None:
    text = host.metrics()
    assert "zernel_scheduler_starvation_rescues_total 2.0" in text
    assert "zernel_scheduler_dispatches_total" not in text


def test_the_status_page_shows_gpus_and_tenants(host: Host) -> None:
    process(host.root, 7, cgroup="/a")
    host.gpus({7: {0}})
    host.tick()
    code, page = host.page("/status")
    assert (code, page["enabled"], page["off"]) == (200, True, None)
    assert page["gpus"]["list"] == [{"index": 0, "uuid": "GPU-0", "pci": "0000:3b:00.0", "node": 1}]
    assert [(one["name"], one["gpus"], one["class"]) for one in page["tenants"]] == [
        ("default", 0, "normal"),
        ("a", 1, "normal"),
        ("b", 0, "background"),
    ]
    assert "there is no cgroup" in page["tenants"][1]["absent"]
    assert 'zernel_scheduler_tenant_gpus{tenant="a"} 1.0' in host.metrics()


def test_gpus_that_nvml_does_not_tell_of_are_not_known_rather_than_none(host: Host) -> None:
    host.nvml.answer = gpu.Reading(unavailable="no driver")
    for _ in range(1000):
        host.tick()
        page = host.page("/status")[1]
        if page["gpus"]["unavailable"] == "no driver":
            break
        threading.Event().wait(0.01)
    assert page["gpus"]["unavailable"] == "no driver"
    host.tick()  # tenants too are of this answer
    page = host.page("/status")[1]
    assert [(one["name"], one["gpus"]) for one in page["tenants"]] == [
        ("default", None),
        ("a", None),
        ("b", None),
    ]
    assert "zernel_scheduler_tenant_gpus{" not in host.metrics()
