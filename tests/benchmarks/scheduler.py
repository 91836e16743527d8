# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scheduler does for training, and what it costs, beside EEVDF in the same guest and the same run.

Ratios are medians of rounds under each scheduler in turns. ``ZERNEL_SOAK_S``: how long the soak takes.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.figures import Figure
from benchmarks.scheduler_guest import (
    CPUS,
    PROGRAMS,
    Bench,
    booted,
    scrape,
    training_words,
)
from benchmarks.turns import ROUNDS, compared, in_turns, percentile, share_error, spread

HOGS = 2 * CPUS
RUN_S = 8
TRAINING = {
    "sync_us": 1500,
    "loaders": 2,
    "batches": 4,
    "launch_us": 300,
    "optimizer_us": 4000,
    "nccl": f"{PROGRAMS}/libnccl.so.2",
}
LAUNCHER_SYNC_US = 5000
HACKBENCH = ("-g", 4, "-l", 40)
ROUND_TRIPS = 10_000
WEIGHTS = (200, 600)
ACTIVE = 20
SOAK_S = int(os.environ.get("ZERNEL_SOAK_S", "600"))
STALL_S = 10.0
"""What got nothing done for so long has stalled. It is the kernel's watchdog, by default, and several times
what the starvation bound lets the lightest task wait."""
_POLL_S = 4


def measure(parts: Sequence[str] = ()) -> Iterator[Figure]:
    """Yield the figures of issue 4; of these parts only, if any are given."""
    for counted, group in ((True, COUNTED_PARTS), (False, PARTS)):
        chosen = [part for part in group if not parts or part in parts]
        if not chosen:
            continue
        with booted(counted) as bench:
            for part in chosen:
                bench.reset()
                yield from group[part](bench)


# -- what it is for -----------------------------------------------------------------------------------------


def _launcher(bench: Bench) -> Iterator[Figure]:
    """A thread that launches work and waits for the GPU, 5 ms each time, beside hogs."""

    def run() -> dict[str, float]:
        loop = bench.training(sync_us=LAUNCHER_SYNC_US, seconds=RUN_S, hogs=HOGS)
        return {"p50": percentile(loop.waits_ms, 50), "p99": percentile(loop.waits_ms, 99), "hogs": loop.hogs}

    bench.use(False)
    alone = percentile(bench.training(sync_us=LAUNCHER_SYNC_US, seconds=RUN_S).waits_ms, 99)
    found = in_turns(bench, run)
    more = f"alone {alone:.3g} ms"
    yield compared("launcher: wake-up delay p99 under hogs", found["p99"], "ms", 0.15, more)
    yield compared("launcher: wake-up delay p50 under hogs", found["p50"], "ms")
    yield compared("launcher: hogs' throughput beside it", found["hogs"], "rounds/s")


def _training(bench: Bench) -> Iterator[Figure]:
    """A training loop with hogs."""

    def beside_hogs() -> dict[str, float]:
        loop = bench.training(seconds=RUN_S, hogs=HOGS, **TRAINING)
        return {
            "step": statistics.fmean(loop.prompt_ms),
            "p99": percentile(loop.prompt_ms, 99),
            "late": statistics.fmean(loop.steps_ms),
            "hogs": loop.hogs,
        }

    found = in_turns(bench, beside_hogs)
    more = f"{found['late'].ratio:.3g} x with what timers were late"
    yield compared("training: step time under hogs", found["step"], "ms", 0.7, more)
    yield compared("training: step time p99 under hogs", found["p99"], "ms")
    yield compared("training: hogs' throughput beside it", found["hogs"], "rounds/s", 0.5, at_least=True)


def _tenants(bench: Bench) -> Iterator[Figure]:
    """Two tenants that want all CPUs, the lighter one with more tasks."""
    bench.use(False)
    errors = []
    for _ in range(ROUNDS):
        wanted = (f"{WEIGHTS[0]}:8", f"{WEIGHTS[1]}:2")
        report = json.loads(bench.host.workload("tenants", RUN_S, "0,1", 100, *wanted))
        errors.append(share_error(report["shares"], WEIGHTS))
    yield Figure("tenants 2:6: share error", statistics.median(errors), "%", 10, spread(errors))


# -- what it costs ------------------------------------------------------------------------------------------


