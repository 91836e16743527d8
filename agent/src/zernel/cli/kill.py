# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel kill``: stop the kernel that runs in an instance."""

from __future__ import annotations

import argparse

from zernel.cli.lifecycle import add_common_options, print_step, target_of
from zernel.multikernel import fs, lifecycle


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel kill``."""
    parser.add_argument(
        "--force", "-f", action="store_true", help="stop it without asking it to shut down first"
    )
    add_common_options(parser, "the instance is not running")


def run(args: argparse.Namespace) -> int:
    """Stop the instance; exit 1 with the reason when that cannot be."""
    target = fs.open_fs()
    result = lifecycle.halt(
        target, target_of(args), force=args.force, dry_run=args.dry_run, ensure=args.ensure
    )
    print_step(args, target, result, status="stopped", done="stopped", possible="can be stopped")
    return 0
