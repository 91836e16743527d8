# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel init``: validate a baseline device tree; with ``--apply``, hand it to the kernel."""

from __future__ import annotations

import sys

from zernel.cli.output import add_format_option, print_result
from zernel.devicetree import load
from zernel.devicetree.reading import Interpretation
from zernel.devicetree.validate import is_valid, validate_interpretation
from zernel.errors import Problem
from zernel.multikernel import report

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    import argparse


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel init``."""
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="the baseline: source (DTS) or blob (DTB)"
    )
    parser.add_argument("--apply", action="store_true", help="hand the valid baseline to the kernel")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --apply: say what would change, and write nothing"
    )
    add_report_options(parser)
    add_format_option(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how much of a validation is printed."""
    parser.add_argument("--report", action="store_true", help="print the full validation report")
    parser.add_argument("--verbose", action="store_true", help="print every device and NUMA node")


def run(args: argparse.Namespace) -> int:
    """Validate, and apply where that is asked for. Without ``--apply`` nothing is ever written."""
    found = load.read_file(args.input)
    problems = validate_interpretation(found, baseline=True)
    valid = is_valid(problems)
    resources = found.system.resources if found.system else None
    data = report.report_data(resources, found.system.instances if found.system else (), problems)
    applied: list[str] = []
    if args.apply and valid and resources is not None:
        # Only here: validating a file must not cost what talking to the kernel costs.
        from zernel.multikernel import baseline, fs

        target = fs.open_fs()
        done = baseline.apply_baseline(target, resources, dry_run=args.dry_run)
        before, changed, notes = done.before, done.changed, done.notes
        data |= {
            "applied": not args.dry_run,
            "changed": changed,
            "wire": done.wire,
            "dry_run": args.dry_run,
            "simulated": target.simulated,
            "device_tree": str(target.root / "device_tree"),
            "before": report.hardware_data(before) if before else None,
            "after": report.hardware_data(done.after, placed=done.placed),
            "notes": list(notes),
        }
        applied = [f"NOTE: {note}" for note in notes]
        if not done.placed:
            applied.append("  The kernel chooses where the memory pool is")
        applied += [_outcome(changed, args.dry_run), f"  Baseline: {target.root / 'device_tree'}"]
        applied += [target.label] if target.label else []
    if not valid and not (args.report and args.format == "text"):
        print_problems(problems)  # the text report holds them itself
    print_result(data, args.format, lambda: "\n".join([*text(args, found, problems), *applied]))
    return 0 if valid else 1


def _outcome(changed: bool, dry_run: bool) -> str:
    if not changed:
        return "✓ Baseline is applied already: nothing to change"
    return (
        "✓ Baseline would be applied (dry run: nothing was written)"
        if dry_run
        else ("✓ Baseline applied to kernel successfully")
    )


def print_problems(problems: list[Problem]) -> None:
    """Show problems on standard error."""
    for problem in problems:
        print(problem.render() + "\n", file=sys.stderr)


def text(
    args: argparse.Namespace,
    found: Interpretation,
    problems: list[Problem],
    what: str = "Baseline validation",
) -> list[str]:
    """Return the outcome of a validation as text, as long as ``--report`` and ``--verbose`` ask for."""
    resources = found.system.resources if found.system else None
    if args.report:
        instances = found.system.instances if found.system else ()
        lines = report.validation_report(resources, problems, instances, what).split("\n")
        if args.verbose and resources is not None and is_valid(problems):
            at = next(index for index, line in enumerate(lines) if line.startswith("  Devices:")) + 1
            lines[at:at] = report.inventory_details(resources)
        return lines
    lines = []
    if args.verbose and resources is not None and is_valid(problems):
        lines += [*report.inventory_lines(resources), *report.inventory_details(resources), ""]
    if is_valid(problems):
        for problem in problems:
            lines += [problem.render(), ""]
    return [*lines, *report.verdict(problems, what)]
