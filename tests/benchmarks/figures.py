# SPDX-License-Identifier: GPL-3.0-or-later
"""A measured figure and its row in the table."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: what was measured, the value with its unit, the limit, and how to measure it again.

    ``limit`` is the most that the value may be; with ``at_least``, the least.
    """

    name: str
    value: float
    unit: str
    limit: float | None
    detail: str = ""
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Return "met" or "MISSED"; a figure without a limit is recorded only."""
        if self.limit is None:
            return "-"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "MISSED"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as an aligned text table."""
    rows = [("figure", "measured", "limit", "", "detail")]
    for figure in figures:
        sign = ">=" if figure.at_least else "<="
        limit = "-" if figure.limit is None else f"{sign} {figure.limit:g} {figure.unit}"
        rows.append((figure.name, f"{figure.value:.3g} {figure.unit}", limit, figure.verdict, figure.detail))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def median_ms(commands: Sequence[Sequence[str]], runs: int = 21) -> list[float]:
    """Run the commands in turn, ``runs`` times each, and return each one's median wall time in milliseconds.

    Taking turns lets a comparison hold when the machine's speed drifts.
    """
    # A host has the package's compiled modules; a developer's shell may forbid writing them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(runs + 1):
        for command, mine in zip(commands, times, strict=True):
            start = time.perf_counter()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )
            mine.append((time.perf_counter() - start) * 1e3)
    # The first run of each warms the caches and does not count.
    return [statistics.median(mine[1:]) for mine in times]
