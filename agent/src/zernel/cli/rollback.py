# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel rollback``: undo a change of the instances that Zernel made."""

from __future__ import annotations

import argparse

from zernel.cli.output import add_format_option, print_result
from zernel.multikernel import fs, operations, transactions
from zernel.multikernel.text import print_change, step_data, step_lines, told, transaction_data


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel rollback``."""
    parser.add_argument(
        "transaction",
        nargs="?",
        metavar="TX",
        help="a transaction of Zernel's, such as tx_4; default: the last change that was not rolled back",
    )
    parser.add_argument(
        "--give-up",
        action="store_true",
        help="end a change that was interrupted and can neither be finished nor undone: what is left of it is"
        " named and stays",
    )
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is changed")
    add_format_option(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Undo the change; exit 1 with the reason when that cannot be."""
    number = None
    if args.transaction is not None:
        text = args.transaction.removeprefix("tx_")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            args.wrong_usage(f"'{args.transaction[:60]}' is no transaction: write it as tx_4")
        number = int(text)
    if args.give_up and number is not None:
        args.wrong_usage("--give-up ends the change that was interrupted; it takes no transaction")
    target = fs.open_fs()
    if args.give_up:
        return _give_up(args, target)
    found = operations.rollback(target, number, dry_run=args.dry_run)
    data = {
        "status": "planned" if args.dry_run else "rolled-back",
        "changed": True,
        "dry_run": args.dry_run,
        "simulated": target.simulated,
        "undone": {"command": found.change.command, "transactions": list(found.change.transactions)},
        "steps": [step_data(step, placed=found.placed) for step in found.steps],
        "transactions": [transaction_data(one) for one in found.transactions],
        "warnings": [problem.as_dict() for problem in found.warnings],
        "notes": list(found.notes),
    }
    named = ", ".join(f"tx_{one}" for one in found.change.transactions)
    what = f"'{found.change.command}' ({named})"
    if args.dry_run:
        done = f"✓ {what} can be rolled back (dry run: nothing was written)"
    else:
        done = f"✓ {what} rolled back{told(found.transactions)}"
    lines = [line for step in found.steps for line in step_lines(step, placed=found.placed)]
    print_result(data, args.format, lambda: print_change(lines, found, target, done))
    return 0


def _give_up(args: argparse.Namespace, target: fs.MultikernelFs) -> int:
    found = transactions.give_up(target, dry_run=args.dry_run)
    changed = bool(found.left or found.notes)
    notes = [*found.notes, *found.calls]
    status = "given-up" if found.left else "settled" if found.notes else "unchanged"
    data = {
        "status": "planned" if changed and args.dry_run else status,
        "changed": changed,
        "dry_run": args.dry_run,
        "simulated": target.simulated,
        "left": list(found.left),
        "notes": notes,
    }
    lines = [f"NOTE: {note}" for note in notes] + [f"  {text}" for text in found.left]
    done = {
        "given-up": "✓ The change was given up; what is left of it stays: zernel show",
        "settled": "✓ Nothing had to be given up: the change was settled",
        "unchanged": "✓ No change is unfinished",
    }[status]
    if changed and args.dry_run:
        done += " (dry run: nothing was written)"
    lines += [done, *([target.label] if target.label else [])]
    print_result(data, args.format, lambda: "\n".join(lines))
    return 0
