# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel convert``: a valid device tree from source to blob or back. An invalid one is never written."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import Any

from zernel import streams
from zernel.cli.init import print_problems
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree import fdt, load, render
from zernel.devicetree.interpret import interpret
from zernel.devicetree.validate import is_valid, validate_interpretation
from zernel.errors import fail, from_oserror
from zernel.files import replace
from zernel.multikernel import report

_SUFFIXES = {".dts": "dts", ".dtb": "dtb"}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel convert``."""
    parser.add_argument("input_file", nargs="?", metavar="INPUT", help="what to convert: DTS or DTB")
    parser.add_argument("output_file", nargs="?", metavar="OUTPUT", help="where to; - for standard output")
    parser.add_argument("--input", metavar="FILE", help="the same as INPUT")
    parser.add_argument("--output", metavar="FILE", help="the same as OUTPUT")
    parser.add_argument(
        "--to",
        choices=sorted(_SUFFIXES.values()),
        help="the form to write; default: by OUTPUT's suffix, for - dts",
    )
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is written")
    add_format_option(parser)
    parser.set_defaults(usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Convert; exit 1, with nothing written, when the input is invalid or the output cannot be written."""
    source, target = _paths(args)
    form = _form(target, args.to)
    found = interpret(load.read_tree(source))
    problems = validate_interpretation(found, baseline=False)
    if found.system is None or not is_valid(problems):
        print_problems(problems)
        data = report.report_data(found.system.resources if found.system else None, (), problems)
        print_result(data, args.format, lambda: "\n".join(report.verdict(problems)))
        return 1
    tree = render.system_tree(found.system)
    content = fdt.write(tree) if form == "dtb" else render.source(tree).encode()
    if form == "dtb" and len(content) > fdt.MAX_BLOB_BYTES:
        raise fail(
            "blob-too-large",
            f"The blob would have {len(content)} bytes",
            subject=source,
            explanation=f"The kernel takes {fdt.MAX_BLOB_BYTES} bytes at most",
            suggestion="Describe fewer devices or instances",
        )
    if target == "-":
        print_problems(problems)
        return _to_standard_output(content, form, dry_run=args.dry_run)
    path = _output_path(source, target)
    changed = not _holds(path, content)
    if changed and not args.dry_run:
        try:
            replace(path, content)
        except OSError as error:
            raise from_oserror(error, f"write {target}; what was there is unchanged") from error
    data = {
        "status": "unchanged" if not changed else "planned" if args.dry_run else "converted",
        "changed": changed,
        "dry_run": args.dry_run,
        "input": source,
        "output": target,
        "form": form,
        "dialect": found.dialect,
        "bytes": len(content),
        "warnings": [problem.as_dict() for problem in problems],
    }
    print_result(data, args.format, lambda: _text(data, [problem.render() + "\n" for problem in problems]))
    return 0


def _text(data: dict[str, Any], warnings: list[str]) -> str:
    size = f"{data['output']} ({data['form'].upper()}, {data['bytes']} bytes)"
    if not data["changed"]:
        done = f"✓ {size} holds this already: nothing to change"
    elif data["dry_run"]:
        done = f"✓ {data['input']} can be converted to {size} (dry run: nothing was written)"
    else:
        done = f"✓ {data['input']} converted to {size}"
    return "\n".join([*warnings, done])


def _paths(args: argparse.Namespace) -> tuple[str, str]:
    """Return INPUT and OUTPUT, of which each may stand as an option or in its place."""
    places = [place for place in (args.input_file, args.output_file) if place is not None]
    source = args.input if args.input is not None else places.pop(0) if places else None
    target = args.output if args.output is not None else places.pop(0) if places else None
    if source is None or target is None or places:
        args.usage("give INPUT and OUTPUT once each: zernel convert baseline.dts baseline.dtb")
        raise SystemExit(2)
    return source, target


def _form(target: str, to: str | None) -> str:
    form = to or ("dts" if target == "-" else _SUFFIXES.get(Path(target).suffix.lower()))
    if form is None:
        raise fail(
            "no-form",
            "Nothing says which form to write",
            subject=target,
            explanation="The output's name ends in neither .dts nor .dtb",
            suggestion="Add --to=dts or --to=dtb",
        )
    return form


def _output_path(source: str, target: str) -> Path:
    """Return the file to replace. What is no file, and the input itself, are refused.

    A symbolic link stays one: the file that it names is replaced.
    """
    path = Path(os.path.realpath(target))
    try:
        there = path.stat()
    except FileNotFoundError:
        if path.parent.is_dir():
            return path
        raise fail(
            "no-directory",
            "The output's directory does not exist",
            subject=target,
            explanation=f"There is no directory {path.parent}",
            suggestion="Make it, or name another output",
        ) from None
    except OSError as error:
        raise from_oserror(error, "write the output") from error
    if os.path.samestat(there, os.stat(source)):  # noqa: PTH116 - the input may be any kind of path
        raise fail(
            "same-file",
            "Input and output are the same file",
            subject=target,
            explanation="The original's comments and layout would be lost",
            suggestion="Name another output, and move it over the input if that is what you want",
        )
    if not stat.S_ISREG(there.st_mode):
        raise fail(
            "not-a-file",
            "The output is there already and is no regular file",
            subject=target,
            suggestion="Name a file, or - for standard output",
        )
    return path


def _holds(path: Path, content: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False


def _to_standard_output(content: bytes, form: str, *, dry_run: bool) -> int:
    if form == "dtb" and sys.stdout is not None and sys.stdout.isatty():
        raise fail(
            "blob-to-terminal",
            "A blob is not written to a terminal",
            suggestion="Name an output file, or redirect: zernel convert FILE - --to=dtb > FILE.dtb",
            alternative="Print source: --to=dts",
        )
    if not dry_run:
        streams.write(content)
    return 0
