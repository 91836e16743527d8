# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel doctor``: what this host can do, and why not."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from pathlib import Path

from zernel.cli.output import add_format_option, print_result
from zernel.host.doctor import CHECKS, REQUIRED, Diagnosis, diagnose
from zernel.host.doctor_host import Capability, Host, State

_WORDS = {
    State.OK: ("ok", "32"),
    State.MISSING: ("missing", "31"),
    State.NOT_NEEDED: ("not needed", "2"),
    State.UNKNOWN: ("unknown", "33"),
}
_NAME_WIDTH = max(map(len, CHECKS))
_STATE_WIDTH = max(len(word) for word, _ in _WORDS.values())

_EPILOG = f"""\
Exit status: 0 when every required capability is there, 1 when one is missing or cannot be told.
Capabilities: {", ".join(CHECKS)}.
Required unless --require says otherwise: {", ".join(REQUIRED)}.
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel doctor``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--require", metavar="NAME,…", help="capabilities that must be there; '' for none (see below)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="directory that holds etc, proc and sys; reads files only",
    )
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; 0 when what is required is there."""
    required = REQUIRED if args.require is None else [name for name in args.require.split(",") if name]
    diagnosis = diagnose(Host(args.root), required)
    print_result(diagnosis.as_dict(), args.format, lambda: _text(diagnosis))
    return 0 if diagnosis.status is State.OK else 1


def _text(diagnosis: Diagnosis) -> str:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    lines = []
    for one in diagnosis.capabilities:
        lines += _lines(one, one.name in diagnosis.required, width, colour)
    lines += ["", f"* required; {_summary(diagnosis)}"]
    if diagnosis.simulated:
        lines.append("Part of this host is SIMULATED: see above.")
    return "\n".join(lines)


def _lines(one: Capability, required: bool, width: int, colour: bool) -> list[str]:
    word, code = _WORDS[one.state]
    word = word.upper() if required and one.state is State.MISSING else word
    padded = f"{word:<{_STATE_WIDTH}}"
    shown = f"\x1b[{code}m{padded}\x1b[0m" if colour else padded
    indent = " " * (_STATE_WIDTH + _NAME_WIDTH + 4)
    text = textwrap.wrap(one.reason, width - len(indent), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
    lines = [f"{shown} {one.name:<{_NAME_WIDTH}} {'*' if required else ' '} {text[0]}"]
    lines += [indent + more for more in text[1:]]
    if one.suggestion and one.state is not State.NOT_NEEDED:
        advice = textwrap.wrap(
            f"> {one.suggestion}", width - len(indent), break_long_words=False, break_on_hyphens=False
        )
        lines += [indent + more for more in advice]
    return lines


def _summary(diagnosis: Diagnosis) -> str:
    required = [one for one in diagnosis.capabilities if one.name in diagnosis.required]
    unknown = [one.name for one in required if one.state is State.UNKNOWN]
    missing = [one.name for one in required if one.state not in (State.OK, State.UNKNOWN)]
    if not diagnosis.required:
        return "nothing is required"
    parts = [
        f"{words}: {', '.join(names)}"
        for words, names in (("not there", missing), ("unknown", unknown))
        if names
    ]
    return "; ".join(parts) or "all that is required is there"
