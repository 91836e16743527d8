# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench [ONLY=startup]``: measure and print the table; exit 1 when a limit is missed."""

from __future__ import annotations

import argparse

from benchmarks import provisioning, startup
from benchmarks.figures import Figure, table

GROUPS = {"startup": startup.measure, "provisioning": provisioning.measure}


def main() -> int:
    """Measure the groups asked for, all by default."""
    parser = argparse.ArgumentParser(description="Measure the figures that Zernel promises.")
    parser.add_argument("group", nargs="*", choices=[[], *GROUPS], default=[], help=", ".join(GROUPS))
    figures: list[Figure] = []
    for group in parser.parse_args().group or GROUPS:
        print(f"measuring: {group}", flush=True)
        figures += GROUPS[group]()
    print("\n" + table(figures))
    return 1 if any(figure.verdict == "MISSED" for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
