# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel scheduler`` on a host of plain files, with a systemctl and a daemon of the test's."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zernel.cli import main as program
from zernel.errors import Problem, fail
from zernel.scheduler import control, realtime

SYSTEMCTL = """#!/bin/sh
# A service manager of one service, which turns the kernel's file like the real one.
state={state}
echo "$*" >> $state/calls
[ ! -e $state/broken ] || {{ echo "Job failed. See the journal." >&2; exit 1; }}
on() {{
  echo active > $state/active
  [ ! -e $state/stuck ] || return 0
  echo enabled > $state/kernel; echo zernel > $state/ops; echo $(($(cat $state/enables) + 1)) > $state/enables
}}
off() {{ echo inactive > $state/active; echo disabled > $state/kernel; rm -f $state/ops; }}
case "$1" in
  show) echo ActiveState=$(cat $state/active); echo UnitFileState=$(cat $state/boot); echo StatusText=;;
  start | restart) on;;
  stop) off;;
  enable) echo enabled > $state/boot; [ $(cat $state/active) = active ] || on;;
  disable) echo disabled > $state/boot; off;;
esac
"""

VERDICT = {
    "pid": 42,
    "phase": "data_loading",
    "next_phase": "gpu_compute",
    "seen_in_a_row": 2,
    "signals": {
        "io_wait_fraction": 0.5,
        "cpu_burst_ns": 1_500_000,
        "gpu_utilization": 7.0,
        "since_gpu_sync_s": None,
        "nccl_active": None,
        "futex_waits": 3,
    },
    "roles": ["loader"],
    "tenant": "research",
    "node": 1,
    "node_from": "gpu",
    "last_cpu": 3,
    "run_ns": 1,
    "idle_seconds": 0.0,
}

DAEMON = {
    "version": "0",
    "enabled": True,
    "off": None,
    "gave_up": False,
    "loads": 1,
    "ejections": 0,
    "settings_in_use": True,
    "gpus": {"unavailable": None, "list": [{"index": 0, "uuid": "GPU-0", "pci": None, "node": None}]},
    "signals": {
        "io_wait_fraction": {"up": True, "absent": None},
        "since_gpu_sync_s": {"up": False, "absent": "no probes"},
    },
    "phases": {"unknown": {"processes": 0, "percent": None}, "gpu_compute": {"processes": 2, "percent": 9.0}},
    "processes": [{**VERDICT, "name": "python"}],
    "roles": [
        {
            "role": "launcher",
            "wakeups": 7,
            "delay_p50": {"above_seconds": 0.000064, "below_seconds": 0.000128},
            "delay_p99": {"above_seconds": 4.194304, "below_seconds": None},
        },
        {"role": "other", "wakeups": 0, "delay_p50": None, "delay_p99": None},
    ],
    "tenants": [
        {
            "name": "research",
            "cgroup": "/ml.slice",
            "absent": None,
            "class": "training",
            "priority": 5,
            "gpus": 1.5,
            "weight": 458,
            "share_wanted": 0.75,
            "share_received": None,
            "run_seconds": 1.0,
            "wait_seconds": 1.0,
            "longest_wait_seconds": 0.0123,
        }
    ],
}


