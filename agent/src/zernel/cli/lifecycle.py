# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands load, unload, exec and kill share: the instance that they name, and how they report."""

from __future__ import annotations

import argparse
from typing import Any

from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.model import MAX_INSTANCE_ID
from zernel.multikernel import report
from zernel.multikernel.boot_files import BootFiles
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.lifecycle import Result, Target


def add_common_options(parser: argparse.ArgumentParser, ensure: str) -> None:
    """Add NAME, ``--id`` and what every change has; ``ensure`` completes "succeed when"."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="the instance's name; it may stand before or after the options",
    )
    target.add_argument("--id", type=_id, metavar="N", help="the instance's id, instead of its name")
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is done")
    parser.add_argument("--ensure", action="store_true", help=f"succeed when {ensure}")
    parser.add_argument("--verbose", "-v", action="store_true", help="print the instance's resources too")
    add_format_option(parser)


def target_of(args: argparse.Namespace) -> Target:
    """Return the instance that the command line names."""
    return Target(args.name, args.id)


def _id(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= MAX_INSTANCE_ID:
        raise argparse.ArgumentTypeError(f"'{text[:60]}' is no id: ids are 1 to {MAX_INSTANCE_ID}")
    return number


def print_step(
    args: argparse.Namespace,
    fs: MultikernelFs,
    result: Result,
    *,
    status: str,
    done: str,
    possible: str,
    details: list[str] | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Print the outcome. ``status`` is the word for data; ``done`` and ``possible`` complete "Instance
    NAME"."""
    dry_run = args.dry_run and result.changed
    before, after = (_instance_data(result, text) for text in (result.before, result.after))
    told = {
        "status": "unchanged" if not result.changed else "planned" if dry_run else status,
        "changed": result.changed,
        "dry_run": args.dry_run,
        "simulated": fs.simulated,
        "before": before,
        "after": after,
        "instance": after,
        "notes": list(result.notes),
        **(data or {}),
    }

    def text() -> str:
        if not result.changed:
            verdict = f"is {result.before} already: nothing to change"
        elif dry_run:
            verdict = f"{possible} (dry run: nothing was done)"
        else:
            verdict = done
        lines = [f"NOTE: {note}" for note in result.notes]
        lines.append(f"✓ Instance {result.name} {verdict}")
        if args.verbose and result.resources is not None:
            lines += report.instance_lines(result.resources, result.after)
        return "\n".join([*lines, *(details or []), *([fs.label] if fs.label else [])])

    print_result(told, args.format, text)


def _instance_data(result: Result, status: str) -> dict[str, Any]:
    if result.resources is not None:
        return report.instance_data(result.resources, status)
    return {"name": result.name, "id": result.id, "status": status}


def boot_data(files: BootFiles) -> dict[str, Any]:
    """Return what is loaded into an instance, for JSON and YAML."""
    kernel, initrd = files.kernel, files.initrd
    return {
        "kernel": {
            "path": str(kernel.path),
            "compression": kernel.compression,
            "elf_bytes": kernel.elf_bytes,
            "memory_bytes": kernel.layout.memory_bytes,
            "entry": kernel.layout.entry,
        },
        "initrd": {"path": str(initrd.path), "bytes": initrd.size} if initrd else None,
        "cmdline": files.cmdline,
    }
