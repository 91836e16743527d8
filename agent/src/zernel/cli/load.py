# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel load``: load a kernel into an instance."""

from __future__ import annotations

import argparse

from zernel.cli import options
from zernel.cli.lifecycle import add_common_options, boot_data, print_step, target_of
from zernel.devicetree.units import format_size
from zernel.multikernel import boot_files, fs, lifecycle


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel load``."""
    options.add_boot_files(parser, required=True)
    add_common_options(parser, "the instance has a kernel already; which one it is cannot be told")


def run(args: argparse.Namespace) -> int:
    """Load the kernel; exit 1 with the reason when that cannot be."""
    target = fs.open_fs()
    with boot_files.opened(args.kernel, args.initrd, args.cmdline) as files:
        result = lifecycle.load(target, target_of(args), files, dry_run=args.dry_run, ensure=args.ensure)
    assert isinstance(files, boot_files.BootFiles)
    print_step(
        args,
        target,
        result,
        status="loaded",
        done=f"loaded with {args.kernel}",
        possible=f"can be loaded with {args.kernel}",
        details=_lines(files) if result.changed else None,
        data=boot_data(files),
    )
    return 0


def _lines(files: boot_files.BootFiles) -> list[str]:
    kernel, initrd = files.kernel, files.initrd
    held = f"out of a bzImage ({kernel.compression})" if kernel.compression else "an ELF file as it is"
    lines = [f"  Kernel: {held}, {format_size(kernel.layout.memory_bytes)} in memory"]
    if initrd is not None:
        lines.append(f"  Initrd: {initrd.path}, {initrd.size} bytes")
    return [*lines, f"  Command line: {files.cmdline or 'none'}"]
