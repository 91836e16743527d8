# SPDX-License-Identifier: GPL-3.0-or-later
"""Module zernel_config: both files, or none, and only what the daemons accept."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from .conftest import CLONE, Run


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    directory.mkdir()
    return directory


@pytest.fixture
def config(module: Run, directory: Path, zernel: str) -> Run:
    def run(**options: Any) -> dict[str, Any]:
        return module("zernel_config", directory=str(directory), executable=zernel, **options)

    return run


def test_settings_are_written_and_not_again(config: Run, directory: Path) -> None:
    settings = {"telemetry": {"metrics_port": 9193}}
    result = config(scheduler=settings, observe={}, diff=True)
    assert result["changed_files"] == [str(directory / "zerneld.toml"), str(directory / "scheduler.toml")]
    assert "metrics_port = 9193" in result["diff"][1]["after"]
    assert tomllib.loads((directory / "scheduler.toml").read_text()) == settings
    assert (directory / "scheduler.toml").stat().st_mode & 0o777 == 0o644
    assert not config(scheduler=settings, observe={})["changed"]


def test_tables_within_tables_are_written_as_the_daemon_reads_them(config: Run, directory: Path) -> None:
    settings = {
        "policy": {"gpu_compute": {"priority": -3}},
        "tenant": {"a.b": {"cgroup": "/ml.slice", "class": "training"}},
    }
    assert config(scheduler=settings)["changed"]
    assert tomllib.loads((directory / "scheduler.toml").read_text()) == settings
    result = config(scheduler={"tenant": {"a": {"cgroup": "ml.slice"}}})
    assert "'tenant.a.cgroup' is \"ml.slice\"; accepted: a path" in result["msg"]


def test_without_settings_the_file_is_the_one_of_the_package(config: Run, directory: Path) -> None:
    shipped = CLONE / "agent/config/zerneld.toml"
    shutil.copy(shipped, directory)
    assert not config(observe={})["changed"]
    assert config(observe={"prometheus": {"port": 9191}})["changed"]
    assert config(observe={})["changed"]
    assert (directory / "zerneld.toml").read_text() == shipped.read_text()


def test_check_mode_writes_nothing(config: Run, directory: Path) -> None:
    assert config(scheduler={"telemetry": {"metrics_port": 9193}}, check=True)["changed"]
    assert not list(directory.iterdir())


def test_a_setting_that_the_daemon_refuses_leaves_both_files(config: Run, directory: Path) -> None:
    config(scheduler={}, observe={})
    before = {file: file.read_text() for file in directory.iterdir()}
    for check in (True, False):
        result = config(
            scheduler={"telemetry": {"metrics_port": 9193}}, observe={"prometheus": {"prot": 1}}, check=check
        )
        assert result["failed"]
        assert "zerneld.toml was not written" in result["msg"]
        assert "port" in result["msg"]
        assert "ERROR: the new settings: Unknown key" in result["msg"]
    assert {file: file.read_text() for file in directory.iterdir()} == before


def test_a_file_keeps_its_mode(config: Run, directory: Path) -> None:
    file = directory / "zerneld.toml"
    file.write_text("# mine\n")
    file.chmod(0o640)
    assert config(observe={})["changed"]
    assert file.stat().st_mode & 0o777 == 0o640
