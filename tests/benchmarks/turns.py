# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures something under the kernel's own scheduler and under Zernel's, in turns, and compares."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from benchmarks.figures import Figure
from zernel.scheduler.ab import Result, Switch

ROUNDS = 5
DISTURBED = 0.05
"""A run is repeated, at most twice, if this machine kept the guest waiting for more than this part of it."""


class Machine(Switch, Protocol):
    """What runs both schedulers."""

    def kept_waiting(self) -> float:
        """Return for how long it was kept waiting for a CPU so far, in seconds."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of the values that ``percent`` % of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent / 100 * len(ordered))) - 1]


def in_turns(
    machine: Machine,
    run: Callable[[], Mapping[str, float]],
    rounds: int = ROUNDS,
    lower_is_better: bool = True,
) -> dict[str, Result]:
    """Run it ``rounds`` times under each scheduler, after one run that warms up; return what it measured.

    The order changes from round to round: what changes with time falls on both.

    :raises RuntimeError: if another scheduler than wanted ran the tasks at the end of a run.
    """
    run()
    rows: dict[bool, list[Mapping[str, float]]] = {False: [], True: []}
    for number in range(rounds):
        for ours in (False, True) if number % 2 == 0 else (True, False):
            machine.use(ours)
            row = _undisturbed(machine, run)
            if machine.ours() != ours:
                raise RuntimeError("the scheduler changed during a run: was it ejected?")
            rows[ours].append(row)
            text = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            print(
                f"  {number + 1}/{rounds} {'Zernel' if ours else 'EEVDF '} {text}",
                file=sys.stderr,
                flush=True,
            )
    return {
        name: Result(*_columns(name, rows[False], rows[True]), lower_is_better=lower_is_better)
        for name in rows[True][0]
    }


def _undisturbed(machine: Machine, run: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    for _ in range(3):
        began, waited = time.monotonic(), machine.kept_waiting()
        row = run()
        part = (machine.kept_waiting() - waited) / (time.monotonic() - began)
        if part <= DISTURBED:
            break
        print(f"  this machine kept the guest waiting for {part:.0%} of a run", file=sys.stderr, flush=True)
    return row


def _columns(
    name: str, kernel: Sequence[Mapping[str, float]], zernel: Sequence[Mapping[str, float]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(row[name] for row in kernel), tuple(row[name] for row in zernel)


def compared(
    name: str,
    result: Result,
    unit: str,
    limit: float | None = None,
    more: str = "",
    *,
    at_least: bool = False,
) -> Figure:
    """Return the median of the rounds' ratios (Zernel / EEVDF) as a figure, with their spread."""
    spread = f"{min(result.ratios):.3g} to {max(result.ratios):.3g} in {len(result.ratios)} rounds"
    medians = (
        f"EEVDF {statistics.median(result.kernel):.3g}, Zernel {statistics.median(result.zernel):.3g} {unit}"
    )
    detail = "; ".join(part for part in (spread, medians, more) if part)
    return Figure(name, result.ratio, "x EEVDF's", limit, detail, at_least)


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return the least and the greatest of the values as text."""
    return f"{min(values):{form}} to {max(values):{form}} in {len(values)} runs"


def share_error(shares: Sequence[float], weights: Sequence[float]) -> float:
    """Return by how much the share that is furthest off misses what its weight asks for, in percent of it."""
    wanted = [weight / sum(weights) for weight in weights]
    return max(100 * abs(got / want - 1) for got, want in zip(shares, wanted, strict=True))
