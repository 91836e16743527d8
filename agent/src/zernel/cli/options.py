# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands of instances share."""

from __future__ import annotations

import argparse
from pathlib import Path


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
