# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel validate``: say what is wrong with device trees of any kind. Nothing is ever written."""

from __future__ import annotations

import argparse
import sys

from zernel import streams
from zernel.cli.init import add_report_options, print_problems, text
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree import load
from zernel.devicetree.interpret import interpret, is_overlay
from zernel.devicetree.model import System
from zernel.devicetree.reading import Interpretation, Origins
from zernel.devicetree.validate import is_valid, validate_interpretation
from zernel.errors import Problem, ZernelError
from zernel.multikernel import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel validate``."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="device trees: source (DTS) or blobs (DTB, DTBO)"
    )
    parser.add_argument(
        "--baseline", metavar="FILE", help="what overlays change: a baseline, or a system with instances"
    )
    add_report_options(parser)
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Validate every file; exit 1 when one of them is invalid or cannot be read."""
    base = _base(args.baseline) if args.baseline is not None else None
    results: list[dict[str, Any]] = []
    as_text = args.format == "text"
    for file in args.files:
        found, problems = _check(file, base)
        valid = is_valid(problems)
        if as_text and len(args.files) > 1:
            # Before its problems, which go to standard error: both may end up in one file.
            streams.write(f"{chr(10) if results else ''}{file}:\n")
        if not valid and not (args.report and as_text):
            print_problems(problems)
        system = found.system
        data = report.report_data(
            system.resources if system else None, system.instances if system else (), problems
        )
        results.append({"file": file, "dialect": found.dialect if system else None, **data})
        sys.stderr.flush()
        if as_text:
            streams.write("\n".join(text(args, found, problems, "Validation")) + "\n")
    valid = all(result["status"] == "valid" for result in results)
    whole = {"status": "valid" if valid else "invalid", "files": results}
    if not as_text:
        print_result(whole, args.format, str)
    return 0 if valid else 1


def _base(file: str) -> System:
    """Return the system that overlays are applied to; raises `ZernelError` when it is not valid itself."""
    found = load.read_file(file)
    problems = validate_interpretation(found, baseline=False)
    if found.system is None or not is_valid(problems):
        raise ZernelError(*(problem for problem in problems if problem.severity != "WARNING"))
    return found.system


def _check(file: str, base: System | None) -> tuple[Interpretation, list[Problem]]:
    """Return what a file says and everything that is wrong with it."""
    try:
        tree = load.read_tree(file)
        if base is not None and is_overlay(tree):
            from zernel.devicetree.overlays import overlaid

            found = overlaid(tree, base)
        else:
            found = interpret(tree)
    except ZernelError as error:
        return Interpretation(None, Origins(), []), list(error.problems)
    return found, validate_interpretation(found, baseline=False)
