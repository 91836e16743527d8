# SPDX-License-Identifier: GPL-3.0-or-later
"""scheduler.toml: what is accepted, what is refused and with what words, and the program's own options."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.config import load, parse
from zernel.errors import ZernelError
from zernel.scheduler.config import Config, default_file

SHIPPED = Path(__file__).resolve().parents[3] / "agent/config/scheduler.toml"
RANGES = {
    (table.name, field.name): (field.metadata["minimum"], field.metadata["maximum"])
    for table in dataclasses.fields(Config)
    for field in dataclasses.fields(table.metadata["table"])
    if field.metadata["minimum"] is not None
}


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zernel.scheduler.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_shipped_file_is_what_the_program_dumps_and_holds_the_defaults() -> None:
    dumped = program("--dump-config")
    assert dumped.returncode == 0
    assert dumped.stdout == SHIPPED.read_text() == default_file()
    assert load(Config, SHIPPED) == Config()


def test_every_number_has_a_range() -> None:
    for part in dataclasses.fields(Config):
        for field in dataclasses.fields(part.metadata["table"]):
            if field.type in ("int", "float"):
                assert (part.name, field.name) in RANGES, field.name


@given(st.sampled_from(sorted(RANGES)), st.integers())
def test_a_number_is_taken_exactly_when_it_is_in_range(place: tuple[str, str], number: int) -> None:
    table, key = place
    low, high = RANGES[place]
    text = f"[{table}]\n{key} = {number}\n"
    if low <= number <= high:
        assert getattr(getattr(parse(Config, text), table), key) == number
    else:
        with pytest.raises(ZernelError) as caught:
            parse(Config, text, "scheduler.toml")
        problem = caught.value.problems[0]
        assert problem.locations[0].line == 2
        assert f"{low} to {high}" in problem.category


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[scheduler]\nslice_us = '3ms'\n", 2, "must be a whole number"),
        ("[scheduler]\nslice_us = true\n", 2, "must be a whole number"),
        ("[numa]\nenabled = 1\n", 2, "must be true or false"),
        ("[scheduler]\nslice_use = 3000\n", 2, "Did you mean 'slice_us'?"),
        ("\n[schedular]\nslice_us = 3000\n", 2, "Did you mean 'scheduler'?"),
        ("[multi_tenant]\nenabled = true\n", 1, "Unknown table 'multi_tenant'"),
        ("[scheduler\nslice_us = 3000\n", 1, "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_a_suggestion(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "scheduler.toml"
    path.write_text(text)
    done = program("--check-config", "--config", str(path))
    assert done.returncode == 1
    assert words in done.stderr
    assert f"Line {line}: {text.splitlines()[line - 1]}".rstrip() in done.stderr
    assert "Suggestion:" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_says_that_a_good_file_is_valid() -> None:
    done = program("--check-config", "--config", str(SHIPPED))
    assert (done.returncode, done.stdout) == (0, f"{SHIPPED}: valid\n")


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    done = program("--check-config", "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_wrong_usage_is_status_2() -> None:
    assert program("--dump-confg").returncode == 2
    assert program("--dump-config", "--check-config").returncode == 2
