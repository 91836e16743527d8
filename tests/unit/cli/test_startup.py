# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cold command imports, and that Ctrl-C while it imports ends it quietly."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from zernel.cli import convert, init, validate
from zernel.cli.plain import NotPlain, PlainParser

REPO = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
BASELINE = str(REPO / "docs/examples/baseline.dts")

THIRD_PARTY = {"yaml", "jinja2", "psutil", "prometheus_client", "libfdt", "systemd", "cryptography"}
# Each of these takes a tenth of a bare Python's start or more.
SLOW = {"dataclasses", "inspect", "typing", "pathlib", "shutil", "tempfile", "subprocess", "json", "ctypes"}
# What argparse needs, and no more is needed for a version.
ARGPARSE = {"argparse", "re", "enum", "gettext", "functools"}


def imported(*command: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], check=True, capture_output=True, text=True, timeout=60
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


def test_version_imports_next_to_nothing() -> None:
    new = imported(str(BIN / "zernel"), "--version") - imported("-c", "")
    assert "zernel.cli.main" in new
    assert new.isdisjoint(THIRD_PARTY | SLOW | ARGPARSE)
    assert not {name for name in new if name.startswith(("zernel.cli.", "zernel.devicetree"))} - {
        "zernel.cli.main",
        "zernel.cli.output",
        "zernel.cli.plain",
    }


@pytest.mark.parametrize("options", [["--report"], ["--report", "--verbose"], []])
def test_init_imports_neither_slow_nor_third_party_modules(options: list[str]) -> None:
    new = imported(str(BIN / "zernel"), "init", "--input", BASELINE, *options) - imported("-c", "")
    assert "zernel.devicetree.validate" in new
    assert new.isdisjoint(THIRD_PARTY | SLOW | {"argparse", "gettext", "locale"})


# What is written plainly is read without argparse, and nothing else may be read differently.
INIT_LINES = [
    ["--input=b", "--report"],
    ["--report", "--input", "b", "--format", "json"],
    ["--input=", "--verbose", "--verbose"],
    ["--input=a", "--input=b=c"],
    ["--input", "-"],
    ["--input", "--report"],
    ["--inp=b"],
    ["--input=b", "--report=yes"],
    ["--input=b", "--format=toml"],
    ["--input=b", "--dry_run"],
    ["--input=b", "c"],
    ["--input=b", "--"],
    ["--input"],
    [],
]


@pytest.mark.parametrize("words", INIT_LINES)
def test_a_plain_line_means_what_it_means_to_argparse(words: list[str]) -> None:
    real = argparse.ArgumentParser()
    init.register(real)
    plain = PlainParser()
    init.register(plain)  # type: ignore[arg-type]
    try:
        read = vars(plain.parse(words))
    except NotPlain:
        return  # argparse's business
    assert read == vars(real.parse_args(words))


def test_most_lines_are_plain() -> None:
    plain = PlainParser()
    init.register(plain)  # type: ignore[arg-type]
    assert [bool(plain.parse(words)) for words in INIT_LINES[:4]] == [True] * 4
    for words in INIT_LINES[4:]:
        with pytest.raises(NotPlain):
            plain.parse(words)


def test_verbs_with_more_than_long_options_are_left_to_argparse() -> None:
    for verb in (convert, validate):
        with pytest.raises(NotPlain):
            verb.register(PlainParser())  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", ["60", "0", "wide", "1" * 6000])
def test_help_fits_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = subprocess.run(
        [BIN / "zernel", "init", "--help"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("usage: zernel init ")
    if columns == "60":
        assert max(map(len, done.stdout.splitlines())) <= 58


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_without_a_verb_every_verb_is_listed(words: list[str]) -> None:
    done = subprocess.run([BIN / "zernel", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if words else 2)
    assert "usage: zernel [-h] [--version] COMMAND ..." in done.stdout
    assert "create a kernel instance" in done.stdout


@pytest.mark.parametrize("words", [["inti"], ["--verson"], ["--format=json", "init"], ["init", "--inptu=x"]])
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    done = subprocess.run([BIN / "zernel", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: zernel" in done.stderr


# Sends SIGINT to itself when a certain module is first asked for, then runs a program as its script does.
INTERRUPTED = """
import os, runpy, signal, sys
wanted, program, *sys.argv[1:] = sys.argv[1:]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
if program == "-m":
    runpy.run_module("zernel", run_name="__main__")
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("zernel.cli.main", ["zernel", "init", "--input", BASELINE]),
        ("zernel.errors", ["zernel", "init", "--input", BASELINE]),
        ("argparse", ["zernel", "init", "--inp", BASELINE]),
        ("zernel.devicetree.model", ["zernel", "init", "--input", BASELINE]),
        ("zernel.errors", ["-m", "--version"]),
        ("zernel.service", ["zerneld", "--dump-config"]),
        ("zernel.config", ["zernel-scheduler", "--dump-config"]),
    ],
)
def test_ctrl_c_while_it_imports_is_quiet(module: str, command: list[str]) -> None:
    program = command[0] if command[0] == "-m" else str(BIN / command[0])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, program, *command[1:]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr in ("", "Interrupted\n")
