# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache: an entry is there whole or not at all, whatever happens to its builder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.cache import Cache, recipe_hash, tree_hash
from testbed.errors import DiskFullError, TestbedError
from testbed.image import Recipe
from testbed.tools import build

TESTS = Path(__file__).parents[2]


def _leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith(".lock-")]


def test_a_finished_entry_is_not_built_again(tmp_path: Path) -> None:
    builds: list[Path] = []

    def builder(directory: Path) -> None:
        builds.append(directory)
        (directory / "file").write_text("x")

    first = Cache(tmp_path).ensure("thing", "k", builder, 1)
    second = Cache(tmp_path).ensure("thing", "k", builder, 1)
    assert first == second
    assert (second / "file").read_text() == "x"
    assert len(builds) == 1


def test_a_failing_builder_leaves_nothing(tmp_path: Path) -> None:
    def builder(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise TestbedError("no", suggestion="none")

    with pytest.raises(TestbedError, match="no"):
        Cache(tmp_path).ensure("thing", "k", builder, 1)
    assert _leftovers(tmp_path) == []


def test_too_little_room_is_refused_before_the_build_starts(tmp_path: Path) -> None:
    def builder(directory: Path) -> None:
        pytest.fail("the build was started")

    with pytest.raises(DiskFullError, match=r"(?s)MiB free; \d+ MiB are needed.*Suggestion: Free some space"):
        Cache(tmp_path).ensure("thing", "k", builder, 1 << 40)
    assert _leftovers(tmp_path) == []


def test_a_disk_that_fills_up_while_we_write_is_named_and_cleaned(tmp_path: Path) -> None:
    def builder(directory: Path) -> None:
        (directory / "half").write_text("x")
        Path("/dev/full").write_bytes(b"x" * 4096)

    with pytest.raises(DiskFullError, match="the disk is full"):
        Cache(tmp_path).ensure("thing", "k", builder, 1)
    assert _leftovers(tmp_path) == []


def test_a_disk_that_fills_up_under_a_program_is_named_and_cleaned(tmp_path: Path) -> None:
    def builder(directory: Path) -> None:
        build(["sh", "-c", "cat /proc/version > /dev/full"], "build the thing", directory / "log")

    with pytest.raises(DiskFullError, match="the disk is full"):
        Cache(tmp_path).ensure("thing", "k", builder, 1)
    assert _leftovers(tmp_path) == []


def test_what_a_killed_builder_left_is_removed_by_the_next(tmp_path: Path) -> None:
    stale = tmp_path / ".building-thing-k"
    stale.mkdir()
    (stale / "half").write_text("x")
    entry = Cache(tmp_path).ensure("thing", "k", lambda directory: None, 1)
    assert list(entry.iterdir()) == []


_BUILDER = """
import sys, time
from pathlib import Path
from testbed.cache import Cache
def builder(directory):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
Cache(Path(sys.argv[1])).ensure("thing", "k", builder, 1)
"""


def test_two_builders_at_once_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", _BUILDER, str(tmp_path / "cache"), str(log)]
    both = [
        subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(TESTS)}, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    messages = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert log.read_text() == "built\n"


_LONG_BUILD = """
import signal, sys
from pathlib import Path
from testbed.cache import Cache
from testbed.tools import build
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
script = f"(exec -a {sys.argv[2]} sleep 300) & echo started > {sys.argv[1]}/started; wait"
Cache(Path(sys.argv[1]) / "cache").ensure(
    "thing", "k", lambda directory: build(["bash", "-c", script], "build", directory / "log"), 1)
"""


def _running(name: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(f"{name}\0".encode()):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    name = f"zernel-test-{os.getpid()}-{number}"
    process = subprocess.Popen(
        [sys.executable, "-c", _LONG_BUILD, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stderr=subprocess.DEVNULL,
    )
    _until(lambda: (tmp_path / "started").exists() and _running(name))
    process.send_signal(number)
    assert process.wait(10) != 0
    _until(lambda: not _running(name))
    if number != signal.SIGKILL:
        assert _leftovers(tmp_path / "cache") == []


def _until(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_every_input_changes_the_key() -> None:
    recipe = Recipe(sources=("deb http://mirror.invalid/debian trixie main",))
    variants = [
        recipe,
        replace(recipe, kernel_series="7.4"),
        replace(recipe, packages=(*recipe.packages, "hello")),
        replace(recipe, sources=("deb http://other.invalid/debian trixie main",)),
        replace(recipe, files="0"),
        replace(recipe, script="0"),
        replace(recipe, recipe=recipe.recipe + 1),
    ]
    assert len({variant.key for variant in variants}) == len(variants)
    assert recipe.key == replace(recipe).key


def test_a_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert recipe_hash({"a": 1, "b": 2}) == recipe_hash({"b": 2, "a": 1})


def test_a_tree_hash_sees_contents_names_and_modes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    seen = [tree_hash(tmp_path)]
    file.write_text("two")
    seen.append(tree_hash(tmp_path))
    file.chmod(0o755)
    seen.append(tree_hash(tmp_path))
    file.rename(tmp_path / "other")
    seen.append(tree_hash(tmp_path))
    assert len(set(seen)) == 4
