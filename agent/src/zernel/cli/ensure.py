# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel ensure``: bring one instance, and its kernel, to a wanted state."""

from __future__ import annotations

import argparse
from typing import Any

from zernel.cli import options
from zernel.cli.lifecycle import boot_data
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.model import Instance
from zernel.multikernel import ensure, fs, report
from zernel.multikernel.text import print_change, told, transaction_data


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel ensure``."""
    options.add_name(parser)
    parser.add_argument(
        "--state",
        choices=ensure.STATES,
        default="present",
        help="present (the default): there, with what is given here; loaded: and it has a kernel; started:"
        " which runs; stopped: there, and not running; absent: not there",
    )
    options.add_resources(parser, required=False)
    options.add_boot_files(parser, required=False)
    parser.add_argument(
        "--force",
        "-f",
        action="store_true",
        help="stopped: without asking its kernel; absent: also of an instance that has a kernel",
    )
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is done")
    options.add_root(parser)
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Do what is missing; exit 1 with the reasons when that cannot be."""
    resources = ensure.Resources(**options.resources(args))  # type: ignore[arg-type]
    wish = ensure.Wish(
        args.name, args.state, resources, args.kernel, args.initrd, args.cmdline, force=args.force
    )
    target = fs.open_fs()
    with ensure.ensured(target, wish, dry_run=args.dry_run, root=args.root) as found:
        files = found.files
    data: dict[str, Any] = {
        "status": "unchanged" if not found.changed else "planned" if args.dry_run else "changed",
        "changed": found.changed,
        "dry_run": args.dry_run,
        "simulated": target.simulated,
        "state": args.state,
        "before": _data(found.before, found.status_before),
        "after": _data(found.after, found.status_after, placed=found.placed),
        "steps": list(found.steps),
        "operations": [one.as_dict() for one in found.operations],
        "replaced": found.replaced,
        "transactions": [transaction_data(one) for one in found.transactions],
        "loaded": boot_data(files) if files is not None else None,
        "warnings": [problem.as_dict() for problem in found.warnings],
        "notes": list(found.notes),
    }
    print_result(data, args.format, lambda: print_change(_lines(found), found, target, _done(args, found)))
    return 0


def _data(instance: Instance | None, status: str | None, *, placed: bool = True) -> dict[str, Any] | None:
    if instance is None:
        return None
    if not instance.cpus:  # the kernel does not show what it owns
        return {"name": instance.name, "id": instance.id, "status": status}
    return report.instance_data(instance, status, placed=placed)


def _lines(found: ensure.Ensured) -> list[str]:
    if found.after is None or not found.after.cpus:
        return []
    return [
        *report.instance_lines(found.after, found.status_after, placed=found.placed),
        *(f"  {operation}" for operation in found.operations),
    ]


def _done(args: argparse.Namespace, found: ensure.Ensured) -> str:
    if not found.changed:
        if found.after is None:
            return f"✓ There is no instance {args.name}: nothing to change"
        return f"✓ Instance {args.name} is {args.state} already: nothing to change"
    steps = ", ".join(found.steps)
    if args.dry_run:
        return f"✓ Instance {args.name} can be {args.state}: {steps} (dry run: nothing was done)"
    return f"✓ Instance {args.name} is {args.state} now: {steps}{told(found.transactions)}"