class FakeHost:
    """A directory that stands for the host."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = root / "state"
        self.state.mkdir()
        sysfs = root / "sys/kernel/sched_ext"
        (sysfs / "root").mkdir(parents=True)
        (sysfs / "state").symlink_to(self.state / "kernel")
        (sysfs / "root/ops").symlink_to(self.state / "ops")
        (sysfs / "enable_seq").symlink_to(self.state / "enables")
        for name, text in (
            ("active", "inactive"),
            ("boot", "disabled"),
            ("kernel", "disabled"),
            ("enables", "0"),
            ("calls", ""),
        ):
            self.set(name, text)
        systemctl = root / "systemctl"
        systemctl.write_text(SYSTEMCTL.format(state=self.state))
        systemctl.chmod(0o755)
        self.settings = root / "scheduler.toml"
        self.problems: list[Problem] = []
        made = control.Host(root, str(systemctl), self.settings, lambda root: list(self.problems))
        monkeypatch.setattr(control, "Host", lambda: made)
        monkeypatch.setattr(control, "_SETTLE_S", 0.2)

    def set(self, name: str, text: str = "") -> None:
        (self.state / name).write_text(f"{text}\n" if text else "")

    def get(self, name: str) -> str:
        return (self.state / name).read_text().strip()

    def changes(self) -> list[str]:
        return [line for line in self.get("calls").splitlines() if not line.startswith("show")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path, monkeypatch)


@pytest.fixture
def daemon(host: FakeHost) -> Iterator[dict[str, Any]]:
    """Answers as the daemon does: path → status and data."""
    answers: dict[str, Any] = {"/status": (200, DAEMON)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, data = answers[self.path.split("?")[0]]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(data).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        host.settings.write_text(f"[telemetry]\nmetrics_port = {server.server_address[1]}\n")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield answers
        server.shutdown()
        thread.join()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = program.main(["scheduler", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_enable_and_disable_happen_once_and_tell_whether_they_did(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, state in (("enable", "enabled"), ("disable", "disabled")):
        for changed in (True, False):
            status, out, _ = run(capsys, verb, "--format", "json")
            assert (status, json.loads(out)["changed"]) == (0, changed)
            assert (host.get("boot"), host.get("kernel")) == (state, state)
    assert host.changes() == [
        "restart zernel-scheduler.service",
        "enable zernel-scheduler.service",
        "disable --now zernel-scheduler.service",
    ]


def test_a_host_that_cannot_run_it_is_refused_with_every_reason_and_nothing_changes(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.problems = [
        *fail("no-sched-ext", "This kernel has no sched_ext", suggestion="Boot another").problems,
        *fail("not-root", "zernel-scheduler needs root", suggestion="Use sudo").problems,
    ]
    for verb in (["enable"], ["ab", "--", "true"]):
        status, _, err = run(capsys, *verb)
        assert status == 1
        assert "no sched_ext" in err
        assert "needs root" in err
    assert host.changes() == []


def test_enable_tries_again_where_the_service_gave_up(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.set("active", "active")
    host.set("boot", "enabled")
    assert run(capsys, "enable")[0] == 0
    assert host.get("kernel") == "enabled"
    assert "restart zernel-scheduler.service" in host.changes()


def test_disable_needs_root_only_where_there_is_something_to_do(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, others: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("zernel.files.locked", refused)
    assert run(capsys, "disable")[0] == 0
    host.set("active", "active")
    status, _, err = run(capsys, "disable")
    assert status == 1
    assert "takes root" in err
    assert host.changes() == []


@pytest.mark.parametrize(
    "words", [["--value", "a{99999999999999}"], ["--value", "("], ["--duration", "\x1b[31mx"]]
)
def test_wrong_usage_is_told_without_a_change(
    host: FakeHost, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    status, _, err = run(capsys, "ab", *words, "--", "true")
    assert status == 2
    assert words[0] in err
    assert "\x1b" not in err
    assert host.changes() == []


@pytest.mark.parametrize("words", [["enable"], ["disable"], ["ab", "--", "true"]])
def test_two_commands_do_not_switch_at_once(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("zernel.files.LOCK_SECONDS", 0.05)
    host.set("active", "active" if words == ["disable"] else "inactive")
    with control.Host().switching():
        status, _, err = run(capsys, *words)
    assert status == 1
    assert f"Another command switches the scheduler: pid {os.getpid()}" in err
    assert host.changes() == []


def test_what_cannot_be_turned_on_is_not_tried_again_behind_ones_back(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.set("broken", "1")
    assert run(capsys, "enable")[0] == 1
    assert host.changes() == ["restart zernel-scheduler.service", "stop zernel-scheduler.service"]


def test_status_finds_the_daemon_though_its_settings_are_faulty(
    host: FakeHost,
    daemon: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = int(host.settings.read_text().rpartition("=")[2])
    monkeypatch.setattr(control, "Telemetry", lambda: SimpleNamespace(metrics_port=port))
    host.settings.write_text("[telemetry]\nmetrics_port = true\n")
    assert json.loads(run(capsys, "status", "--format", "json")[1])["daemon"] == DAEMON


@pytest.mark.parametrize(("fault", "words"), [("broken", "Job failed"), ("stuck", "The scheduler is not on")])
def test_a_service_that_does_not_come_up_is_told(
    host: FakeHost, capsys: pytest.CaptureFixture[str], fault: str, words: str
) -> None:
    host.set(fault)
    status, out, err = run(capsys, "enable", "--format=json")
    assert status == 1
    assert words in err
    assert "journalctl" in err
    assert json.loads(out)["status"] == "error"


def test_status_shows_the_kernel_the_service_and_the_daemon(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "enable")
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "run by Zernel's scheduler" in out
    assert "active, at boot: enabled" in out
    assert "1 known to NVML" in out
    row = next(line for line in out.splitlines() if line.startswith("research"))
    assert row.split() == ["research", "training", "1.5", "458", "75%", "-", "12.3", "ms", "/ml.slice"]
    assert "launcher  7         < 0.128 ms    > 4.19e+03 ms" in out
    data = json.loads(run(capsys, "status", "--format=json")[1])
    assert data["runs_tasks"] == "zernel"
    assert data["daemon"] == DAEMON


EXPLANATION = {
    "pid": 42,
    "name": "python",
    "cgroup": "/ml.slice/job",
    "tenant": {"name": "research", "class": "training", "weight": 305},
    "gpus": [0, 1],
    "cpus_allowed": "0-7",
    "cpus_preferred": [4, 5, 6, 7],
    "verdict": VERDICT,
    "evidence": [
        {
            "phase": "data_loading",
            "signal": "io_wait_fraction",
            "condition": "above 0.3",
            "value": 0.5,
            "holds": True,
        },
        {
            "phase": "optimizer_step",
            "signal": "since_gpu_sync_s",
            "condition": "at most 1 s ago",
            "value": None,
            "holds": False,
        },
    ],
    "absent": {"since_gpu_sync_s": "no probes"},
    "threads": [
        {
            "tid": 43,
            "role": "loader",
            "policy": "POLICY_DATA_LOADING",
            "run_avg_ns": 1_000_000,
            "sleep_avg_ns": 2_000_000,
            "io_avg_ns": 1_500_000,
        }
    ],
    "thread_count": 1,
}


def test_explain_says_why(host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    daemon["/explain"] = (200, EXPLANATION)
    status, out, _ = run(capsys, "explain", "42")
    assert status == 0
    for words in (
        "research, class training, weight 305",
        "prefers 4,5,6,7: node 1, next to its gpu",
        "gpu_compute was seen 2 times in a row",
        "since_gpu_sync_s is absent: no probes",
    ):
        assert words in out
    rows = [line.split() for line in out.splitlines()]
    assert ["data_loading", "io_wait_fraction", "above", "0.3", "0.5", "holds"] in rows
    assert ["optimizer_step", "since_gpu_sync_s", "at", "most", "1", "s", "ago", "absent"] in rows
    assert ["43", "loader", "data_loading", "1", "ms", "2", "ms", "1.5", "ms"] in rows
    assert json.loads(run(capsys, "explain", "42", "--format=json")[1]) == {"status": "ok", **EXPLANATION}


@pytest.mark.parametrize(("told", "count", "more"), [(1, 1, 0), (20, 20, 0), (21, 21, 1), (64, 500, 480)])
def test_explain_says_how_many_threads_it_does_not_show(
    host: FakeHost,
    daemon: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    told: int,
    count: int,
    more: int,
) -> None:
    (thread,) = EXPLANATION["threads"]
    threads = [thread | {"tid": tid} for tid in range(1000, 1000 + told)]
    daemon["/explain"] = (200, EXPLANATION | {"threads": threads, "thread_count": count})
    out = run(capsys, "explain", "42")[1]
    assert re.findall(r"and (\d+) more", out) == ([str(more)] if more else [])


def test_explain_of_a_process_that_sleeps_or_is_none(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sleeping = {"verdict": None, "evidence": [], "threads": [], "cpus_preferred": []}
    daemon["/explain"] = (200, EXPLANATION | sleeping)
    assert "phase     unknown: it did nothing lately" in run(capsys, "explain", "42")[1]
    daemon["/explain"] = (200, EXPLANATION | sleeping | {"tenant": None})
    assert "phase     unknown: no scheduler runs" in run(capsys, "explain", "42")[1]
    daemon["/explain"] = (404, {"error": "There is no process 42"})
    status, _, err = run(capsys, "explain", "42")
    assert status == 1
    assert "There is no process 42" in err


def test_status_shows_processes_with_the_signals_behind_their_phases(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "status")[1]
    assert "absent: since_gpu_sync_s (no probes)" in out
    assert "gpu_compute 2\n" in out
    row = next(line for line in out.splitlines() if line.startswith("42 "))
    words = "42 python data_loading 50% 1.5 ms 7% - - 3 research 1"
    assert row.split() == words.split()


def test_a_process_does_not_write_to_the_terminal_by_its_name(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"name": "evil\x1b[2J\nroot"}
    daemon["/status"] = (200, DAEMON | {"processes": [VERDICT | named]})
    daemon["/explain"] = (200, EXPLANATION | named)
    for words in (["status"], ["explain", "42"]):
        out = run(capsys, *words)[1]
        assert "evil\\x1b[2J\\nroot" in out
        assert "\x1b" not in out


def test_status_without_a_daemon_says_so_and_shows_the_rest(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.settings.write_text("[telemetry]\nmetrics_port = 1\n")
    host.set("kernel", "enabled")
    host.set("ops", "scx_other")
    status, out, _ = run(capsys, "status")
    assert status == 0
    assert "run by 'scx_other'" in out
    assert "does not answer" in out
    assert "Connection refused" in out


def test_status_names_real_time_threads_that_keep_cpus_busy(
    host: FakeHost,
    daemon: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hog = realtime.Hog(7, 8, "robot\n", "FIFO", 50, 3, 1.0)
    monkeypatch.setattr(realtime, "hogs", lambda root: [hog])
    out = run(capsys, "status")[1]
    assert "real-time robot\\n (thread 8 of process 7, FIFO 50) uses 100% of CPU 3: no other" in out
    data = json.loads(run(capsys, "status", "--format=json")[1])
    assert [(one["tid"], one["cpu"], one["part"]) for one in data["realtime"]] == [(8, 3, 1.0)]


def test_status_shows_no_number_of_gpus_where_none_is_known(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tenant,) = DAEMON["tenants"]
    daemon["/status"] = (200, DAEMON | {"tenants": [tenant | {"gpus": None}]})
    row = next(line for line in run(capsys, "status")[1].splitlines() if line.startswith("research"))
    assert row.split()[:4] == ["research", "training", "-", "458"]


def test_status_of_one_that_gave_up_says_so_first(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon["/status"] = (200, DAEMON | {"off": "ejected: stall", "gave_up": True, "tenants": []})
    out = run(capsys, "status")[1]
    assert "STAYING OFF until a reload: ejected: stall" in out
    assert "run by the kernel's own scheduler" in out


@pytest.mark.parametrize("answer", [(500, {"error": "broken inside"}), (200, [1])])
def test_an_answer_that_is_none_is_told(
    host: FakeHost, daemon: dict[str, Any], capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    daemon["/status"] = answer
    data = json.loads(run(capsys, "status", "--format=json")[1])
    assert data["daemon"] is None
    assert data["daemon_unavailable"]


@pytest.mark.parametrize("before", ["inactive", "active"])
def test_ab_prints_the_ratio_and_leaves_what_was(
    host: FakeHost, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    if before == "active":
        run(capsys, "enable")
    script = f"[ $(cat {host.state}/kernel) = enabled ] && echo 120 || echo 100"
    words = ["ab", "--rounds", "5", "--value", "([0-9]+)", "--format", "json", "--", "sh", "-c", script]
    status, out, err = run(capsys, *words)
    data = json.loads(out)
    assert (status, data["ratio"], data["verdict"]) == (0, pytest.approx(1.2), "better")
    assert "round 5 of 5" in err
    assert host.get("active") == before
    text = run(capsys, *(word.replace("json", "text") for word in words))[1]
    assert "Zernel / kernel: 1.200 (median; 1.200 to 1.200); more is better" in text


def test_ab_restores_also_when_the_workload_fails(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(
        capsys, "ab", "--", "sh", "-c", f"[ $(cat {host.state}/kernel) = disabled ] || exit 7"
    )
    assert status == 1
    assert "exit status 7" in err
    assert host.get("kernel") == "disabled"


def test_ab_notices_a_scheduler_that_was_loaded_again_within_a_run(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    again = f"[ $(cat {host.state}/kernel) = disabled ] || echo 99 > {host.state}/enables"
    status, _, err = run(capsys, "ab", "--", "sh", "-c", again)
    assert status == 1
    assert "The scheduler changed during a run" in err
    assert host.get("kernel") == "disabled"


def test_ab_refuses_a_service_whose_scheduler_is_off(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.set("active", "active")
    status, _, err = run(capsys, "ab", "--", "true")
    assert status == 1
    assert "its scheduler does not" in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["stauts"],
        ["explain"],
        ["explain", "self"],
        ["ab"],
        ["ab", "--"],
        ["ab", "--duration", "soon", "--", "true"],
        ["ab", "--rounds", "0", "--", "true"],
        ["ab", "--value", "(", "--", "true"],
        ["ab", "--lower-is-better", "--", "true"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    command = [sys.executable, "-m", "zernel", "scheduler", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: zernel scheduler" in done.stderr