def _alone(bench: Bench) -> Iterator[Figure]:
    """A training loop that has the machine for itself."""

    def alone() -> dict[str, float]:
        loop = bench.training(seconds=RUN_S, **TRAINING)
        return {"steps": 1000 / statistics.fmean(loop.steps_ms), "cpu": loop.cpu}

    found = in_turns(bench, alone, lower_is_better=False)
    more = f"training uses {statistics.median(found['cpu'].kernel):.2g} of {CPUS} CPUs"
    yield compared("training: throughput without hogs", found["steps"], "steps/s", 0.98, more, at_least=True)


def _switching(bench: Bench) -> Iterator[Figure]:
    """Programs that do little but wake each other."""

    def hackbench() -> dict[str, float]:
        return {"seconds": hackbench_seconds(bench.program("hackbench", *HACKBENCH))}

    def pingpong() -> dict[str, float]:
        return {"seconds": float(bench.program("pingpong", ROUND_TRIPS))}

    words = " ".join(map(str, HACKBENCH))
    yield compared("hackbench", in_turns(bench, hackbench)["seconds"], "s", 1.1, f"rt-tests, {words}")
    found = in_turns(bench, pingpong)["seconds"]
    yield compared("pipe ping-pong", found, "s", 1.1, f"{ROUND_TRIPS:,} round trips")


def hackbench_seconds(text: str) -> float:
    """Return the time that hackbench says it took."""
    found = re.search(r"^Time: (\S+)$", text, re.M)
    if found is None:
        raise RuntimeError(f"hackbench says no time: {text[-200:]}")
    return float(found[1])


def _load(bench: Bench) -> Iterator[Figure]:
    """How much the kernel verifies, and how long loading takes."""
    bench.use(False)
    before = json.loads(bench.host.workload("programs"))
    seconds = []
    for _ in range(ROUNDS):
        bench.use(True)
        seconds.append(bench.metrics()["zernel_scheduler_load_seconds"])
        after = json.loads(bench.host.workload("programs"))
        bench.use(False)
    total, detail = verified(before, after)
    yield Figure("scheduler: verified instructions", total, "", None, detail)
    yield Figure("scheduler: load and attach", statistics.median(seconds), "s", None, spread(seconds))


Programs = Mapping[str, Mapping[str, str | int]]


def verified(before: Programs, after: Programs) -> tuple[int, str]:
    """Return how many instructions of the programs that came were verified, and which take the most."""
    came = [program for number, program in after.items() if number not in before]
    if not came:
        raise RuntimeError("no BPF program was loaded")
    most = sorted(came, key=lambda program: -int(program["verified"]))[:3]
    words = ", ".join(f"{program['name']} {program['verified']:,}" for program in most)
    return sum(int(program["verified"]) for program in came), f"{len(came)} programs; {words}"


def _daemon(bench: Bench) -> Iterator[Figure]:
    """What the daemon uses while 1,000 processes are there."""
    slowness = bench.slowness()
    bench.host.settings("")
    bench.use(True)
    for active, limit in ((ACTIVE, 0.5), (10 * ACTIVE, None)):
        with bench.threads(1000, 1, active):
            time.sleep(10)
            there = [100 * bench.service_cpu(10) for _ in range(3)]
            resident = bench.service_rss()
        here = [value / slowness for value in there]
        slow = f"the guest, where Python is {slowness:.1f} x slower than here"
        detail = f"{spread(here)}: {statistics.median(there):.3g}% in {slow}"
        name = f"daemon: CPU, 1,000 processes, {active} of them active"
        yield Figure(name, statistics.median(here), "% of a core", limit, detail)
    yield Figure("daemon: memory, 1,000 processes", resident, "MiB", 40, "resident")


def _tracked(bench: Bench) -> Iterator[Figure]:
    """What 64 times as many threads cost that sleep, with as many as before that do not."""
    few, many = (50, 20, ACTIVE), (63, 1000, 0)
    bench.host.settings("")
    bench.guest.run("echo 200000 > /proc/sys/kernel/threads-max; echo 4194304 > /proc/sys/kernel/pid_max")
    times: dict[tuple[bool, bool], float] = {}

    def pingpong(ours: bool, crowded: bool) -> None:
        bench.use(ours)
        times[ours, crowded] = statistics.median(
            float(bench.program("pingpong", ROUND_TRIPS)) for _ in range(3)
        )

    with bench.threads(*few):
        pingpong(False, False)
        pingpong(True, False)
        time.sleep(5)
        alone = bench.service_cpu(20)
        with bench.threads(*many):
            pingpong(True, True)
            time.sleep(5)
            crowded = bench.service_cpu(20)
            tracked = bench.metrics()['zernel_scheduler_tasks{type="total"}']
            pingpong(False, True)
            bench.use(True)
            again = bench.metrics()["zernel_scheduler_load_seconds"]
    detail = f"{100 * alone:.2g}% and {100 * crowded:.2g}% of a CPU of the guest; {tracked:,.0f} threads"
    yield Figure("1k to 64k threads: daemon's CPU", crowded / alone, "x", None, detail)
    ours, theirs = (times[who, True] / times[who, False] for who in (True, False))
    yield Figure("1k to 64k threads: pipe ping-pong", ours, "x", None, f"EEVDF {theirs:.3g} x")
    yield Figure("64k threads: load and attach", again, "s", None, "while they are there")


