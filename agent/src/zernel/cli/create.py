# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel create``: create a kernel instance."""

from __future__ import annotations

import argparse

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.multikernel import fs, operations, planning, report
from zernel.multikernel.text import change_data, print_change, told


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel create``."""
    options.add_name(parser)
    options.add_resources(parser, required=True)
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is created")
    parser.add_argument(
        "--ensure",
        action="store_true",
        help="succeed when the instance is there already with exactly these resources",
    )
    options.add_root(parser)
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Create the instance; exit 1 with the reason when that cannot be."""
    request = planning.Request(name=args.name, **options.resources(args))  # type: ignore[arg-type]
    target = fs.open_fs()
    outcome = operations.create(target, request, dry_run=args.dry_run, ensure=args.ensure, root=args.root)
    data = change_data(outcome, target, dry_run=args.dry_run, status="created")
    instance = outcome.after or outcome.before
    assert instance is not None
    data["instance"] = report.instance_data(instance, outcome.status, placed=outcome.placed)
    if not outcome.changed:
        done = f"✓ Instance {request.name} is there already: nothing to change"
    elif args.dry_run:
        done = f"✓ Instance {request.name} can be created (dry run: nothing was written)"
    else:
        done = f"✓ Instance {request.name} created{told(outcome.transactions)}"
    lines = report.instance_lines(instance, outcome.status, placed=outcome.placed)
    print_result(data, args.format, lambda: print_change(lines, outcome, target, done))
    return 0
