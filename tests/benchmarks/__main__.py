# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench [ONLY=startup]``: measure and print the table; exit 1 when a limit is missed."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import instances, provisioning, startup
from benchmarks.figures import Figure, table
from testbed import TestbedError
from testbed.tools import unwind_when_ended

GROUPS = {"startup": startup.measure, "instances": instances.measure, "provisioning": provisioning.measure}


def main() -> int:
    """Measure the groups asked for, all by default."""
    parser = argparse.ArgumentParser(description="Measure the figures that Zernel promises.")
    parser.add_argument("group", nargs="*", choices=[[], *GROUPS], default=[], help=", ".join(GROUPS))
    groups = parser.parse_args().group or GROUPS
    unwind_when_ended()
    figures: list[Figure] = []
    failed = False
    for group in groups:
        print(f"measuring: {group}", flush=True)
        try:
            for figure in GROUPS[group]():
                # What was measured before a failure took minutes: it is shown.
                figures.append(figure)
        except (TestbedError, OSError, subprocess.SubprocessError, ValueError, RuntimeError) as error:
            words = error.render() if isinstance(error, TestbedError) else f"ERROR: bench: {group}: {error}"
            print(words, file=sys.stderr, flush=True)
            failed = True
    print("\n" + table(figures))
    return 1 if failed or any(figure.verdict == "MISSED" for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
