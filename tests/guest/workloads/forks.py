# SPDX-License-Identifier: GPL-3.0-or-later
"""A fork storm, run inside a guest: ``python3 forks.py SECONDS``.

One process for each CPU forks children that end at once, another one crowds of fifty that live for a moment,
all as fast as they can; a third kind sleeps for 5 ms at a time. Prints how often each got its work done, as
JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import Process, RawValue
from typing import Any


def single() -> None:
    crowd(1, 0)


def crowd(number: int = 50, seconds: float = 0.05) -> None:
    children = []
    for _ in range(number):
        child = os.fork()
        if child == 0:
            time.sleep(seconds)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def sleeper() -> None:
    time.sleep(0.005)


def repeat(act: Callable[[], None], done: Any, deadline: float) -> None:
    while time.monotonic() < deadline:
        act()
        done.value += 1


def main(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    kinds = [(single, number) for number in range(os.cpu_count() or 1)] + [(crowd, 0), (sleeper, 0)]
    done = {kind: RawValue("q", 0) for kind in kinds}
    processes = [Process(target=repeat, args=(kind[0], done[kind], deadline)) for kind in kinds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds + 60)
    report = dict.fromkeys(("single", "crowd", "sleeper"), 0)
    for (act, _), value in done.items():
        report[act.__name__] += value.value
    print(json.dumps(report))


if __name__ == "__main__":
    main(float(sys.argv[1]))
