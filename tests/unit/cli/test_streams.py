# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard output that is full, closed, or read by nobody: words, and the right exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
BASELINE = REPO / "docs/examples/baseline.dts"
COMMANDS = [
    ["zernel", "--help"],
    ["zernel", "--version"],
    ["zernel", "init", f"--input={BASELINE}", "--report"],
    ["zernel", "init", f"--input={BASELINE}", "--format=json"],
    ["zerneld", "--dump-config"],
    ["zernel-scheduler", "--dump-config"],
]


def run(command: list[str], shell: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the shell's redirection behind it."""
    # Python then writes at its exit only, as it does for users; this machine may say otherwise.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" "$@" {shell}', str(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environment, **variables},
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_said_and_fails(command: list[str], unbuffered: str) -> None:
    done = run(command, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert "The result could not be printed\n  No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("shell", [">&-", "| true"])
def test_nobody_who_reads_is_no_failure(command: list[str], shell: str) -> None:
    done = run(command, shell)
    assert done.returncode == 0
    assert "ERROR" not in done.stderr


def test_a_refusal_keeps_its_status_when_nobody_reads() -> None:
    done = run(["zernel", "init", "--input=/nowhere.dts", "--format=json"], "| true")
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: Cannot read the device tree")


def test_a_character_that_the_terminal_lacks() -> None:
    done = run(COMMANDS[2], "", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "Status: ? VALID" in done.stdout


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "evil.dts"
    file.write_text("x\033]0;title\007\n")
    done = run(["zernel", "init", f"--input={file}"], "")
    assert done.returncode == 1
    assert "\033" not in done.stderr
    assert r"x\x1b]0;title\x07" in done.stderr


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full"])
def test_errors_that_nobody_can_get_leave_the_result_and_the_status(shell: str) -> None:
    for command in (["zernel", "bogus"], ["zerneld", "--bogus"]):
        done = run(command, shell)
        assert (done.returncode, done.stdout) == (2, "")
    done = run(["zernel", "init", "--input=/nowhere.dts", "--format=json"], shell)
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"][0]["code"] == "os-error"


def test_a_closed_standard_input_is_an_empty_one() -> None:
    done = run(["zernel", "sysctl", "plan", "--input=-"], "<&-")
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: <standard input>: There are no settings in the input")
