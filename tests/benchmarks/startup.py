# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a cold ``zernel`` command takes, beside a bare Python in the same run; and the package's size."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import REPO, Figure, median_ms

ZERNEL = str(REPO / ".venv/bin/zernel")
PYTHON = str(REPO / ".venv/bin/python")


def measure() -> Iterator[Figure]:
    """Yield the start-up figures and the size of the agent's package."""
    baseline = str(REPO / "docs/examples/baseline.dts")
    bare, version, report = median_ms(
        [
            [PYTHON, "-c", "pass"],
            [ZERNEL, "--version"],
            [ZERNEL, "init", f"--input={baseline}", "--report"],
        ]
    )
    yield Figure("zernel --version", version, "ms", 60, f"{version / bare:.1f} x bare python ({bare:.1f} ms)")
    yield Figure(
        "zernel init --report", report, "ms", None, f"{report / bare:.1f} x bare python, document's baseline"
    )
    (package,) = (REPO / "roles/agent/files").glob("zernel-agent_*_all.deb")
    yield Figure("agent package", package.stat().st_size / 1e6, "MB", 2, package.name)
