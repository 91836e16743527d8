# SPDX-License-Identifier: GPL-3.0-or-later
"""Module zernel_services against a systemctl that keeps its units in files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from . import systemctl
from .conftest import Run


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    units, environment = systemctl.install(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (units / "a.service").write_text("loaded inactive disabled yes\n")
    (units / "b.service").write_text("loaded active enabled yes\n")
    return units


def done(units: Path) -> list[str]:
    log = units / "log"
    return log.read_text().splitlines() if log.exists() else []


def service(name: str, **wanted: Any) -> dict[str, Any]:
    return {"name": f"{name}.service", **wanted}


def test_a_service_that_met_its_start_limit_is_started(module: Run, units: Path) -> None:
    (units / "a.service").write_text("loaded failed enabled yes\n")
    assert module("zernel_services", services=[service("a", state="started")])["changed"]
    assert (units / "a.service").read_text().split()[1] == "active"


def test_only_what_differs_is_done_and_in_order(module: Run, units: Path) -> None:
    wanted = [service("a", enabled=True, state="started"), service("b", enabled=True, state="started")]
    result = module("zernel_services", services=wanted)
    assert result["changed_services"] == {"a.service": ["enable", "start"]}
    assert done(units) == ["enable a.service", "start a.service"]
    assert not module("zernel_services", services=wanted)["changed"]
    stopped = module("zernel_services", services=[service("b", enabled=False, state="stopped")])
    assert stopped["changed_services"] == {"b.service": ["disable", "stop"]}


def test_check_mode_does_nothing(module: Run, units: Path) -> None:
    result = module("zernel_services", services=[service("a", state="started"), service("new")], check=True)
    assert result["changed_services"] == {"a.service": ["start"]}
    assert done(units) == []


@pytest.mark.parametrize("state", ["restarted", "reloaded"])
def test_a_service_that_does_not_run_is_not_restarted(module: Run, units: Path, state: str) -> None:
    result = module("zernel_services", services=[service("a", state=state), service("b", state=state)])
    assert list(result["changed_services"]) == ["b.service"]


@pytest.fixture
def daemon(units: Path) -> Path:
    """b.service as a daemon that says in its status line when it read its settings."""
    (units / "b.service.status").write_text("up; settings read 2026-01-01T10:00:00.000Z")
    return units


def test_a_reload_is_waited_for(module: Run, daemon: Path) -> None:
    result = module("zernel_services", services=[service("b", state="reloaded")])
    assert result["changed_services"] == {"b.service": ["reload"]}
    assert "10:00:01.000Z" in (daemon / "b.service.status").read_text()


def test_settings_that_need_a_restart_get_one(module: Run, daemon: Path) -> None:
    (daemon / "b.service.next").write_text("[gpu_mem] settings NOT applied: restart zerneld; up; ")
    result = module("zernel_services", services=[service("b", state="reloaded")])
    assert result["changed_services"] == {"b.service": ["reload", "restart"]}
    assert done(daemon) == ["reload b.service", "restart b.service"]


def test_a_service_that_keeps_its_old_settings_is_a_failure(module: Run, daemon: Path) -> None:
    (daemon / "b.service.next").write_text("settings NOT reloaded: Port 9091 is already taken; up; ")
    for state in ("reloaded", "started"):  # a second run of the play does not forget it
        result = module("zernel_services", services=[service("b", state=state)])
        assert result["failed"]
        assert "keeps its old settings: settings NOT reloaded: Port 9091 is already taken" in result["msg"]
    (daemon / "b.service.next").unlink()
    assert module("zernel_services", services=[service("b", state="started")])["changed"]
    assert not module("zernel_services", services=[service("b", state="started")])["changed"]


def test_a_restart_that_an_interrupted_run_left_out_is_done(module: Run, daemon: Path) -> None:
    (daemon / "b.service.status").write_text(
        "settings NOT applied: restart zerneld; settings read 2026-01-01T10:00:00.000Z"
    )
    result = module("zernel_services", services=[service("b", state="started")])
    assert result["changed_services"] == {"b.service": ["restart"]}


def test_a_service_is_brought_to_the_files_that_are_newer_than_it(
    module: Run, daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the run after one that was interrupted between writing them and this."""
    file = tmp_path / "file"
    file.touch()
    now = int(time.monotonic() * 1e6)
    older, newer = str(now - 60_000_000), str(now + 60_000_000)
    for started, wanted, expected in (
        (newer, {"program": str(file)}, None),
        (older, {"program": str(file)}, ["restart"]),
        (older, {"program": str(tmp_path / "none")}, None),
        (older, {"settings": str(file)}, ["reload"]),
    ):
        monkeypatch.setenv("STARTED", started)
        (daemon / "b.service.status").write_text("up; settings read 2026-01-01T10:00:00.000Z")
        result = module("zernel_services", services=[service("b", state="started", **wanted)])
        assert result["changed_services"].get("b.service") == expected
    (daemon / "b.service.status").write_text("up; settings read 2999-01-01T10:00:00.000Z")
    assert not module("zernel_services", services=[service("b", state="started", **wanted)])["changed"]


def test_a_failure_shows_the_end_of_the_journal(module: Run, units: Path) -> None:
    (units / "a.service").write_text("broken inactive enabled yes\n")
    result = module("zernel_services", services=[service("a", state="started")])
    assert result["failed"]
    assert "Job failed" in result["msg"]
    assert "the last words of --unit=a.service" in result["msg"]


def test_a_service_that_systemd_skips_is_a_failure(module: Run, units: Path) -> None:
    (units / "a.service").write_text("loaded inactive enabled no\n")
    result = module("zernel_services", services=[service("a", state="started")])
    assert result["failed"]
    assert "does not meet a condition" in result["msg"]


def test_a_service_that_is_not_installed_is_refused_before_any_is_touched(module: Run, units: Path) -> None:
    result = module(
        "zernel_services", services=[service("a", state="started"), service("c", state="started")]
    )
    assert result["failed"]
    assert "c.service" in result["msg"]
    assert done(units) == []
