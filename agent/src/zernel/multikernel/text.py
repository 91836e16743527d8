# SPDX-License-Identifier: GPL-3.0-or-later
"""How the outcome of a change is told, as text and as data; shared by create and delete."""

from __future__ import annotations

from typing import Any

from zernel.multikernel import report
from zernel.multikernel.fs import MultikernelFs, Transaction
from zernel.multikernel.operations import Outcome


def change_data(outcome: Outcome, fs: MultikernelFs, *, dry_run: bool, status: str) -> dict[str, Any]:
    """Return the stable form for JSON and YAML. ``before`` and ``after`` are for Ansible's diff."""
    transaction = outcome.transaction
    return {
        "status": "unchanged" if not outcome.changed else "planned" if dry_run else status,
        "changed": outcome.changed,
        "dry_run": dry_run,
        "simulated": fs.simulated,
        "before": report.instance_data(outcome.before, outcome.status) if outcome.before else None,
        "after": report.instance_data(outcome.after, outcome.status) if outcome.after else None,
        "transaction": {"id": transaction.id, "status": transaction.status} if transaction else None,
        "warnings": [problem.as_dict() for problem in outcome.warnings],
        "notes": list(outcome.notes),
    }


def print_change(lines: list[str], outcome: Outcome, fs: MultikernelFs, done: str) -> str:
    """Return the text: notes, warnings, ``lines``, what was ``done``, and the simulation's label."""
    told = [f"NOTE: {note}" for note in outcome.notes]
    told += [problem.render() + "\n" for problem in outcome.warnings]
    return "\n".join([*told, *lines, done, *([fs.label] if fs.label else [])])


def told(transaction: Transaction | None) -> str:
    """Return the transaction for a sentence."""
    return f"(transaction tx_{transaction.id})" if transaction else ""
