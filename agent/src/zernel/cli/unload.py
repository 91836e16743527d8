# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel unload``: take the kernel out of an instance."""

from __future__ import annotations

import argparse

from zernel.cli.lifecycle import add_common_options, print_step, target_of
from zernel.multikernel import fs, lifecycle


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel unload``."""
    add_common_options(parser, "no kernel is loaded into the instance")


def run(args: argparse.Namespace) -> int:
    """Unload the kernel; exit 1 with the reason when that cannot be."""
    target = fs.open_fs()
    result = lifecycle.unload(target, target_of(args), dry_run=args.dry_run, ensure=args.ensure)
    print_step(args, target, result, status="unloaded", done="unloaded", possible="can be unloaded")
    return 0
