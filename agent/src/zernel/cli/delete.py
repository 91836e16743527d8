# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel delete``: delete a kernel instance."""

from __future__ import annotations

import argparse

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.multikernel import fs, operations
from zernel.multikernel.text import change_data, print_change, told


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel delete``."""
    options.add_name(parser)
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is deleted")
    parser.add_argument("--ensure", action="store_true", help="succeed when there is no such instance")
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Delete the instance; exit 1 with the reason when that cannot be."""
    target = fs.open_fs()
    outcome = operations.delete(target, args.name, dry_run=args.dry_run, ensure=args.ensure)
    data = change_data(outcome, target, dry_run=args.dry_run, status="deleted")
    if not outcome.changed:
        done = f"✓ There is no instance {args.name}: nothing to change"
    elif args.dry_run:
        done = f"✓ Instance {args.name} can be deleted (dry run: nothing was written)"
    else:
        done = f"✓ Instance {args.name} deleted{told(outcome.transactions)}"
    print_result(data, args.format, lambda: print_change([], outcome, target, done))
    return 0
