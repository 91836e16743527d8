# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel create``: create a kernel instance."""

from __future__ import annotations

import argparse

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.model import MAX_CPU, MAX_INSTANCE_ID
from zernel.devicetree.units import (
    parse_base,
    parse_cpus,
    parse_devices,
    parse_memory,
    parse_nodes,
    parse_number,
)
from zernel.errors import ZernelError
from zernel.multikernel import fs, operations, planning, report
from zernel.multikernel.text import change_data, print_change, told


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel create``."""
    options.add_name(parser)
    cpus = parser.add_mutually_exclusive_group(required=True)
    cpus.add_argument("--cpus", metavar="LIST", help="these CPUs, such as 4-7 or 4,5,8-11")
    cpus.add_argument("--cpu-count", metavar="N", help="this many CPUs, chosen from the free ones")
    parser.add_argument("--memory", required=True, metavar="SIZE", help="such as 2GB, 512MB or 0x80000000")
    parser.add_argument(
        "--memory-base", metavar="ADDRESS", help="where the memory begins; default: the lowest free place"
    )
    parser.add_argument("--devices", metavar="LIST", help="such as eth0:vf1,nvme0:ns2")
    options.add_wishes(parser)
    parser.add_argument(
        "--id", metavar="N", help=f"the instance's id, 1 to {MAX_INSTANCE_ID}; default: the lowest free one"
    )
    parser.add_argument("--dry-run", action="store_true", help="same verdict, but nothing is created")
    parser.add_argument(
        "--ensure",
        action="store_true",
        help="succeed when the instance is there already with exactly these resources",
    )
    options.add_root(parser)
    add_format_option(parser)


def run(args: argparse.Namespace) -> int:
    """Create the instance; exit 1 with the reason when that cannot be."""
    request = _request(args)
    target = fs.open_fs()
    outcome = operations.create(target, request, dry_run=args.dry_run, ensure=args.ensure, root=args.root)
    data = change_data(outcome, target, dry_run=args.dry_run, status="created")
    instance = outcome.after or outcome.before
    assert instance is not None
    data["instance"] = report.instance_data(instance, outcome.status)
    if not outcome.changed:
        done = f"✓ Instance {request.name} is there already: nothing to change"
    elif args.dry_run:
        done = f"✓ Instance {request.name} can be created (dry run: nothing was written)"
    else:
        done = f"✓ Instance {request.name} created{told(outcome.transactions)}"
    lines = report.instance_lines(instance, outcome.status)
    print_result(data, args.format, lambda: print_change(lines, outcome, target, done))
    return 0


def _request(args: argparse.Namespace) -> planning.Request:
    """Read the options; raises `ZernelError` with every mistake in them."""
    values: dict[str, object] = {}
    mistakes: list[ZernelError] = []
    readers = (
        ("cpus", lambda: parse_cpus(args.cpus, "--cpus")),
        ("cpu_count", lambda: parse_number(args.cpu_count, "--cpu-count", MAX_CPU + 1)),
        ("memory", lambda: parse_memory(args.memory, "--memory")),
        ("memory_base", lambda: parse_base(args.memory_base, "--memory-base")),
        ("devices", lambda: parse_devices(args.devices, "--devices")),
        ("numa_nodes", lambda: parse_nodes(args.numa_nodes, "--numa-nodes")),
        ("cpu_affinity", lambda: args.cpu_affinity),
        ("memory_policy", lambda: args.memory_policy),
        ("id", lambda: parse_number(args.id, "--id", MAX_INSTANCE_ID)),
    )
    for name, read in readers:
        if getattr(args, name) is not None:
            try:
                values["memory_bytes" if name == "memory" else name] = read()
            except ZernelError as error:
                mistakes.append(error)
    if mistakes:
        raise ZernelError(*(problem for error in mistakes for problem in error.problems))
    return planning.Request(name=args.name, **values)  # type: ignore[arg-type]
