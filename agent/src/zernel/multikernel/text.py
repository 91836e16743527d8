# SPDX-License-Identifier: GPL-3.0-or-later
"""How the outcome of a change is told, as text and as data; shared by the commands that change."""

from __future__ import annotations

from typing import Any, Protocol

from zernel.devicetree.units import format_cpus
from zernel.errors import Problem
from zernel.multikernel import report
from zernel.multikernel.changes import Step, operations
from zernel.multikernel.fs import MultikernelFs, Transaction
from zernel.multikernel.operations import Outcome


class Told(Protocol):
    """An outcome with what a person is told beside it."""

    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def warnings(self) -> tuple[Problem, ...]: ...


def change_data(outcome: Outcome, fs: MultikernelFs, *, dry_run: bool, status: str) -> dict[str, Any]:
    """Return the stable form for JSON and YAML. ``before`` and ``after`` are for Ansible's diff."""
    transactions = [transaction_data(one) for one in outcome.transactions]
    return {
        "status": "unchanged" if not outcome.changed else "planned" if dry_run else status,
        "changed": outcome.changed,
        "dry_run": dry_run,
        "simulated": fs.simulated,
        "before": report.instance_data(outcome.before, outcome.status) if outcome.before else None,
        "after": report.instance_data(outcome.after, outcome.status, placed=outcome.placed)
        if outcome.after
        else None,
        "transaction": transactions[-1] if transactions else None,
        "warnings": [problem.as_dict() for problem in outcome.warnings],
        "notes": list(outcome.notes),
    }


def print_change(lines: list[str], outcome: Told, fs: MultikernelFs, done: str) -> str:
    """Return the text: notes, warnings, ``lines``, what was ``done``, and the simulation's label."""
    told = [f"NOTE: {note}" for note in outcome.notes]
    told += [problem.render() + "\n" for problem in outcome.warnings]
    return "\n".join([*told, *lines, done, *([fs.label] if fs.label else [])])


def told(transactions: tuple[Transaction, ...]) -> str:
    """Return the transactions for a sentence's end, with the space before them."""
    if not transactions:
        return ""
    plural = "s" * (len(transactions) != 1)
    return f" (transaction{plural} {', '.join(f'tx_{one.id}' for one in transactions)})"


def transaction_data(transaction: Transaction) -> dict[str, Any]:
    """Return a transaction for JSON and YAML."""
    return {"id": transaction.id, "status": transaction.status}


def step_lines(step: Step, *, placed: bool = True) -> list[str]:
    """Return what a step does as text, one line for each operation of an update.

    ``placed`` is False for a plan on a kernel that chooses where the memory of a new instance is.
    """
    found = step.before if step.after is None else step.after
    assert found is not None
    memory = report.memory_text(found, placed=placed or step.before is not None)
    owns = f"CPUs {format_cpus(found.cpus)}, {memory}"
    if found.devices:
        owns += f", {', '.join(map(str, found.devices))}"
    lines = [f"  {step.verb} {step.name}: {owns}"]
    if step.before is not None and step.after is not None:
        lines += [f"    {operation}" for operation in operations(step.before, step.after)]
    return lines


def step_data(step: Step, *, placed: bool = True) -> dict[str, Any]:
    """Return a step for JSON and YAML; ``operations`` is empty but for an update.

    ``placed``: see `step_lines`.
    """
    found = operations(step.before, step.after) if step.before and step.after else []
    return {
        "action": step.verb,
        "instance": step.name,
        "before": report.instance_data(step.before) if step.before else None,
        "after": report.instance_data(step.after, placed=placed or step.before is not None)
        if step.after
        else None,
        "operations": [one.as_dict() for one in found],
    }
