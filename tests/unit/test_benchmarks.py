# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks, small: what they drive is the product's own, and must still be driven so; and their
arithmetic."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import instances, scheduler, scheduler_guest, turns
from benchmarks.figures import Figure, table
from c_build import build_program
from cuda_stub import build_library, build_nccl
from guest.workloads import churn
from zernel.devicetree import render
from zernel.scheduler.ab import Result

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("scale", [1, 8])
def test_the_full_host_is_valid(tmp_path: Path, scale: int) -> None:
    file = tmp_path / "host.dts"
    file.write_text(render.source(render.system_tree(instances.host(scale))))
    done = subprocess.run([instances.ZERNEL, "validate", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_transactions_and_eight_at_once_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "TRANSACTIONS", 4)
    monkeypatch.setattr(instances, "REPETITIONS", 1)
    with instances._simulation(tmp_path) as environment:
        figures = [*instances._transactions(environment), *instances._at_once(environment)]
    counted = {figure.name: figure.value for figure in figures if figure.limit is not None}
    assert counted == {
        "transactions lost": 0,
        "created at once: allocated twice": 0,
        "created at once: too few": 0,
    }


def test_the_planning_of_declared_instances_is_measured(tmp_path: Path) -> None:
    with instances._simulation(tmp_path) as environment:
        figures = list(instances._apply(tmp_path, environment, (4, 8)))
        shown = json.loads(instances._zernel(environment, "show", "--format=json"))["instances"]
    assert [figure.name for figure in figures] == [
        "apply --dry-run, 64 instances",
        "apply --dry-run: growth",
        "apply, 64 new instances",
    ]
    assert len(shown) == 64


# -- the scheduler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (99.5, 100), (100, 100)]
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert turns.percentile(list(range(100, 0, -1)), percent) == expected


@given(values=st.lists(st.floats(0, 1e9), min_size=1), percent=st.floats(0, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = turns.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9
    assert sum(value < found for value in values) < max(1, percent / 100 * len(values))


class FakeSwitch:
    """Two schedulers, one twice as fast; the machine gets slower with each run."""

    def __init__(self, ejects: bool = False, disturbed: int = 0) -> None:
        self.now, self.ejects, self.disturbed = False, ejects, disturbed
        self.waited = 0.0
        self.runs: list[bool] = []

    def use(self, ours: bool) -> None:
        self.now = ours

    def ours(self) -> bool:
        return self.now

    def kept_waiting(self) -> float:
        return self.waited

    def run(self) -> dict[str, float]:
        if len(self.runs) in range(1, 1 + self.disturbed):
            self.waited += 1  # far longer than the run takes
        self.runs.append(self.now)
        slower = 1 + len(self.runs) / 1000
        took = (5 if self.now else 10) * slower
        if self.ejects:
            self.now = False
        return {"took": took, "done": 1 / took}


def test_each_round_measures_both_schedulers_in_changing_order() -> None:
    switch = FakeSwitch()
    found = turns.in_turns(switch, switch.run, rounds=4)
    assert switch.runs == [False, False, True, True, False, False, True, True, False]
    assert found["took"].ratio == pytest.approx(0.5, rel=0.01)
    assert found["done"].ratio == pytest.approx(2, rel=0.01)
    assert len(found["took"].kernel) == len(found["took"].zernel) == 4
    assert all(value > 10 for value in found["took"].kernel)


def test_a_scheduler_that_was_ejected_in_a_run_is_not_measured() -> None:
    switch = FakeSwitch(ejects=True)
    with pytest.raises(RuntimeError, match="the scheduler changed"):
        turns.in_turns(switch, switch.run)


@pytest.mark.parametrize(("disturbed", "runs"), [(1, 4), (2, 5), (9, 7)])
def test_a_run_that_this_machine_held_up_is_repeated_at_most_twice(disturbed: int, runs: int) -> None:
    switch = FakeSwitch(disturbed=disturbed)
    found = turns.in_turns(switch, switch.run, rounds=1)
    assert len(switch.runs) == runs
    assert len(found["took"].kernel) == 1


def test_a_compared_figure_has_the_ratios_median_and_spread() -> None:
    result = Result((10.0, 20.0, 40.0), (2.0, 5.0, 4.0), lower_is_better=True)
    figure = turns.compared("delay", result, "ms", 0.2, "alone 1 ms")
    assert figure.value == pytest.approx(0.2)
    assert figure.verdict == "met"
    assert figure.detail == "0.1 to 0.25 in 3 rounds; EEVDF 20, Zernel 4 ms; alone 1 ms"


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "verdict", "shown"),
    [
        (0.98, 0.98, True, "met", ">= 0.98 x"),
        (0.979, 0.98, True, "MISSED", ">= 0.98 x"),
        (1.1, 1.1, False, "met", "<= 1.1 x"),
        (1.101, 1.1, False, "MISSED", "<= 1.1 x"),
        (3.0, None, False, "-", "-"),
    ],
)
def test_the_table_tells_limits_met_from_missed(
    value: float, limit: float | None, at_least: bool, verdict: str, shown: str
) -> None:
    figure = Figure("speed", value, "x", limit, at_least=at_least)
    assert figure.verdict == verdict
    row = re.split(" {2,}", table([figure]).splitlines()[1])
    assert row[2:4] == [shown, verdict]


def test_the_share_error_is_that_of_the_tenant_that_is_furthest_off() -> None:
    assert turns.share_error([0.25, 0.75], [200, 600]) == pytest.approx(0)
    assert turns.share_error([0.3, 0.7], [200, 600]) == pytest.approx(20)
    assert turns.share_error([0.2, 0.8], [2, 6]) == pytest.approx(20)


def test_verified_instructions_are_those_of_programs_that_came() -> None:
    before = {"3": {"name": "sd_devices", "verified": 9}}
    after = before | {"7": {"name": "on_wake", "verified": 1200}, "9": {"name": "on_stop", "verified": 34}}
    assert scheduler.verified(before, after) == (1234, "2 programs; on_wake 1,200, on_stop 34")
    with pytest.raises(RuntimeError):
        scheduler.verified(after, after)


def soak(steps_us: list[int] | None = None, **longest_s: float) -> Figure:
    """Return the figure of a soak in which each kind took so long; 0 for one that got nothing done at all."""
    mixed = {"done": {kind: int(took > 0) for kind, took in longest_s.items()}, "longest_s": longest_s}
    trained = json.dumps({"steps_us": steps_us}) if steps_us is not None else ""
    longest, steps = scheduler.soaked(json.dumps(mixed), trained)
    assert steps == len(steps_us or [])
    return scheduler.stalls(longest)


def test_a_kind_of_tasks_has_stalled_when_it_once_took_too_long() -> None:
    healthy = soak([30_000, 2_500_000], free=0.1, nice=4.0)
    assert (healthy.verdict, healthy.detail) == ("met", "the longest that one took: 4 s, nice")
    for stalled in (
        soak([30_000], free=0.1, nice=10.5),
        soak([30_000], free=0.1, nice=0.0),
        soak([30_000, 10_500_000], free=0.1),
        soak([], free=0.1),
        soak(None, free=0.1),
    ):
        assert (stalled.value, stalled.verdict) == (1, "MISSED")


def test_a_mix_of_tasks_tells_the_longest_that_each_kind_took() -> None:
    done, longest, start = SimpleNamespace(value=0), SimpleNamespace(value=0.0), threading.Event()
    start.set()

    def work(of: SimpleNamespace) -> None:
        of.value += 1
        time.sleep(0.2 if of.value == 2 else 0.001)

    churn.run("free", work, 0, done, longest, start, 0.3)
    assert done.value > 2
    assert longest.value >= 0.2


def test_hackbench_is_understood() -> None:
    assert scheduler.hackbench_seconds("Running in process mode\nTime: 1.234\n") == 1.234
    with pytest.raises(RuntimeError):
        scheduler.hackbench_seconds("SENDER: write (error: Resource temporarily unavailable)\n")


def test_the_training_loop_takes_steps_and_says_what_it_waited_for(tmp_path: Path) -> None:
    program = build_program(HERE / "guest/workloads/training.c", tmp_path)
    words = [f"cuda={build_library(tmp_path)}", f"nccl={build_nccl(tmp_path)}", "hogs=1", "seconds=1"]
    words += ["sync_us=1000", "batches=2", "optimizer_us=100"]
    done = subprocess.run([program, *words], capture_output=True, check=True)
    loop = scheduler_guest.loop(json.loads(done.stdout))
    # Each step waits four times for its batches, and once for the optimizer's work.
    assert len(loop.waits_ms) == 5 * len(loop.steps_ms) > 0
    # A sleep that is as long as it was asked to be stays; what it is too long goes.
    assert min(loop.prompt_ms) >= 5
    late = [step - prompt for step, prompt in zip(loop.steps_ms, loop.prompt_ms, strict=True)]
    assert min(late) >= 0 < max(late)
    assert loop.hogs > 0
    assert loop.cpu > 0
    unknown = subprocess.run([program, "hog=1"], capture_output=True, text=True)
    assert (unknown.returncode, unknown.stderr) == (2, "unknown: hog=1\n")
