# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo and the benchmarks end with words when something in them fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.figures import Figure
from demo import __main__ as demo
from demo import provision
from testbed import TestbedError

RECAP = "host : ok=9 changed=3 unreachable=0 failed={}\n"


@pytest.fixture
def playbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the program that stands in for ansible-playbook, to be written."""
    program = tmp_path / ".venv/bin/ansible-playbook"
    program.parent.mkdir(parents=True)
    monkeypatch.setattr(provision, "REPO", tmp_path)
    return program


def _write(program: Path, output: str, status: int) -> None:
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{output}'\nexit {status}\n")
    program.chmod(0o755)


def test_a_run_of_the_playbook_says_how_many_tasks_changed_something(playbook: Path) -> None:
    _write(playbook, "TASK changed=1 of something\n" + RECAP.format(0), 0)
    assert provision.site(Path("inventory"), quiet=True).changed == 3


def test_a_playbook_that_fails_quietly_shows_the_task_that_failed(playbook: Path) -> None:
    _write(playbook, "fatal: [host]: no such package\n" + RECAP.format(1), 2)
    with pytest.raises(
        TestbedError, match=r"(?s)playbook failed.*status 2.*\| fatal: .*no such package.*Suggestion"
    ):
        provision.site(Path("inventory"), quiet=True)


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (TestbedError("No", "state", suggestion="Do"), "ERROR: testbed: No\n  state\n\n  Suggestion: Do"),
        (OSError(13, "Denied", "/x"), "ERROR: testbed: Cannot finish the demo\n  Denied: /x"),
        (ValueError("odd"), "ERROR: testbed: Cannot finish the demo\n  odd\n\n  Suggestion: "),
    ],
)
def test_a_demo_that_fails_says_what_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception, shown: str
) -> None:
    def fail(began: float) -> int:
        raise raised

    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(demo, "_demo", fail)
    assert demo.main() == 1
    assert capsys.readouterr().err.strip().startswith(shown)


def test_a_demo_without_qemu_is_refused_before_an_image_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("testbed.tools._SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ZERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == 1
    assert "Suggestion: apt-get install openssh-client qemu-system-x86" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_figures_measured_before_a_failure_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure() -> Iterator[Figure]:
        yield Figure("first", 1.5, "s", 2)
        raise TestbedError("The guest is gone", suggestion="Boot another")

    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(benchmarks, "GROUPS", {"one": measure})
    assert benchmarks.main() == 1
    output = capsys.readouterr()
    assert "ERROR: testbed: The guest is gone" in output.err
    assert "1.5 s" in output.out
