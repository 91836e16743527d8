# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel apply``: make the instances what files declare."""

from __future__ import annotations

import argparse
from pathlib import Path

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.errors import Problem, fail
from zernel.multikernel import desired, fs, reconcile, report
from zernel.multikernel.text import print_change, step_data, step_lines, told, transaction_data


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel apply``."""
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help=f"where the declarations (*.yaml) are; default: {desired.DIRECTORY}",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan; same verdict, nothing is changed"
    )
    parser.add_argument("--prune", action="store_true", help="delete the instances that no file declares")
    options.add_root(parser)
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Show the plan and carry it out, all or nothing; exit 1 with the reasons when that cannot be."""
    directory = args.directory or desired.DIRECTORY
    declarations: list[desired.Declaration] = []
    warnings: list[Problem] = []
    if args.directory is None and not directory.exists():
        if args.prune:
            raise fail(
                "nothing-declared",
                f"There is no {directory}: --prune would delete every instance",
                suggestion=f"Make the directory first, empty if that is what you want: mkdir {directory}",
            )
    else:
        declarations, warnings = desired.read_directory(directory)
    target = fs.open_fs()
    found = reconcile.reconcile(target, declarations, prune=args.prune, dry_run=args.dry_run, root=args.root)
    found = found.but(warnings=(*warnings, *found.warnings))
    statuses = found.statuses
    data = {
        "status": "unchanged" if not found.steps else "planned" if args.dry_run else "applied",
        "changed": bool(found.steps),
        "dry_run": args.dry_run,
        "simulated": target.simulated,
        "directory": str(directory),
        "plan": {
            verb: [step_data(step) for step in found.steps if step.verb == verb]
            for verb in ("create", "update", "delete")
        },
        "undeclared": list(found.undeclared),
        "before": {one.name: report.instance_data(one, statuses.get(one.name)) for one in found.before},
        "after": {one.name: report.instance_data(one, statuses.get(one.name)) for one in found.after},
        "transactions": [transaction_data(one) for one in found.transactions],
        "warnings": [problem.as_dict() for problem in found.warnings],
        "notes": list(found.notes),
    }
    lines = [line for step in found.steps for line in step_lines(step)]
    if lines:
        lines.insert(0, "Plan:")
    if found.undeclared:
        lines.append(f"Not declared, left alone: {', '.join(found.undeclared)} (--prune deletes them)")
    if not found.steps:
        plural = "s are" if len(declarations) > 1 else " is"
        done = f"✓ {len(declarations)} instance{plural} as declared: nothing to change"
        if not declarations:
            done = "✓ No instance is declared: nothing to change"
    elif args.dry_run:
        done = "✓ The plan can be applied (dry run: nothing was written)"
    else:
        done = f"✓ The plan was applied{told(found.transactions)}"
    print_result(data, args.format, lambda: print_change(lines, found, target, done))
    return 0
