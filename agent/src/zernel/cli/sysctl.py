# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel sysctl``: plan or apply the kernel settings of a host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zernel import files
from zernel.cli.output import add_format_option, print_result
from zernel.errors import fail, from_oserror
from zernel.host.sysctl import Plan, apply, check, plan
from zernel.host.sysctl_input import MAX_INPUT, Asked, parse

_EPILOG = """\
The input is the whole desired set, as YAML or JSON:

  vm.swappiness: 1
  net.core.rmem_max: {value: 134217728, policy: raise}
  kernel.numa_balancing: {value: 1, optional: true}

A file whose name ends in .conf is read in the form of sysctl.d. What an earlier run wrote and is missing
now goes back to what the host had. The result says per setting what was asked, accepted and is effective,
and why.
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel sysctl``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "action",
        choices=("check", "plan", "apply"),
        help="check: only judge the settings by what holds on every kernel; plan: only say what would change",
    )
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="the desired settings; - is standard input"
    )
    parser.add_argument("--dry-run", action="store_true", help="with apply: only plan")
    parser.add_argument("--root", type=Path, default=Path("/"), help="directory that holds proc, sys and etc")
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Plan or apply and print the report."""
    asked = _read(args.input)
    if args.action == "check":
        check(asked)
        number = f"{len(asked)} setting{'' if len(asked) == 1 else 's'}"
        print_result(
            {"status": "valid", "settings": len(asked)}, args.format, lambda: f"✓ {number}, well formed"
        )
        return 0
    result = plan(asked, args.root) if args.action == "plan" or args.dry_run else apply(asked, args.root)
    print_result(result.as_dict(), args.format, lambda: _text(result))
    return 0


def _read(name: str) -> list[Asked]:
    try:
        if name == "-":
            return parse(sys.stdin.read(MAX_INPUT + 1), "<standard input>")
        text = files.read_regular(Path(name), MAX_INPUT + 1).decode("utf-8")
        return parse(text, name, lines_form=name.endswith(".conf"))
    except OSError as error:
        raise from_oserror(error, "read the desired settings") from error
    except UnicodeDecodeError as error:
        raise fail(
            "sysctl-syntax",
            "The desired settings are not text",
            subject=name,
            explanation=f"Byte {error.start} is not UTF-8",
            suggestion="Give a YAML, JSON or sysctl.d file",
        ) from error


def _text(result: Plan) -> str:
    rows = [("SETTING", "ASKED", "ACCEPTED", "EFFECTIVE", "VERDICT")]
    for knob in result.knobs:
        accepted = knob.accepted or "-"
        if knob.accepted is not None and knob.written != knob.key:
            accepted = f"{knob.written}={accepted}"
        rows.append((knob.key, knob.asked or "-", accepted, knob.effective or "-", knob.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
    lines += ["", *(f"{knob.key}: {knob.why}" for knob in result.knobs if knob.why)]
    lines += [f"WARNING: {warning}" for warning in result.warnings]
    status = str(result.as_dict()["status"])
    verb = {"planned": "would change", "applied": "changed"}.get(status)
    live = sum(knob.changed for knob in result.knobs)
    paths = [change.path for change in result.files if change.changed]
    if verb is None:
        lines.append("Nothing to change.")
    else:
        what = f"{live} live {'value' if live == 1 else 'values'}" + "".join(f", {path}" for path in paths)
        lines.append(f"{verb.capitalize()}: {what}")
    return "\n".join(lines)
