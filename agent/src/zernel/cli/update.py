# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel update``: change what a kernel instance owns."""

from __future__ import annotations

import argparse

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.units import RESOURCES, parse_cpus
from zernel.multikernel import changes, fs, operations, planning, report
from zernel.multikernel.text import change_data, print_change, told, transaction_data


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel update``."""
    options.add_name(parser)
    parser.add_argument("--cpus", metavar="LIST", help="all CPUs that it shall have, such as 8-19")
    parser.add_argument(
        "--cpu-count",
        metavar="N",
        help="how many CPUs it shall have: it keeps what it can, free ones are added",
    )
    parser.add_argument("--add-cpus", metavar="LIST", help="CPUs that it gets beside those it has")
    parser.add_argument("--remove-cpus", metavar="LIST", help="CPUs that are taken from it")
    parser.add_argument("--memory", metavar="SIZE", help="how much memory it shall have, such as 8GB")
    parser.add_argument("--memory-base", metavar="ADDRESS", help="where its memory shall begin")
    parser.add_argument(
        "--devices", metavar="LIST", help="all devices that it shall have, such as gpu0; 'none' for no device"
    )
    options.add_wishes(parser)
    parser.add_argument("--id", metavar="N", help="the id that it shall have")
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is changed")
    options.add_root(parser)
    add_format_option(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Change the instance; exit 1 with the reason when that cannot be."""
    wish = _wish(args)
    target = fs.open_fs()
    outcome = operations.update(target, wish, dry_run=args.dry_run, root=args.root)
    before, after = outcome.before, outcome.after
    assert before is not None
    assert after is not None
    data = change_data(outcome, target, dry_run=args.dry_run, status="updated")
    moved = [] if outcome.replaced else changes.operations(before, after)
    data["operations"] = [operation.as_dict() for operation in moved]
    data["transactions"] = [transaction_data(one) for one in outcome.transactions]
    if not outcome.changed:
        done = f"✓ Instance {wish.name} is so already: nothing to change"
    elif args.dry_run:
        done = f"✓ Instance {wish.name} can be updated (dry run: nothing was written)"
    else:
        done = f"✓ Instance {wish.name} updated{told(outcome.transactions)}"
    lines = report.instance_lines(after, outcome.status, placed=outcome.placed)
    lines += [f"  {operation}" for operation in moved]
    print_result(data, args.format, lambda: print_change(lines, outcome, target, done))
    return 0


def _wish(args: argparse.Namespace) -> planning.Update:
    """Read the options; exits 2 when they do not go together, raises `ZernelError` with every mistake."""
    cpus = [
        name for name in ("cpus", "cpu_count", "add_cpus", "remove_cpus") if getattr(args, name) is not None
    ]
    if len(cpus) > 1 and cpus != ["add_cpus", "remove_cpus"]:
        shown = " and ".join(f"--{name.replace('_', '-')}" for name in cpus)
        args.wrong_usage(f"{shown} do not go together")
    readers = {**RESOURCES, "add_cpus": parse_cpus, "remove_cpus": parse_cpus}
    if all(getattr(args, name) is None for name in readers):
        *given, last = (f"--{name.replace('_', '-')}" for name in readers)
        args.wrong_usage(f"nothing to change: give {', '.join(given)} or {last}")
    return planning.Update(name=args.name, **options.read(args, readers))  # type: ignore[arg-type]
