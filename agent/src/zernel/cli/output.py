# SPDX-License-Identifier: GPL-3.0-or-later
"""Text, JSON and YAML output, the same way for every command."""

from __future__ import annotations

import sys

from zernel import streams
from zernel.errors import ZernelError

TYPE_CHECKING = False  # as typing's, whose import would cost every command 3 ms
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

FORMATS = ("text", "json", "yaml")


def add_format_option(parser: argparse.ArgumentParser) -> None:
    """Add the ``--format`` option that every command has."""
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to print the result")


def print_result(data: dict[str, Any], output: str, text: Callable[[], str]) -> None:
    """Print ``data`` as JSON or YAML, or what ``text`` returns, on standard output."""
    streams.write(_structured(data, output) if output != "text" else text() + "\n")


def print_errors(error: ZernelError, output: str) -> None:
    """Show the problems on standard error as text and, for JSON or YAML, as an object on standard output."""
    for problem in error.problems:
        print(problem.render(), file=sys.stderr)
    if output != "text":
        data = {"status": "error", "errors": [problem.as_dict() for problem in error.problems]}
        streams.write(_structured(data, output))


def _structured(data: dict[str, Any], output: str) -> str:
    if output == "json":
        import json  # 2 ms, which text does not need

        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    import yaml  # 20 ms: only where it is asked for

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
