# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparing a workload under two schedulers: figures, what ends it, and that what ran before runs again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.errors import ZernelError
from zernel.scheduler import ab
from zernel.scheduler.ab import Result, Workload, compare


class FakeSwitch:
    """Two schedulers, told apart by the content of a file; a second counts how often one was enabled."""

    def __init__(self, path: Path, ours: bool) -> None:
        self.path, self.sequence = path, path.with_name("sequence")
        self.changes: list[bool] = []
        self.path.write_text(str(int(ours)))
        self.sequence.write_text("3")

    def use(self, ours: bool) -> None:
        self.changes.append(ours)
        self.sequence.write_text(str(self.enables() + ours))
        self.path.write_text(str(int(ours)))

    def ours(self) -> bool:
        return self.path.read_text() == "1"

    def enables(self) -> int:
        return int(self.sequence.read_text())


@pytest.fixture(params=[False, True], ids=["kernel", "zernel"])
def switch(request: pytest.FixtureRequest, tmp_path: Path) -> FakeSwitch:
    return FakeSwitch(tmp_path / "scheduler", request.param)


def shell(text: str, limit_s: float = 30, value: str | None = None, **options: bool) -> Workload:
    return Workload(("/bin/sh", "-c", text), limit_s, re.compile(value) if value else None, **options)


