# SPDX-License-Identifier: GPL-3.0-or-later
"""Two processes that wake each other through two pipes: ``python3 pipes.py ROUND_TRIPS``."""

from __future__ import annotations

import os
import sys


def main(trips: int) -> None:
    (there, to), (back, fro) = os.pipe(), os.pipe()
    if os.fork() == 0:
        for _ in range(trips):
            os.write(fro, os.read(there, 1))
        os._exit(0)
    for _ in range(trips):
        os.write(to, b"x")
        os.read(back, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
