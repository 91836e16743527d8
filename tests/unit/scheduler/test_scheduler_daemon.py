# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon around a scheduler that is not in any kernel: signals, reloads, ends, metrics, notifications.

The kernel's part is tested in a guest (tests/guest/test_scheduler.py).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zernel import service
from zernel.config import load
from zernel.daemon import Settings
from zernel.errors import ZernelError, fail
from zernel.scheduler import daemon, loader, realtime
from zernel.scheduler.config import Config
from zernel.scheduler.kernel import EXIT_ERROR_STALL, EXIT_SYSRQ, EXIT_UNREG_KERN, Exit

from .fakes import FakeMaps

RESTART = (1 << 48) | (1 << 32)
COUNTERS = ("idle_hits", "idle_remote", "queued_node", "queued_cpu", "queued_local")
COUNTERS += ("dispatched", "stolen", "rescues", "preempted", "preempt_denied", "kept", "tasks")


class FakeScheduler:
    """Stands for a scheduler in the kernel; the test ends it."""

    load_seconds, attach_seconds = 0.2, 0.05

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ended: Exit | None = None
        self.closed = False
        self.ticks = 10
        self.maps = FakeMaps()

    def exit(self) -> Exit | None:
        assert not self.closed, "asked after it was closed"
        return self.ended

    def enabled(self) -> bool:
        return not self.closed and self.ended is None

    def counters(self) -> dict[str, int]:
        return dict.fromkeys(COUNTERS, self.ticks)

    def apply(self, config: Config) -> None:
        self.config = config

    def close(self) -> None:
        self.closed = True


