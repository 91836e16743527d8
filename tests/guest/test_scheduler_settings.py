# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings that the BPF side reads, flipped while the scheduler runs: what follows, as ratios within one run.

Which test shows the effect of which key is in tests/unit/scheduler/test_scheduler_keys.py. Those of tenants,
NUMA nodes, hints and roles are flipped where these are tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scheduler_host import HERE, Host

from bpf_build import build_object
from zernel.config import parse
from zernel.scheduler.config import Config

pytestmark = pytest.mark.quiet

PHASES = ("data_loading", "gpu_compute", "nccl_collective", "optimizer_step", "unknown")
ROLES = ("interactive", "launcher")
FLAT = {"priority": 0, "preemption": "standard", "latency_target_us": 0}
HOGS = 4

# All rows alike, long slices, and no bound that would get in the way. Only what a test changes acts.
BASE: dict[str, dict[str, object]] = {
    "scheduler": {
        "slice_us": 20_000,
        "priority_step_us": 5000,
        "latency_budget_percent": 90,
        "preemptions_per_ms": 10,
        "short_burst_us": 50,
    },
    "safety": {"starvation_bound_ms": 5000, "hint_lifetime_ms": 60_000},
    **{f"policy.{row}": dict(FLAT) for row in (*PHASES, *ROLES)},
}

SHIPPED = parse(Config, "").policy

URGENT = {"priority": 10, "preemption": "preemptive", "latency_target_us": 100}
"""A row: takes a CPU from the hogs."""


def text(changes: dict[str, dict[str, object]]) -> str:
    """Return a settings file: ``BASE`` with these changes, by table."""
    lines = []
    for table, keys in BASE.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in (keys | changes.get(table, {})).items()]
    return "\n".join(lines) + "\n"


def plan(name: str = "optimizer_step", /, **changes: dict[str, object]) -> dict[str, Any]:
    """Return a round of workloads/effects.py whose waker has that row of the policy table.

    The hogs have another row, which stays as it is. ``changes`` are by table; ``row`` is that of the waker.
    """
    tables = {f"policy.{name}" if table == "row" else table: dict(keys) for table, keys in changes.items()}
    other = "gpu_compute" if name != "gpu_compute" else "data_loading"
    if name in ROLES:
        # The waker's bursts of a millisecond are short ones then.
        tables.setdefault("scheduler", {})["short_burst_us"] = 10_000
    return {
        "waker": name if name in PHASES and name != "unknown" else None,
        "hogs": [other] * HOGS,
        "gpu": name == "launcher",
        "settings": text(tables),
    }


def effects(host: Host, *rounds: dict[str, Any], probe: str = "") -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = json.loads(host.workload("effects", probe, stdin=json.dumps(rounds)))
    return said


@pytest.fixture
def probe(host: Host, tmp_path: Path) -> str:
    """What stands for the GPU's probes, in the guest."""
    host.guest.put(build_object(HERE / "objects/gpu_sync.bpf.c", tmp_path), "/root/gpu_sync.bpf.o")
    return "/root/gpu_sync.bpf.o"


def test_each_key_of_each_row_of_the_policy_table_acts(host: Host, probe: str) -> None:
    """For each row: how long a thread of it waits, with one key after the other flipped."""
    rows = [*PHASES, *ROLES]
    rounds = []
    for row in rows:
        # A target acts with the preemption that it is shipped with.
        shipped = getattr(SHIPPED, row)
        preemption = shipped.preemption if shipped.latency_target_us else "preemptive"
        behind = {"priority": -10, "preemption": preemption, "latency_target_us": 0}
        rounds += [
            plan(row, row=values)
            for values in (
                behind,
                behind | {"priority": 10},
                behind | {"priority": 10, "preemption": "standard"},
                behind | {"latency_target_us": 100},
            )
        ]
    said = iter(effects(host, *rounds, probe=probe))
    wrong = {}
    for row in rows:
        slow, first, polite, soon = four = [next(said) for _ in range(4)]
        waits = [one["wait_ms"] for one in four]
        assert {one["row"] for one in four} == {f"POLICY_{row.upper()}"}, (row, four)
        acts = {
            "priority": slow["wait_ms"] > 5 * first["wait_ms"],
            "preemption": polite["wait_ms"] > 3 * first["wait_ms"],
            "latency_target_us": slow["wait_ms"] > 2 * soon["wait_ms"]
            and soon["counters"]["latency_runs"] > 10 * slow["counters"]["latency_runs"],
        }
        wrong |= {f"{row}.{key}": waits for key, does in acts.items() if not does}
    assert wrong == {}


