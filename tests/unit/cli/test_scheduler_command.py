# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel scheduler`` on a host of plain files, with a systemctl and a daemon of the test's."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from scheduler_cli import FakeHost, run

from zernel.scheduler import control, realtime

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
