# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel show``: the baseline and the instances, or with ``--hardware`` what this host has to give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zernel.cli import options
from zernel.cli.output import add_format_option, print_result
from zernel.devicetree.model import Resources, System
from zernel.errors import Problem, ZernelError
from zernel.multikernel import report

if TYPE_CHECKING:
    from zernel.multikernel.fs import MultikernelFs
    from zernel.multikernel.state import State
    from zernel.multikernel.wire import Wire


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel show``."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one instance; default: the baseline and all instances"
    )
    parser.add_argument(
        "--hardware", action="store_true", help="the host's hardware, and a baseline proposed for it"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="what is used and what is free: CPUs, memory and devices, by instance and NUMA node",
    )
    parser.add_argument(
        "--dts", action="store_true", help="with --hardware: only that baseline, as source for init --input"
    )
    options.add_proposal(parser)
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="with --hardware: where sys/ and proc/ are"
    )
    add_format_option(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Show the state of the kernel, or the hardware. Nothing is changed."""
    if args.dts and (not args.hardware or args.format != "text"):
        args.wrong_usage("--dts goes with --hardware, and is a format itself")
    if args.hardware and args.report:
        args.wrong_usage("--hardware and --report do not go together")
    if args.name is not None and (args.report or args.hardware):
        args.wrong_usage(f"{'--report' if args.report else '--hardware'} takes no instance's name")
    options.check_proposal(args)
    if args.hardware:
        return _show_hardware(args)
    if args.report:
        return _show_report(args)
    from zernel.multikernel import planning, transactions

    target, current, wire = _state()
    instances = current.system.instances
    if args.name is not None:
        found = current.instance(args.name)
        if found is None:
            with transactions.labelling(target):
                raise planning.not_there(args.name, [instance.name for instance in instances])
        instances = (found,)
    resources = current.system.resources
    data: dict[str, Any] = {
        "status": "ok",
        "simulated": target.simulated,
        "root": str(target.root),
        "wire": wire.name,
        "baseline_complete": resources.complete,
        "hardware": report.hardware_data(resources),
        "instances": {
            instance.name: report.instance_data(instance, current.statuses[instance.name])
            for instance in instances
        },
    }

    def text() -> str:
        lines: list[str] = []
        if args.name is None:
            lines = [*report.inventory_lines(resources), ""]
        if args.name is None and not resources.complete:
            lost = ", or Zernel's record of it is lost" if wire.places_memory else ""
            ids = ["CPUs are shown by their physical ids"] if wire.places_memory else []
            lines[:0] = [f"The baseline was applied by another program{lost}: only the pool is known", *ids]
        for instance in instances:
            lines += report.instance_lines(instance, current.statuses[instance.name])
        if not instances:
            lines.append("No instances")
        return "\n".join([*lines, *([target.label] if target.label else [])])

    print_result(data, args.format, text)
    return 0


def _state() -> tuple[MultikernelFs, State, Wire]:
    """Return the file system and what it holds; raises `ZernelError` when there is none, or no baseline."""
    from zernel.multikernel import fs, state, transactions
    from zernel.multikernel.wire_probe import wire_for

    target = fs.open_fs()
    with transactions.labelling(target):
        wire = wire_for(target)
        return target, state.load(target, wire), wire


def _show_report(args: argparse.Namespace) -> int:
    from zernel.devicetree.validate import unallocated
    from zernel.multikernel import utilisation

    target, current, wire = _state()
    warnings = unallocated(current.system)
    data = {
        "status": "ok",
        "simulated": target.simulated,
        "root": str(target.root),
        "wire": wire.name,
        "baseline_complete": current.system.resources.complete,
        "utilisation": utilisation.data(current.system, current.statuses),
        "warnings": [problem.as_dict() for problem in warnings],
    }

    def text() -> str:
        lines = utilisation.lines(current.system, current.statuses)
        lines += [line for problem in warnings for line in ("", problem.render())]
        return "\n".join([*lines, *([target.label] if target.label else [])])

    print_result(data, args.format, text)
    return 0


def _show_hardware(args: argparse.Namespace) -> int:
    import zernel.host.hardware as hardware

    found = hardware.discover(args.root)
    wishes = options.proposal(args)
    proposal: Resources | None = None
    problems: tuple[Problem, ...] = ()
    try:
        proposal = hardware.propose(found, **wishes)  # type: ignore[arg-type]
    except ZernelError as error:
        if wishes or args.dts:
            raise  # what was asked for is impossible
        problems = error.problems  # a host that cannot be split still has hardware to show
    if args.dts:
        assert proposal is not None
        from zernel.devicetree import render

        print(render.source(render.system_tree(System(proposal, ()))), end="")
        return 0
    data = {
        "status": "ok",
        "hardware": hardware.as_data(found),
        "baseline": report.hardware_data(proposal) if proposal else None,
        "errors": [problem.as_dict() for problem in problems],
    }

    def text() -> str:
        lines = [*hardware.describe(found), ""]
        if proposal is not None:
            inventory = [*report.inventory_lines(proposal), *report.inventory_details(proposal)]
            return "\n".join([*lines, "A baseline for it:", *inventory])
        return "\n".join(
            [*lines, "No baseline can be proposed:", *(problem.render() for problem in problems)]
        )

    print_result(data, args.format, text)
    return 0
