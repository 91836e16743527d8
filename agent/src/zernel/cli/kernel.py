# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel kernel report``: what a kernel has and lacks for machine learning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zernel.cli.output import add_format_option, print_result
from zernel.errors import fail
from zernel.host.kernel_options import REQUIREMENTS, KernelReport, Source, report

_EPILOG = f"""\
Without options the running kernel is looked at, and the exit status is 0 whatever it lacks. --require takes
an option (SCHED_CLASS_EXT) or one of: {", ".join(REQUIREMENTS)}; what is not met makes the exit status 1.
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel kernel``."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("report",), help="compare the kernel with what is wanted")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kernel", metavar="RELEASE", help="an installed kernel, by its release (uname -r)")
    which.add_argument("--config", type=Path, metavar="FILE", help="a kernel configuration, also compressed")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="a vmlinuz whose type information is checked"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if anything is missing")
    parser.add_argument(
        "--require", action="append", default=[], metavar="NAME", help="exit 1 if this is missing"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="directory that holds proc, sys, boot and lib"
    )
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when something that was required is not met."""
    looks_at_running = args.kernel is None and args.config is None and args.image is None
    if looks_at_running and not (args.root / "proc/sys/kernel").is_dir():
        raise fail(
            "kernel-no-root",
            "No kernel runs there",
            subject=str(args.root),
            explanation=f"{args.root / 'proc/sys/kernel'} is no directory",
            suggestion="Give the root of a host with --root, or an installed kernel with --kernel",
        )
    required = [name for words in args.require for name in words.split(",") if name]
    source = Source(args.root, args.kernel, args.config, args.image)
    result = report(source, required, args.strict)
    print_result(result.as_dict(), args.format, lambda: _text(result))
    for problem in result.unmet:
        print(problem.render(), file=sys.stderr)
    return 1 if result.unmet else 0


def _text(result: KernelReport) -> str:
    kernel = result.release or "(release unknown)"
    lines = [
        f"Kernel {kernel}{', running' if result.running else ''}; options from {result.config_source or '-'}"
    ]
    area = None
    # An area's options together, the areas in the order in which they are first met
    areas = list(dict.fromkeys(option.want.area for option in result.options))
    for option in sorted(result.options, key=lambda option: areas.index(option.want.area)):
        if option.want.area != area:
            area = option.want.area
            lines += ["", area]
        setting = f"{option.want.option}={option.want.asked}"
        found = "-" if option.found is None else option.found
        lines.append(f"  {option.verdict:8} {setting:41} found {found:5} {option.want.rationale}")
        if option.why and option.verdict in ("missing", "ok"):
            lines.append(f"  {'':8} {'':41} {option.why}")
    if result.config_source is None:
        lines += ["", f"Options unknown: {next(o.why for o in result.options if o.verdict == 'unknown')}"]
    lines += ["", f"Type information (BTF): {result.btf.verdict}"]
    if result.btf.why:
        lines.append(f"  {result.btf.why}")
    if result.btf.malformed_kfuncs:
        lines.append(f"  Malformed: {', '.join(result.btf.malformed_kfuncs)}")
    counts = result.as_dict()["summary"]
    assert isinstance(counts, dict)
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items() if count)]
    return "\n".join(lines)
