# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules zernel_sysctl and zernel_kernel_info against a host of plain files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import Run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for key, value in {"vm/swappiness": "60", "net/core/rmem_max": "212992", "kernel/osrelease": "1"}.items():
        file = root / "proc/sys" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    (root / "proc/swaps").write_text("Filename\n")
    (root / "boot").mkdir()
    (root / "boot/config-1").write_text("CONFIG_HZ=250\n")
    return root


@pytest.fixture
def sysctl(module: Run, root: Path, zernel: str) -> Run:
    def run(settings: dict[str, Any], **options: Any) -> dict[str, Any]:
        return module("zernel_sysctl", settings=settings, root=str(root), executable=zernel, **options)

    return run


def value(root: Path) -> str:
    return (root / "proc/sys/vm/swappiness").read_text().strip()


def test_check_mode_tells_and_changes_nothing(sysctl: Run, root: Path) -> None:
    result = sysctl({"vm.swappiness": 1}, check=True, diff=True)
    assert (result["changed"], result["status"], value(root)) == (True, "planned", "60")
    assert not (root / "etc").exists()
    live, file = result["diff"]
    assert (live["before"], live["after"]) == ("vm.swappiness = 60\n", "vm.swappiness = 1\n")
    assert file["after_header"] == "/etc/sysctl.d/99-zernel.conf"
    assert "vm.swappiness = 1\n" in file["after"]


def test_applying_is_idempotent_and_taken_back_by_an_empty_set(sysctl: Run, root: Path) -> None:
    assert sysctl({"vm.swappiness": 1})["changed"]
    assert value(root) == "1"
    again = sysctl({"vm.swappiness": 1}, diff=True)
    assert (again["changed"], again["diff"]) == (False, [])
    assert sysctl({})["changed"]
    assert value(root) == "60"
    assert not sysctl({})["changed"]


def test_a_refusal_fails_with_the_agents_words_and_the_problems_as_data(sysctl: Run, root: Path) -> None:
    result = sysctl({"vm.swapiness": 1, "net.core.rmem_max": 1})
    assert result["failed"]
    assert "ERROR: vm.swapiness: This kernel has no such setting" in result["msg"]
    assert [error["code"] for error in result["errors"]] == ["sysctl-unknown"]
    assert value(root) == "60"


def test_a_warning_of_the_agent_is_one_of_ansible(sysctl: Run, root: Path) -> None:
    later = root / "etc/sysctl.d/zz.conf"
    later.parent.mkdir(parents=True)
    later.write_text("vm.swappiness = 100\n")
    (warning,) = sysctl({"vm.swappiness": 1})["warnings"]
    assert "zz.conf" in str(warning)


def test_without_the_agent_a_module_says_which_role_brings_it(module: Run) -> None:
    result = module("zernel_sysctl", settings={}, executable="zernel-not-there")
    assert result["failed"]
    assert "Run the role zernel.fleet.agent first" in result["msg"]


def test_without_the_agent_check_mode_goes_on(module: Run) -> None:
    acting = module("zernel_sysctl", settings={}, executable="zernel-not-there", check=True)
    reading = module("zernel_kernel_info", executable="zernel-not-there", check=True)
    assert (acting["changed"], reading["changed"]) == (True, False)
    assert "No Zernel agent on this host yet" in str(acting["warnings"])


def test_an_agent_that_does_not_know_the_command_is_told_apart(module: Run, tmp_path: Path) -> None:
    old = tmp_path / "zernel"
    old.write_text("#!/bin/sh\n[ $1 = --version ] && echo zernel 0.0.1 && exit 0\necho usage >&2; exit 2\n")
    old.chmod(0o755)
    result = module("zernel_sysctl", settings={}, executable=str(old))
    assert result["failed"]
    assert "zernel 0.0.1" in result["msg"]
    assert "Run the role zernel.fleet.agent" in result["msg"]


def test_the_kernel_is_reported_and_required(module: Run, root: Path, zernel: str) -> None:
    result = module("zernel_kernel_info", root=str(root), executable=zernel)
    assert not result["changed"]
    assert (result["kernel"], result["running"]) == ("1", True)
    assert next(o for o in result["options"] if o["option"] == "CONFIG_HZ")["verdict"] == "missing"
    refused = module("zernel_kernel_info", root=str(root), executable=zernel, require=["HZ"])
    assert refused["failed"]
    assert "The kernel lacks CONFIG_HZ=1000" in refused["msg"]
