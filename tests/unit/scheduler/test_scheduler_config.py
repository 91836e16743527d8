# SPDX-License-Identifier: GPL-3.0-or-later
"""scheduler.toml: what is accepted, what is refused and with what words, and the program's own options."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.config import dump, load, parse
from zernel.errors import ZernelError
from zernel.scheduler.config import Config, default_file

SHIPPED = Path(__file__).resolve().parents[3] / "agent/config/scheduler.toml"


def _options(schema: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return path → field of every key that has a default."""
    found = {}
    for field in dataclasses.fields(schema):
        if "table" in field.metadata:
            found |= _options(field.metadata["table"], (*path, field.name))
        elif "tables" not in field.metadata:
            found[*path, field.name] = field
    return found


OPTIONS = _options(Config)
RANGES = {
    path: (field.metadata["minimum"], field.metadata["maximum"])
    for path, field in OPTIONS.items()
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


# Keys of the scheduler document, with its defaults.
DOCUMENT = {
    ("general", "phase_eval_interval_ms"): 100,
    ("general", "gpu_poll_interval_ms"): 500,
    ("general", "max_tracked_tasks"): 65536,
    ("phase_detection", "io_wait_threshold"): 0.3,
    ("phase_detection", "optimizer_burst_max_ns"): 5_000_000,
    ("phase_detection", "gpu_idle_threshold"): 10,
    ("phase_detection", "gpu_active_threshold"): 80,
    ("phase_detection", "phase_stability_count"): 3,
    ("phase_detection", "nccl_detection_enabled"): False,
    ("numa", "enabled"): True,
    ("numa", "gpu_affinity"): True,
    ("numa", "memory_affinity"): True,
    ("multi_tenant", "enabled"): False,
    ("multi_tenant", "default_priority_class"): "normal",
    ("telemetry", "metrics_port"): 9093,
    ("telemetry", "push_interval_ms"): 1000,
}


def test_the_documents_keys_have_the_documents_defaults() -> None:
    assert {path: OPTIONS[path].default for path in DOCUMENT} == DOCUMENT


def test_every_number_has_a_range_and_every_key_an_explanation() -> None:
    for path, field in OPTIONS.items():
        assert field.metadata["help"], path
        assert path in RANGES or field.type not in ("int", "float"), path


def read(text: str) -> Config | None:
    """Return the settings; None where values contradict each other, each being acceptable."""
    codes: set[str] = set()
    try:
        return parse(Config, text)
    except ZernelError as error:
        codes = {problem.code for problem in error.problems}
    assert codes == {"config-conflict"}
    return None


def value(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


@given(st.sampled_from(sorted(RANGES)), st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_taken_exactly_when_it_is_in_range(path: tuple[str, ...], number: float) -> None:
    low, high = RANGES[path]
    if OPTIONS[path].type == "int":
        number = int(number)
    text = f"[{'.'.join(path[:-1])}]\n{path[-1]} = {number}\n"
    if low <= number <= high:
        config = read(text)
        assert config is None or value(config, path) == number
    else:
        with pytest.raises(ZernelError) as caught:
            parse(Config, text, "scheduler.toml")
        problem = caught.value.problems[0]
        assert problem.locations[0].line == 2
        assert f"{low} to {high}" in problem.category


@st.composite
def files(draw: st.DrawFn) -> dict[tuple[str, ...], Any]:
    """Some keys of the file, each with an acceptable value."""
    chosen = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True))
    return {path: draw(_values(OPTIONS[path])) for path in chosen}


def _values(field: Any) -> st.SearchStrategy[Any]:
    low, high, choices = (field.metadata[name] for name in ("minimum", "maximum", "choices"))
    if choices:
        return st.sampled_from(choices)
    if field.type == "bool":
        return st.booleans()
    return st.floats(low, high) if field.type == "float" else st.integers(low, high)


@given(files())
def test_what_is_written_holds_and_all_else_keeps_its_default(wanted: dict[tuple[str, ...], Any]) -> None:
    lines = [f"{'.'.join(path)} = {json.dumps(content)}\n" for path, content in wanted.items()]
    config = read("".join(lines))
    if config is None:
        return
    for path, field in OPTIONS.items():
        default = value(Config(), path)
        assert value(config, path) == wanted.get(path, default), field.name
    assert parse(Config, dump(config, "x")) == config


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[safety]\nstarvation_bound_ms = 1000\n[scheduler]\nwatchdog_timeout_ms = 1000", 2, "after 1000"),
        ("[scheduler]\nslice_us = 50_000\n[safety]\nstarvation_bound_ms = 20", 4, "for 50 at a time"),
        ("[safety]\nejection_window_s = 60\nbackoff_s = 30", 3, "3 ejections take 90 seconds"),
        ('[tenant.a]\ncgroup = "/sys/fs/cgroup/a"', 2, "below /sys/fs/cgroup"),
        ("[safety]\nhint_lifetime_ms = 200\n[general]\nphase_eval_interval_ms = 101", 2, "every 101"),
        ("[phase_detection]\ngpu_active_threshold = 5", 2, "a GPU is active from 5 on"),
        ("[tenant.a]\ncgroup = '/x'\n[tenant.b]\ncgroup = '/x'", 4, "'a' and 'b' have one cgroup, /x"),
        ("[tenant.default]\ncgroup = '/x'", 1, "of all tasks that belong to no other"),
        ("[tenant.a]\nclass = 'training'", 1, "[tenant.a] needs 'cgroup'"),
        ("[tenant.a]\ncgroup = '/x/../y'", 2, "accepted: a path"),
        ("[tenant.a]\ncgroup = '/'", 2, "accepted: a path"),
        ("[tenant.a]\ncgroup = '/x'\nclass = 'trainin'", 3, '"training"'),
        ("[tenant.a]\ncgroup = '/x'\nwieght = 1", 3, "Unknown key 'wieght' in [tenant.a]"),
    ],
)
def test_what_cannot_be_together_is_refused_at_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ZernelError) as caught:
        parse(Config, text, "scheduler.toml")
    (problem,) = caught.value.problems
    assert words in problem.category
    assert problem.locations[0].line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[scheduler]\nslice_us = '3ms'\n", 2, "must be a whole number"),
        ("[scheduler]\nslice_us = true\n", 2, "must be a whole number"),
        ("[numa]\nenabled = 1\n", 2, "must be true or false"),
        ("[scheduler]\nslice_use = 3000\n", 2, "Did you mean 'slice_us'?"),
        ("\n[schedular]\nslice_us = 3000\n", 2, "Did you mean 'scheduler'?"),
        ("[multi_tennant]\nenabled = true\n", 1, "Did you mean 'multi_tenant'?"),
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


def test_check_config_takes_the_file_itself(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[numa]\nenabled = 1\n")
    done = program("--check-config", str(SHIPPED))
    assert (done.returncode, done.stdout) == (0, f"{SHIPPED}: valid\n")
    for words in (("--check-config", str(bad)), ("--config", str(SHIPPED), "--check-config", str(bad))):
        done = program(*words)
        assert done.returncode == 1
        assert f"In file {bad}" in done.stderr
    assert program("--check-config", str(tmp_path / "absent.toml")).returncode == 1


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