def ended(pid: int) -> bool:
    """Tell whether a process is gone; one that nobody has waited for yet is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def refused(workload: Workload, switch: FakeSwitch) -> str:
    before = switch.ours()
    with pytest.raises(ZernelError) as caught:
        compare(workload, switch, 2)
    assert switch.ours() == before
    return caught.value.problems[0].render()


def test_each_round_runs_under_both_and_the_order_changes(switch: FakeSwitch) -> None:
    before = switch.ours()
    log = switch.path.with_name("log")
    work = shell(
        f"cat {switch.path} >> {log}; echo speed $(($(cat {switch.path}) * 100 + 100))", value="([0-9]+)"
    )
    said: list[str] = []
    result = compare(work, switch, 3, said.append)
    assert log.read_text() == str(int(before)) + "01" + "10" + "01"
    assert switch.ours() == before
    assert (result.kernel, result.zernel) == ((100.0,) * 3, (200.0,) * 3)
    assert result.ratio == 2.0
    assert len(said) == 7


def test_without_a_pattern_the_time_counts(switch: FakeSwitch) -> None:
    result = compare(shell(f"sleep 0.$(cat {switch.path})2"), switch, 1)
    assert 0.02 <= result.kernel[0] < result.zernel[0]
    assert result.ratio > 1


def test_a_command_that_goes_on_is_ended_with_all_that_it_started(switch: FakeSwitch) -> None:
    pids = switch.path.with_name("pids")
    work = shell(f"echo 7; sleep 100 & echo $! >> {pids}; wait", 0.3, "([0-9]+)")
    assert compare(work, switch, 1).ratio == 1.0
    for pid in pids.read_text().split():
        assert ended(int(pid))


def test_what_left_the_session_is_ended_too_and_what_was_there_is_not(switch: FakeSwitch) -> None:
    pids = switch.path.with_name("pids")
    with subprocess.Popen(["sleep", "100"]) as other:
        ready = pids.with_name("ready")
        leaves = f"setsid sh -c 'echo $$ >> {pids}; touch {ready}; exec sleep 100'"
        work = shell(f"rm -f {ready}; {leaves} & until [ -e {ready} ]; do :; done")
        compare(work, switch, 1)
        assert other.poll() is None
        other.kill()
    assert len(pids.read_text().split()) == 3
    for pid in pids.read_text().split():
        assert ended(int(pid))


def test_a_command_that_ignores_the_end_is_killed(
    switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ab, "_GRACE_S", 0.1)
    work = shell("trap '' TERM; echo 3; while :; do sleep 0.05; done", 0.2, "([0-9]+)")
    assert compare(work, switch, 1).ratio == 1.0


def test_only_the_last_figure_of_much_output_counts(switch: FakeSwitch) -> None:
    work = shell(
        "echo speed 1; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo speed 5", value="speed ([0-9]+)"
    )
    assert compare(work, switch, 1).zernel == (5.0,)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (shell("echo broken; exit 3"), "exit status 3\n  broken"),
        (shell("kill -SEGV $$"), "was ended by SIGSEGV"),
        (shell("sleep 100", 0.1), "did not end within 0.1 s"),
        (shell("echo none", value="speed ([0-9]+)"), "No number was found"),
        (shell("echo speed x", value="speed (.)"), "found: 'x'"),
        (shell("echo speed 0", value="speed ([0-9])"), "figure is 0"),
        (shell("echo speed nan", value="speed (nan)"), "figure is nan"),
        (shell("echo speed inf", value="speed (inf)"), "figure is inf"),
        (Workload(("/does/not/exist",), 1.0), "Cannot run /does/not/exist"),
    ],
    ids=["fails", "crashes", "endless", "no figure", "no number", "zero", "nan", "inf", "no command"],
)
def test_a_run_that_means_nothing_ends_it(switch: FakeSwitch, work: Workload, words: str) -> None:
    said = refused(work, switch)
    assert words in said
    assert "Suggestion:" in said


def test_a_scheduler_that_is_ejected_meanwhile_is_noticed(switch: FakeSwitch) -> None:
    before = switch.ours()
    with pytest.raises(ZernelError, match="changed during a run"):
        compare(shell(f"printf 0 > {switch.path}"), switch, 2)
    assert switch.ours() == before


def test_a_scheduler_that_is_ejected_and_comes_back_within_a_run_is_noticed(switch: FakeSwitch) -> None:
    before = switch.ours()
    ejected = f"[ $(cat {switch.path}) = 0 ] || echo $(($(cat {switch.sequence}) + 1)) > {switch.sequence}"
    with pytest.raises(ZernelError, match="changed during a run"):
        compare(shell(ejected), switch, 2)
    assert switch.ours() == before


def test_a_workload_that_is_killed_from_outside_ends_it(switch: FakeSwitch) -> None:
    pid = switch.path.with_name("pid")
    work = shell(f"echo $$ > {pid}; exec sleep 100")

    def kill() -> None:
        while not (pid.exists() and pid.read_text().strip()):
            threading.Event().wait(0.01)
        os.kill(int(pid.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert "was ended by SIGKILL" in refused(work, switch)
    thread.join()


INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from scheduler.test_scheduler_ab import FakeSwitch, shell
from zernel.scheduler.ab import compare
switch = FakeSwitch(Path(sys.argv[2]), sys.argv[3] == "1")
try:
    pids = sys.argv[2] + ".pids"
    compare(shell(f"echo $$ >> {pids}; [ $(wc -l < {pids}) = 1 ] || sleep 100", 200), switch, 5)
except KeyboardInterrupt:
    print(int(switch.ours()), "".join(str(int(one)) for one in switch.changes))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("before", ["0", "1"])
def test_a_signal_ends_the_workload_and_puts_back_what_ran(tmp_path: Path, number: int, before: str) -> None:
    place = tmp_path / "scheduler"
    pids = tmp_path / "scheduler.pids"
    command = [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parents[1]), str(place), before]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not pids.exists() or len(pids.read_text().splitlines()) < 2:
            assert process.poll() is None
            threading.Event().wait(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert said.split()[0] == before
    for pid in pids.read_text().split():
        assert ended(int(pid))


def test_a_signal_waits_until_the_scheduler_has_changed(tmp_path: Path) -> None:
    class Interrupted(FakeSwitch):
        def use(self, ours: bool) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().use(ours)

    switch = Interrupted(tmp_path / "scheduler", False)
    with pytest.raises(KeyboardInterrupt):
        compare(shell("true"), switch, 1)
    # The first one was to the kernel's, which ran: the signal came after it.
    assert (switch.changes, switch.ours()) == ([False], False)


FIGURES = st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=9)


@given(FIGURES, st.booleans())
def test_clear_is_only_what_all_of_enough_rounds_agree_on(
    pairs: list[tuple[float, float]], lower: bool
) -> None:
    theirs, ours = zip(*pairs, strict=True)
    result = Result(theirs, ours, lower)
    assert min(result.ratios) <= result.ratio <= max(result.ratios)
    agree = all(b < a for a, b in pairs) or all(b > a for a, b in pairs)
    assert (result.verdict != "unclear") == (agree and len(pairs) >= ab.CLEAR_ROUNDS)
    assert result.verdict != "better" or (ours[0] < theirs[0]) == lower
    mirrored = Result(theirs, ours, not lower).verdict
    assert {result.verdict, mirrored} in ({"better", "worse"}, {"unclear"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("2m", 120),
        ("90", 90),
        ("1.5s", 1.5),
        ("0s", None),
        ("2h", None),
        ("61m", None),
    ],
)
def test_durations(text: str, expected: float | None) -> None:
    assert ab.seconds(text) == expected


@given(st.text())
def test_no_text_is_a_wrong_duration(text: str) -> None:
    found = ab.seconds(text)
    assert found is None or 0 < found <= 3600
