# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands of instances share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from zernel.devicetree.model import CPU_AFFINITIES, MAX_INSTANCE_ID, MEMORY_POLICIES
from zernel.devicetree.units import RESOURCES, parse_cpus, parse_memory, parse_size
from zernel.errors import ZernelError

_PROPOSAL: dict[str, Callable[[str, str], object]] = {
    "host_cpus": parse_cpus,
    "pool_size": parse_memory,
    "pool_base": parse_size,
}


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add NAME, the instance that a command is about."""
    parser.add_argument(
        "name", metavar="NAME", help="the instance's name; it may stand before or after the options"
    )


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--root``, for the commands that choose CPUs and memory."""
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="where sys/ is, which tells of cores and devices"
    )


def add_resources(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add what an instance shall have; CPUs and memory may be ``required``."""
    cpus = parser.add_mutually_exclusive_group(required=required)
    cpus.add_argument("--cpus", metavar="LIST", help="these CPUs, such as 4-7 or 4,5,8-11")
    cpus.add_argument("--cpu-count", metavar="N", help="this many CPUs, chosen from the free ones")
    parser.add_argument(
        "--memory", required=required, metavar="SIZE", help="such as 2GB, 512MB or 0x80000000"
    )
    parser.add_argument(
        "--memory-base", metavar="ADDRESS", help="where the memory begins; default: near its CPUs"
    )
    parser.add_argument("--devices", metavar="LIST", help="such as eth0:vf1,nvme0:ns2; 'none' for no device")
    add_wishes(parser)
    parser.add_argument(
        "--id", metavar="N", help=f"the instance's id, 1 to {MAX_INSTANCE_ID}; default: the lowest free one"
    )


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where an instance should be."""
    parser.add_argument(
        "--numa-nodes", metavar="LIST", help="CPUs of these NUMA nodes only, and memory where it can be: 0,1"
    )
    parser.add_argument(
        "--cpu-affinity",
        choices=CPU_AFFINITIES,
        help="compact: few nodes, neighbouring cores (the default); spread: evenly over nodes and cores;"
        " local: near the devices",
    )
    parser.add_argument(
        "--memory-policy",
        choices=MEMORY_POLICIES,
        help="local: on the nodes named, or the CPUs', where it can be; bind: there or not at all;"
        " interleave: a part on each",
    )


def add_boot_files(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add what is loaded into an instance; the kernel may be ``required``."""
    parser.add_argument(
        "--kernel",
        "-k",
        required=required,
        type=Path,
        metavar="FILE",
        help="a bzImage (vmlinuz), whose ELF kernel is taken out, or an ELF kernel (vmlinux); x86-64",
    )
    parser.add_argument("--initrd", "-i", type=Path, metavar="FILE", help="the initial RAM disk")
    parser.add_argument(
        "--cmdline", "-c", default="", metavar="TEXT", help="the kernel's command line, up to 2047 bytes"
    )


def resources(args: argparse.Namespace) -> dict[str, object]:
    """Return what `add_resources` read, by the names of `zernel.multikernel.planning.Request`; what was not
    given is left out. Raises `ZernelError` with every mistake."""
    return read(args, RESOURCES)


def read(args: argparse.Namespace, readers: dict[str, Callable[[str, str], object]]) -> dict[str, object]:
    """Return the options that were given, as their readers read them, each of a text and the option;
    ``memory`` is ``memory_bytes`` then. Raises `ZernelError` with every mistake in them.
    """
    values: dict[str, object] = {}
    mistakes: list[ZernelError] = []
    for name, reader in readers.items():
        text, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if text is not None:
            try:
                values["memory_bytes" if name == "memory" else name] = reader(text, option)
            except ZernelError as error:
                mistakes.append(error)
    if mistakes:
        raise ZernelError(*(problem for error in mistakes for problem in error.problems))
    return values


def add_proposal(parser: argparse.ArgumentParser) -> None:
    """Add what shapes the baseline that is proposed for a host."""
    parser.add_argument("--host-cpus", metavar="LIST", help="with --hardware: the CPUs that the host keeps")
    parser.add_argument("--pool-size", metavar="SIZE", help="with --hardware: how much memory to give away")
    parser.add_argument(
        "--pool-base", metavar="ADDRESS", help="with --hardware: where the memory pool begins"
    )


def proposal(args: argparse.Namespace) -> dict[str, object]:
    """Return what `add_proposal` read, by the names of `zernel.host.hardware.propose`."""
    found = read(args, _PROPOSAL)
    return {"pool_bytes" if name == "pool_size" else name: value for name, value in found.items()}


def check_proposal(args: argparse.Namespace) -> None:
    """Exit 2 where what `add_proposal` read is given without ``--hardware``."""
    if not args.hardware and any(getattr(args, name) is not None for name in _PROPOSAL):
        args.wrong_usage("--host-cpus, --pool-size and --pool-base go with --hardware")
