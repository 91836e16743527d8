# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench [ONLY=scheduler:training]``: measure and print the table; exit 1 when a limit is missed.

``ONLY`` takes groups, and parts of the group that takes longest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import instances, provisioning, scheduler, startup
from benchmarks.figures import Figure, table
from testbed import TestbedError
from testbed.tools import unwind_when_ended

GROUPS: dict[str, Callable[[], Iterator[Figure]]] = {
    "startup": startup.measure,
    "instances": instances.measure,
    "provisioning": provisioning.measure,
    "scheduler": scheduler.measure,
}
# A part of the tests that a benchmark builds on asserts.
_FAILURES = (TestbedError, OSError, subprocess.SubprocessError, ValueError, RuntimeError, AssertionError)
PARTS = {f"scheduler:{part}": part for part in (*scheduler.COUNTED_PARTS, *scheduler.PARTS)}


def main() -> int:
    """Measure the groups asked for, all by default."""
    parser = argparse.ArgumentParser(description="Measure the figures that Zernel promises.")
    names = [*GROUPS, *PARTS]
    parser.add_argument("group", nargs="*", choices=[[], *names], default=[], help=", ".join(names))
    asked = parser.parse_args().group or list(GROUPS)
    groups = {name: GROUPS[name] for name in asked if name in GROUPS}
    # One guest for all of them: it boots for minutes.
    if parts := [PARTS[name] for name in asked if name in PARTS]:
        groups[f"scheduler:{','.join(parts)}"] = partial(scheduler.measure, parts)
    unwind_when_ended()
    figures: list[Figure] = []
    failed = False
    for group, measure in groups.items():
        print(f"measuring: {group}", flush=True)
        try:
            for figure in measure():
                # What was measured before a failure took minutes: it is shown.
                figures.append(figure)
        except _FAILURES as error:
            words = error.render() if isinstance(error, TestbedError) else f"ERROR: bench: {group}: {error}"
            print(words, file=sys.stderr, flush=True)
            failed = True
    print("\n" + table(figures))
    return 1 if failed or any(figure.verdict == "MISSED" for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
