# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel exec``: boot the kernel that is loaded into an instance."""

from __future__ import annotations

import argparse

from zernel.cli.lifecycle import add_common_options, print_step, target_of
from zernel.multikernel import fs, lifecycle


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel exec``."""
    add_common_options(parser, "the instance is running already")


def run(args: argparse.Namespace) -> int:
    """Boot the instance; exit 1 with the reason when that cannot be."""
    target = fs.open_fs()
    result = lifecycle.boot(target, target_of(args), dry_run=args.dry_run, ensure=args.ensure)
    print_step(args, target, result, status="active", done="booted", possible="can be booted")
    return 0
