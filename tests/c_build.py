# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles a C program that a test runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def build_program(source: Path, directory: Path) -> Path:
    """Compile ``NAME.c`` into ``directory`` and return the program."""
    output = directory / source.stem
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run(["gcc", *flags, "-o", output, source, "-ldl"], check=True)
    return output
