# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands of instances share."""

from __future__ import annotations

import argparse
from pathlib import Path

from zernel.devicetree.model import CPU_AFFINITIES, MEMORY_POLICIES


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
