# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed anywhere takes nothing from the next one: not a setting, not what the host had."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zernel import files
from zernel.host.sysctl import apply
from zernel.host.sysctl_input import parse
from zernel.host.sysctl_knobs import COUNTERPARTS
from zernel.host.sysctl_live import LiveSettings

from .conftest import FakeHost

THP = "transparent_hugepage.enabled"
NOTHING: dict[str, Any] = {}
HIGH = {"net.core.rmem_max": 9000000, "vm.swappiness": 1, "vm.dirty_ratio": 40, THP: "always"}
LOW = {"net.core.rmem_max": 8000000, "vm.swappiness": 5, "vm.dirty_bytes": 8192}
OWN = {"net.core.rmem_max": 4096, "vm.dirty_ratio": 30}
"""``net.core.rmem_max`` below the host's own, which is then enough."""

KEYS = ("net.core.rmem_max", "vm.swappiness", "vm.dirty_ratio", "vm.dirty_bytes", THP)
WRITE = LiveSettings.write


def write(self: LiveSettings, key: str, value: str) -> None:
    """Of a pair, the kernel sets the other half to 0."""
    WRITE(self, key, value)
    if key in COUNTERPARTS:
        WRITE(self, COUNTERPARTS[key], "0")


@pytest.fixture(autouse=True)
def as_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveSettings, "write", write)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a kill loses nothing that the kernel has


def run(values: dict[str, Any], root: Path) -> None:
    apply(parse(json.dumps(values), "wanted"), root)


def state(root: Path) -> dict[str, Any]:
    """Every live value, file of ours and first-touch value; a journal that stays would show too."""
    record = json.loads(files.read_text(root / "var/lib/zernel/tuning-before.json") or "{}")
    assert set(record) <= {"version", "values", "files"}
    ours = ("etc/sysctl.d/99-zernel.conf", "etc/tmpfiles.d/zernel.conf")
    live = LiveSettings(root)
    return {
        "live": {key: live.read(key) for key in KEYS},
        "files": {path: files.read_text(root / path) for path in ours},
        "own": record.get("values"),
    }


def killed(values: dict[str, Any], root: Path, deadly: int) -> bool:
    """Apply in a process that is killed right before one of its writes; return whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            count = 0

            def mortal(call: Callable[..., None]) -> Callable[..., None]:
                def step(*args: Any, **options: Any) -> None:
                    nonlocal count
                    count += 1
                    if count == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)
                    call(*args, **options)

                return step

            LiveSettings.write = mortal(write)  # type: ignore[method-assign]
            files.replace = mortal(files.replace)
            files.remove = mortal(files.remove)
            run(values, root)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("wish", [HIGH, LOW, OWN, NOTHING], ids=["high", "low", "own", "nothing"])
@pytest.mark.parametrize("first", [NOTHING, HIGH], ids=["fresh", "had-high"])
def test_a_run_killed_at_any_write_leaves_nothing_behind(
    tmp_path: Path, first: dict[str, Any], wish: dict[str, Any]
) -> None:
    origin = tmp_path / "origin"
    FakeHost(origin)
    untouched = state(origin)
    run(first, origin)
    expected = {}
    for name, then in (("high", HIGH), ("low", LOW), ("own", OWN), ("nothing", NOTHING)):
        shutil.copytree(origin, tmp_path / name)
        run(then, tmp_path / name)
        expected[name] = state(tmp_path / name)
    assert expected["nothing"] == untouched
    deaths = 0
    while True:
        root = tmp_path / f"killed-{deaths}"
        shutil.copytree(origin, root)
        if not killed(wish, root, deaths + 1):
            break
        deaths += 1
        for name, then in (("high", HIGH), ("low", LOW), ("own", OWN), ("nothing", NOTHING)):
            again = tmp_path / f"again-{deaths}-{name}"
            shutil.copytree(root, again)
            killed(LOW if then is not LOW else HIGH, again, 3)  # and a second run dies too
            run(then, again)
            assert state(again) == expected[name], f"killed at write {deaths}, then {name}"
    assert deaths or first == wish


def test_a_value_below_the_hosts_own_is_reported_once(host: FakeHost) -> None:
    run(HIGH, host.root)
    asked = parse(json.dumps({"net.core.rmem_max": 4096}), "wanted")
    knobs = [knob for knob in apply(asked, host.root).knobs if knob.key == "net.core.rmem_max"]
    assert [(knob.verdict, knob.asked, knob.effective) for knob in knobs] == [("released", "4096", "212992")]
    assert host.get("net.core.rmem_max") == "212992"