# -- whether it lasts ---------------------------------------------------------------------------------------


def _soak(bench: Bench) -> Iterator[Figure]:
    """A hard mix of tasks beside a training loop and hogs, for a while."""
    # Longest waits are those of the last while: with one longer than a look at them, none is missed.
    bench.host.settings(f"[telemetry]\npush_interval_ms = {1000 * _POLL_S + 2000}\n")
    bench.use(True)
    churn, loop = f"{PROGRAMS}/churn.json", f"{PROGRAMS}/training.json"
    words = training_words(seconds=SOAK_S, hogs=HOGS, **TRAINING)
    mix = ("/usr/bin/python3", "/root/workloads/churn.py", SOAK_S)
    bench.start("soak-churn", {"StandardOutput": f"file:{churn}"}, *mix)
    bench.start(
        "soak-training",
        {"StandardOutput": f"file:{loop}"},
        f"{PROGRAMS}/training",
        *words,
    )
    longest, deadline = 0.0, time.monotonic() + 1.2 * SOAK_S + 120
    with bench.guest.forward(9093) as port:
        while True:
            metrics = scrape(port)
            waits = (value for name, value in metrics.items() if "longest_wait_seconds" in name)
            longest = max(longest, *waits, 0.0)
            if not _running(bench) or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    mixed, trained = (bench.guest.run(["cat", path]).stdout for path in (churn, loop))
    longest_s, steps = soaked(mixed, trained)
    rescues = metrics["zernel_scheduler_starvation_rescues_total"]
    detail = f"{SOAK_S} s, {len(longest_s)} kinds of tasks, {HOGS} hogs; {steps:,} training steps"
    yield Figure("soak: ejections", metrics["zernel_scheduler_ejections_total"], "", 0, detail)
    yield stalls(longest_s)
    yield Figure("soak: longest wait", longest, "s", None, f"{rescues:,.0f} starvation rescues")


def soaked(mixed: str, trained: str) -> tuple[dict[str, float], int]:
    """Return kind of task → the longest it took to get something done, in seconds; and the training steps.

    :param mixed: what churn.py printed.
    :param trained: what training.c printed: nothing, where a step never ended.
    """
    report = json.loads(mixed)
    steps = json.loads(trained)["steps_us"] if trained else []
    longest = {
        kind: seconds if report["done"][kind] else math.inf for kind, seconds in report["longest_s"].items()
    }
    return longest | {"training": max(steps, default=math.inf) / 1e6}, len(steps)


def stalls(longest_s: Mapping[str, float]) -> Figure:
    """Return how many kinds of tasks once got nothing done for too long."""
    by_time = sorted(longest_s.items(), key=lambda item: -item[1])
    stalled = [f"{kind} {seconds:.3g} s" for kind, seconds in by_time if seconds > STALL_S]
    slowest, most = by_time[0]
    detail = ", ".join(stalled) or f"the longest that one took: {most:.3g} s, {slowest}"
    return Figure(f"soak: kinds of tasks that stalled for {STALL_S:g} s", len(stalled), "", 0, detail)


def _running(bench: Bench) -> bool:
    done = bench.guest.run("systemctl is-active -q soak-churn soak-training", check=False)
    return done.returncode == 0


# Costs, in the guest that counts instructions. Its CPUs take long turns when all are busy, as hackbench keeps
# them: that changes delays, not the work.
COUNTED_PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "alone": _alone,
    "switching": _switching,
    "load": _load,
    "daemon": _daemon,
    "tracked": _tracked,
}
PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "launcher": _launcher,
    "training": _training,
    "tenants": _tenants,
    "soak": _soak,
}
