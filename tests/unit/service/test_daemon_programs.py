# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line that zerneld and zernel-scheduler share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zernel import __version__, daemon

BIN = Path(sys.executable).parent
each_program = pytest.mark.parametrize("program", ["zerneld", "zernel-scheduler"])


def run(program: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / program, *options], capture_output=True, text=True, timeout=60)


@each_program
def test_the_version_is_told(program: str) -> None:
    done = run(program, "--version")
    assert (done.returncode, done.stdout) == (0, f"{program} {__version__}\n")


@each_program
def test_the_default_settings_are_dumped_and_are_valid(program: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(run(program, "--dump-config").stdout)
    done = run(program, "--config", file, "--check-config")
    assert (done.returncode, done.stdout) == (0, f"{file}: valid\n")


@each_program
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "Suggestion: Name a file, not a directory\n"),
        ("absent.toml", "The configuration file does not exist"),
        ("file/below.toml", "Suggestion: Name a directory, not a file\n"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_way_out(
    program: str, name: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = run(program, "--check-config", "--config", tmp_path / name)
    assert done.returncode == 1
    assert words in done.stderr
    assert "as root" not in done.stderr


@each_program
@pytest.mark.parametrize("options", [["--dump-confg"], ["--dump-config", "--check-config"], ["now"]])
def test_wrong_usage_is_status_2(program: str, options: list[str]) -> None:
    done = run(program, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage: {program}" in done.stderr


def test_what_the_collection_looks_for_in_a_status_line() -> None:
    """plugins/modules/zernel_services.py runs where the agent is not imported: it has these words itself."""
    module = (Path(__file__).resolve().parents[3] / "plugins/modules/zernel_services.py").read_text()
    words = dict(
        line.split(" = ", 1) for line in module.splitlines() if line.startswith(("KEPT ", "NEEDS_RESTART "))
    )
    assert words["KEPT"].strip('"') in daemon.NOT_RELOADED
    assert words["NEEDS_RESTART"].strip('"') in daemon.NOT_APPLIED
