# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel scheduler enable``, ``disable`` and ``ab``: what they switch, refuse and leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scheduler_cli import FakeHost, run

from zernel.errors import fail
from zernel.scheduler import control


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