def test_tasks_that_yield_get_what_others_leave(host: Host) -> None:
    hogs = ["gpu_compute", "gpu_compute", "data_loading", "data_loading"]
    rounds = [
        plan() | {"hogs": hogs, "settings": text({"policy.gpu_compute": {"preemption": preemption}})}
        for preemption in ("standard", "yield")
    ]
    standard, yielding = effects(host, *rounds)
    assert 0.35 < sum(standard["hogs"][:2]) < 0.65, standard
    assert sum(yielding["hogs"][:2]) < 0.1, yielding


def test_longer_slices_mean_fewer_switches(host: Host) -> None:
    # Two ticks of Debian's kernel, and twenty.
    short, long = effects(host, *(plan(scheduler={"slice_us": us}) for us in (8000, 80_000)))
    assert short["switches"] > 3 * long["switches"] > 0, (short, long)


def test_a_step_of_priority_is_worth_what_it_says(host: Host) -> None:
    behind = {"priority": -10}
    nothing, much = effects(host, *(plan(row=behind, scheduler={"priority_step_us": us}) for us in (0, 5000)))
    assert much["wait_ms"] > 3 * nothing["wait_ms"], (much, nothing)


def test_the_rate_of_preemptions_holds(host: Host) -> None:
    """But for threads of low latency."""
    low_latency = URGENT | {"preemption": "low_latency"}
    often, never, always = effects(
        host,
        plan(row=URGENT),
        plan(row=URGENT, scheduler={"preemptions_per_ms": 0}),
        plan(row=low_latency, scheduler={"preemptions_per_ms": 0}),
    )
    assert often["counters"]["preempted"] > 20
    assert always["counters"]["preempted"] > 20
    assert never["counters"]["preempted"] == 0
    assert never["counters"]["preempt_denied"] > 20
    assert never["wait_ms"] > 3 * often["wait_ms"], (never, often)
    assert never["wait_ms"] > 3 * always["wait_ms"], (never, always)


def test_threads_of_low_latency_leave_the_rate_to_others(host: Host) -> None:
    rate = {"preemptions_per_ms": 0.1}
    _, after = effects(
        host,
        plan(row=URGENT | {"preemption": "low_latency"}, scheduler=rate),
        plan(row=URGENT, scheduler=rate),
    )
    assert after["counters"]["preempted"] > 20, after


def test_whoever_wakes_takes_the_cpu_of_a_thread_that_yields(host: Host) -> None:
    never = {"preemptions_per_ms": 0}
    others = {"preemption": "yield"}
    kept, left = effects(host, plan(scheduler=never), plan(scheduler=never, **{"policy.gpu_compute": others}))
    assert kept["counters"]["preempted"] == 0, kept
    assert left["counters"]["preempted"] > 20, left
    assert kept["wait_ms"] > 3 * left["wait_ms"], (kept, left)


def test_the_latency_budget_bounds_what_urgent_threads_take(host: Host) -> None:
    safety = {"starvation_bound_ms": 100}
    most, nothing = effects(
        host,
        *(
            plan(row=URGENT, scheduler={"latency_budget_percent": percent}, safety=safety) | {"burst_ms": 4.0}
            for percent in (90, 0)
        ),
    )
    # Beyond it the thread waits in its tenant's order, which gives it its share all the same.
    assert most["counters"]["latency_runs"] > 4 * nothing["counters"]["latency_runs"], (most, nothing)
    assert nothing["wakes"] > 0


def test_what_counts_as_short_decides_the_role(host: Host) -> None:
    # Half a millisecond: far from the third of its sleep up to which a thread becomes an interactive one.
    said = effects(host, *(plan(row) | {"burst_ms": 0.5} for row in ("unknown", "interactive")))
    assert [one["row"] for one in said] == ["POLICY_UNKNOWN", "POLICY_INTERACTIVE"]