class Host:
    """Every scheduler that was loaded, and whether loading works."""

    def __init__(self) -> None:
        self.loaded: list[FakeScheduler] = []
        self.refuse: Callable[[Config], bool] = lambda config: False

    def load(self, config: Config) -> FakeScheduler:
        assert all(scheduler.closed for scheduler in self.loaded), "the kernel runs one at a time"
        if self.refuse(config):
            raise fail("refused", "The verifier refuses it", suggestion="None here")
        self.loaded.append(FakeScheduler(config))
        return self.loaded[-1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Running:
    """A daemon that serves in a thread. Signals go to the process, as the daemon blocks and fetches them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status: int | None = None
        self.failure: BaseException | None = None
        self.manager = service.Service()
        settings = Settings(Config, path, required=True)
        self.daemon = daemon.Daemon(settings.load(), settings)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            with self.daemon:
                self.status = self.daemon.serve(self.manager)
        except BaseException as error:
            self.failure = error

    def signal(self, number: int) -> None:
        # To the serving thread: pytest's main thread must not fetch it.
        signal.pthread_kill(self.thread.ident or 0, number)

    def join(self) -> int | None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.status


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(loader, "load_checked", made.load)
    monkeypatch.setattr(daemon, "POLL_SECONDS", 0.02)
    return made


@pytest.fixture
def running(host: Host, tmp_path: Path) -> Iterator[Running]:
    path = tmp_path / "scheduler.toml"
    path.write_text(f"[telemetry]\nmetrics_port = {free_port()}\n")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    started = Running(path)
    yield started
    if started.thread.is_alive():
        started.signal(signal.SIGTERM)
        started.thread.join(10)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def port_of(running: Running) -> int:
    return load(Config, running.path).telemetry.metrics_port


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError(what)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_detaches_and_exits_0(host: Host, running: Running, number: int) -> None:
    assert not host.loaded[0].closed
    running.signal(number)
    assert running.join() == 0
    assert host.loaded[0].closed


def test_metrics_and_readiness_tell_what_is_known(host: Host, running: Running) -> None:
    port = port_of(running)
    text = get(port)
    assert "zernel_scheduler_enabled 1.0" in text
    assert "zernel_scheduler_decisions_total 40.0" in text
    assert 'zernel_scheduler_placements_total{place="idle_cpu"} 10.0' in text
    assert 'zernel_scheduler_tasks{type="total"} 10.0' in text
    assert "zernel_scheduler_load_seconds 0.25" in text
    assert "zernel_scheduler_phase_transitions_total 0.0" in text
    assert get(port, "/-/ready") == "ready\n"
    for path, code in (
        ("/explain?pid=x", 400),
        ("/explain?" + "&".join(["pid=1"] * 20), 400),
        ("/none", 404),
    ):
        with pytest.raises(urllib.error.HTTPError, match=str(code)):
            get(port, path)
    assert json.loads(get(port, f"/explain?pid={os.getpid()}"))["pid"] == os.getpid()


STALL = Exit(EXIT_ERROR_STALL, 0, "runnable task stall", "x[5] failed to run", "CPU states")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets no time pass between an ejection and the next load; gives how many there were before each."""
    record, given = daemon.Ejections.record, []

    def now(self: Any, at: float) -> float | None:
        given.append(len(self.within(at)))
        return None if record(self, at) is None else 0.0

    monkeypatch.setattr(daemon.Ejections, "record", now)
    return given


def test_an_ejection_is_reported_with_the_kernels_words_and_tried_again(
    host: Host, running: Running, pauses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host.loaded[0].ended = STALL
    until(lambda: len(host.loaded) == 2, "it was not tried again")
    assert pauses == [0]
    assert "runnable task stall: x[5] failed to run" in caplog.text
    assert "CPU states" in caplog.text
    record = next(r for r in caplog.records if "ended the scheduler" in r.message)
    assert record.__dict__["ZERNEL_EXIT_KIND"] == EXIT_ERROR_STALL
    text = get(port_of(running))
    assert "zernel_scheduler_ejections_total 1.0" in text
    assert "zernel_scheduler_enabled 1.0" in text
    assert "zernel_scheduler_gave_up 0.0" in text


def test_a_stall_names_the_real_time_threads_that_keep_cpus_busy(
    host: Host,
    running: Running,
    pauses: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hog = realtime.Hog(7, 8, "robot\x1b", "FIFO", 50, 3, 1.0)
    monkeypatch.setattr(realtime, "hogs", lambda: [hog])
    host.loaded[0].ended = STALL
    until(lambda: len(host.loaded) == 2, "it was not tried again")
    words = "a real-time thread may be why: robot\\x1b (thread 8 of process 7, FIFO 50) uses 100% of CPU 3"
    assert words in caplog.text


def test_the_third_ejection_leaves_the_host_to_the_kernel_with_an_alert(
    host: Host, running: Running, pauses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        until(lambda n=number: len(host.loaded) == n, f"load {number}")
        host.loaded[-1].ended = STALL
    until(lambda: "STAYING on the kernel's own scheduler after 3" in caplog.text, "nothing was said")
    text = get(port_of(running))
    assert "zernel_scheduler_gave_up 1.0" in text
    assert "zernel_scheduler_enabled 0.0" in text
    assert "zernel_scheduler_ejections_total 3.0" in text
    assert all(scheduler.closed for scheduler in host.loaded)
    status = json.loads(get(port_of(running), "/status"))
    assert (status["enabled"], status["gave_up"], status["ejections"]) == (False, True, 3)
    assert "runnable task stall" in status["off"]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(port_of(running), "/-/ready")
    # A person who reloads wants another try.
    running.signal(signal.SIGHUP)
    until(lambda: len(host.loaded) == 4, "the reload did not load it")
    assert "zernel_scheduler_gave_up 0.0" in get(port_of(running))


def test_a_load_that_fails_after_an_ejection_counts_as_one(
    host: Host, running: Running, pauses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    host.refuse = lambda config: True
    host.loaded[0].ended = STALL
    until(lambda: "STAYING on the kernel's own scheduler after 3" in caplog.text, "nothing was said")
    assert caplog.text.count("The verifier refuses it") >= 2
    running.path.write_text(running.path.read_text() + "[scheduler]\nslice_us = 'x'\n")
    running.signal(signal.SIGHUP)
    until(lambda: "settings not reloaded" in caplog.text, "nothing was said")
    assert running.thread.is_alive()


def test_a_person_who_ends_it_by_sysrq_is_obeyed(host: Host, running: Running) -> None:
    host.loaded[0].ended = Exit(EXIT_SYSRQ, 0, "disabled by sysrq-S", "")
    assert running.join() == 0


def test_a_hotplug_loads_it_again_and_the_counters_go_on(host: Host, running: Running) -> None:
    host.loaded[0].ended = Exit(EXIT_UNREG_KERN, RESTART, "unregistered", "cpu 3 going offline")
    until(lambda: len(host.loaded) == 2, "it was not loaded again")
    text = get(port_of(running))
    assert "zernel_scheduler_decisions_total 80.0" in text
    assert "zernel_scheduler_loads_total 2.0" in text
    assert 'zernel_scheduler_exits_total{cause="ended by the kernel"} 1.0' in text
    # Tasks are those of now, not a sum over the past.
    assert 'zernel_scheduler_tasks{type="total"} 10.0' in text


def test_hotplug_without_end_gives_up(host: Host, running: Running) -> None:
    for number in range(daemon.MAX_RESTARTS_PER_MINUTE + 1):
        until(lambda n=number: len(host.loaded) == n + 1, f"load {number}")
        host.loaded[-1].ended = Exit(EXIT_UNREG_KERN, RESTART, "unregistered", "")
    assert running.join() == 1


def test_metrics_and_readiness_say_so_when_the_kernel_runs_the_tasks_itself(
    host: Host, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the kernel's end of the scheduler and the daemon's noticing.
    monkeypatch.setattr(host.loaded[0], "enabled", lambda: False)
    text = get(port_of(running))
    assert "zernel_scheduler_enabled 0.0" in text
    assert "zernel_scheduler_tasks" not in text
    assert "zernel_scheduler_decisions_total 40.0" in text
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(port_of(running), "/-/ready")


def test_reload_hands_a_new_slice_to_the_running_scheduler(host: Host, running: Running) -> None:
    running.path.write_text(running.path.read_text() + "[scheduler]\nslice_us = 9000\n")
    running.signal(signal.SIGHUP)
    until(lambda: host.loaded[0].config.scheduler.slice_us == 9000, "the new slice was not taken over")
    assert len(host.loaded) == 1
    assert not host.loaded[0].closed


def test_reload_takes_over_a_new_watchdog_and_a_new_port(host: Host, running: Running) -> None:
    old, new = port_of(running), free_port()
    running.path.write_text(f"[scheduler]\nwatchdog_timeout_ms = 9000\n[telemetry]\nmetrics_port = {new}\n")
    running.signal(signal.SIGHUP)
    until(lambda: len(host.loaded) == 2, "it was not loaded with the new timeout")
    assert host.loaded[1].config.scheduler.watchdog_timeout_ms == 9000

    def moved() -> bool:
        try:
            return "zernel_scheduler_loads_total 2.0" in get(new)
        except OSError:
            return False

    until(moved, "the new port does not answer")

    def gone() -> bool:
        try:
            get(old)
        except OSError:
            return True
        return False

    until(gone, "the old port still answers")


def test_reload_takes_over_tenants_without_another_load(host: Host, running: Running) -> None:
    maps = host.loaded[0].maps
    until(lambda: list(maps.tenants) == [0], "the default tenant was not set")
    tenant = '[multi_tenant]\nenabled = true\n[tenant.a]\ncgroup = "/none"\nclass = "training"\n'
    running.path.write_text(running.path.read_text() + tenant)
    running.signal(signal.SIGHUP)
    until(lambda: list(maps.tenants) == [0, 1], "the tenant was not set")
    assert maps.tenants[1].priority == 5
    status = json.loads(get(port_of(running), "/status"))
    assert len(host.loaded) == status["loads"] == 1


def test_a_map_that_fails_leaves_the_scheduler_running_and_is_told_once(
    host: Host, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    maps = host.loaded[0].maps
    maps.fault = fail("map-full", "The map is full", suggestion="None here")
    until(lambda: "processes are not classified: ERROR: The map is full" in caplog.text, "nothing was said")
    epochs = maps.epochs
    until(lambda: maps.epochs > epochs + 3, "it was not tried again")
    assert caplog.text.count("The map is full") == 1
    assert "zernel_scheduler_enabled 1.0" in get(port_of(running))
    maps.fault = None
    until(lambda: "processes are classified again" in caplog.text, "it did not go on")


def test_reload_of_the_same_settings_leaves_the_scheduler_alone(host: Host, running: Running) -> None:
    running.path.write_text(running.path.read_text() + "# a remark\n")
    running.signal(signal.SIGHUP)
    threading.Event().wait(0.3)
    assert len(host.loaded) == 1
    assert not host.loaded[0].closed


@pytest.mark.parametrize(
    "text", ["[scheduler]\nslice_us = 'x'\n", "[scheduler", "[scheduler]\nslise_us = 1\n"]
)
def test_reload_of_a_bad_file_keeps_the_old_settings_and_says_why(
    host: Host, running: Running, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    port = port_of(running)
    running.path.write_text(text)
    running.signal(signal.SIGHUP)
    until(lambda: "settings not reloaded" in caplog.text, "nothing was said")
    assert str(running.path) in caplog.text
    assert "zernel_scheduler_loads_total 1.0" in get(port)
    assert not host.loaded[0].closed


def test_reload_that_the_kernel_refuses_loads_the_old_settings_again(
    host: Host, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    host.refuse = lambda config: config.scheduler.watchdog_timeout_ms == 9000
    running.path.write_text(running.path.read_text() + "[scheduler]\nwatchdog_timeout_ms = 9000\n")
    running.signal(signal.SIGHUP)
    until(lambda: len(host.loaded) == 2, "the old one did not come back")
    assert host.loaded[1].config.scheduler == Config().scheduler
    until(lambda: "The verifier refuses it" in caplog.text, "nothing was said")


def test_reload_to_a_port_that_is_taken_keeps_the_old_one(
    host: Host, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    old = port_of(running)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        running.path.write_text(f"[scheduler]\nslice_us = 9000\n[telemetry]\nmetrics_port = {taken}\n")
        running.signal(signal.SIGHUP)
        until(lambda: f"Port {taken}" in caplog.text, "nothing was said")
    assert "zernel_scheduler_loads_total 1.0" in get(old)


def test_a_taken_port_stops_the_start_before_anything_is_loaded(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.toml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        path.write_text(f"[telemetry]\nmetrics_port = {other.getsockname()[1]}\n")
        with pytest.raises(ZernelError, match="is already taken") as caught:
            daemon.Daemon(load(Config, path), Settings(Config, path))
    assert "metrics_port" in caught.value.problems[0].render()
    assert host.loaded == []


def test_a_host_that_cannot_run_it_frees_the_port(host: Host, tmp_path: Path) -> None:
    host.refuse = lambda config: True
    port = free_port()
    path = tmp_path / "scheduler.toml"
    path.write_text(f"[telemetry]\nmetrics_port = {port}\n")
    with pytest.raises(ZernelError, match="verifier refuses"):
        daemon.Daemon(load(Config, path), Settings(Config, path))
    socket.create_server(("127.0.0.1", port)).close()


class Manager:
    """systemd's side: hears what the daemon says."""

    def __init__(self, notify: socket.socket) -> None:
        self._notify = notify

    def hear(self, beginning: str) -> str:
        """Return the next notification that begins so."""
        while not (said := self._notify.recv(4096).decode()).startswith(beginning):
            pass
        return said


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "50000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield Manager(notify)


def test_systemd_is_told_ready_reloading_and_stopping(manager: Manager, running: Running) -> None:
    manager.hear("READY=1\nSTATUS=enabled; metrics on 127.0.0.1:")
    manager.hear("WATCHDOG=1")
    running.signal(signal.SIGHUP)
    manager.hear("RELOADING=1")
    manager.hear("READY=1")
    running.signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert running.join() == 0


def test_a_refused_reload_shows_until_a_later_one_succeeds(
    host: Host, manager: Manager, running: Running
) -> None:
    good = running.path.read_text()
    port = port_of(running)
    manager.hear("READY=1\nSTATUS=enabled; metrics on ")
    assert "zernel_scheduler_config_reload_success 1.0" in get(port)
    host.refuse = lambda config: config.scheduler.watchdog_timeout_ms == 9000
    for text, why in (
        (
            "[scheduler]\nslise_us = 1\n[numa]\nenabled = 1\n",
            "Unknown key 'slise_us' in [scheduler]; 'numa.ena",
        ),
        ("[scheduler]\nwatchdog_timeout_ms = 9000\n", "The verifier refuses it; enabled; metrics on "),
    ):
        running.path.write_text(good + text)
        running.signal(signal.SIGHUP)
        said = manager.hear("READY=1")
        assert said.startswith(f"READY=1\nSTATUS=settings NOT reloaded: {why}")
        assert said.count("\n") == 1
        assert "zernel_scheduler_config_reload_success 0.0" in get(port)
    running.path.write_text(good)
    running.signal(signal.SIGHUP)
    said = manager.hear("READY=1")
    assert said.startswith(f"READY=1\nSTATUS=enabled; metrics on 127.0.0.1:{port}; settings read ")
    assert "zernel_scheduler_config_reload_success 1.0" in get(port)
