# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel apply``: make the instances what files declare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.model import System
from zernel.devicetree.validate import is_valid
from zernel.errors import Problem, ZernelError, fail
from zernel.multikernel import desired, fs, reconcile, report
from zernel.multikernel.changes import Step
from zernel.multikernel.text import print_change, step_data, step_lines, told, transaction_data


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel apply``."""
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help=f"where the declarations (*.yaml) are; default: {desired.DIRECTORY}",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan; same verdict, nothing is changed"
    )
    parser.add_argument("--prune", action="store_true", help="delete the instances that no file declares")
    parser.add_argument(
        "--hardware",
        action="store_true",
        help="show the plan for a host that has no baseline yet, with the one that 'zernel show --hardware'"
        " proposes; nothing is changed",
    )
    options.add_proposal(parser)
    options.add_root(parser)
    add_format_option(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Show the plan and carry it out, all or nothing; exit 1 with the reasons when that cannot be."""
    if args.prune and args.hardware:
        args.wrong_usage("--prune and --hardware do not go together: there are no instances yet")
    options.check_proposal(args)
    if args.directory == "":  # Path() of it is the current directory: with --prune, all would be deleted
        args.wrong_usage("--directory names no directory")
    directory = Path(args.directory or desired.DIRECTORY)
    if args.hardware:
        return _judge(args, directory)
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
    ignored = tuple(problem for problem in warnings if problem.code == "file-ignored")
    if args.prune and ignored:
        # What such a file declares would be deleted, for the want of a letter.
        raise ZernelError(*(problem.but(severity="ERROR") for problem in ignored))
    target = fs.open_fs()
    found = reconcile.reconcile(target, declarations, prune=args.prune, dry_run=args.dry_run, root=args.root)
    found = found.but(warnings=(*warnings, *found.warnings))
    statuses, made = found.statuses, {step.name for step in found.steps if step.before is None}
    data = {
        "status": "unchanged" if not found.steps else "planned" if args.dry_run else "applied",
        "changed": bool(found.steps),
        "dry_run": args.dry_run,
        "simulated": target.simulated,
        "directory": str(directory),
        "plan": _plan_data(found.steps, placed=found.placed),
        "undeclared": list(found.undeclared),
        "before": {one.name: report.instance_data(one, statuses.get(one.name)) for one in found.before},
        "after": {
            one.name: report.instance_data(
                one, statuses.get(one.name), placed=found.placed or one.name not in made
            )
            for one in found.after
        },
        "transactions": [transaction_data(one) for one in found.transactions],
        "warnings": [problem.as_dict() for problem in found.warnings],
        "notes": list(found.notes),
    }
    lines = _plan_lines(found.steps, placed=found.placed)
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


def _plan_data(steps: tuple[Step, ...], *, placed: bool = True) -> dict[str, Any]:
    verbs = ("create", "update", "delete")
    return {verb: [step_data(step, placed=placed) for step in steps if step.verb == verb] for verb in verbs}


def _plan_lines(steps: tuple[Step, ...], *, placed: bool = True) -> list[str]:
    lines = [line for step in steps for line in step_lines(step, placed=placed)]
    return ["Plan:", *lines] if lines else []


def _judge(args: argparse.Namespace, directory: Path) -> int:
    """Judge what is declared by the baseline that is proposed for this host's hardware."""
    from zernel.host import hardware

    declarations, problems = desired.look_through(directory)
    try:
        proposal = hardware.propose(hardware.discover(args.root), **options.proposal(args))  # type: ignore[arg-type]
    except ZernelError as error:
        raise ZernelError(*problems, *error.problems) from error
    instances, found = reconcile.plan(System(proposal, ()), declarations, args.root)
    problems += found
    if not is_valid(problems):
        raise ZernelError(*(problem for problem in problems if problem.severity != "WARNING"))
    steps = tuple(Step(None, one) for one in instances)
    data = {
        "status": "planned" if steps else "unchanged",
        "changed": bool(steps),
        "dry_run": True,
        "hardware": report.hardware_data(proposal),
        "directory": str(directory),
        "plan": _plan_data(steps),
        "after": {one.name: report.instance_data(one) for one in instances},
        "warnings": [problem.as_dict() for problem in problems],
    }

    def text() -> str:
        lines = [problem.render() + "\n" for problem in problems]
        done = "✓ What is declared fits the baseline proposed for this host (nothing was changed)"
        return "\n".join([*lines, *_plan_lines(steps), done])

    print_result(data, args.format, text)
    return 0
