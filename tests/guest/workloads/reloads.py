# SPDX-License-Identifier: GPL-3.0-or-later
"""Reload a daemon's settings again and again: ``python3 reloads.py PID COUNT FILE``.

FILE gets the texts of a JSON list on standard input in turn, each before one SIGHUP; the next one comes when
the daemon fetched the last. Meanwhile another process reads the state of sched_ext without pause. Prints as
JSON how often it did, and how often that was not ``enabled``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing import Event, Process, RawValue
from pathlib import Path
from typing import Any

STATE = "/sys/kernel/sched_ext/state"


def watch(reads: Any, gaps: Any, stop: Any) -> None:
    with Path(STATE).open() as stream:  # opened once: opening is the slow part
        while not stop.is_set():
            stream.seek(0)
            reads.value += 1
            gaps.value += stream.read().strip() != "enabled"
            time.sleep(0.001)


def pending(pid: int) -> bool:
    """Tell whether the process still has a SIGHUP to fetch."""
    mask = Path(f"/proc/{pid}/status").read_text().partition("ShdPnd:")[2].split()[0]
    return bool(int(mask, 16) >> (signal.SIGHUP - 1) & 1)


def main(pid: int, count: int, file: Path) -> None:
    texts = json.load(sys.stdin)
    reads, gaps, stop = RawValue("q", 0), RawValue("q", 0), Event()
    watcher = Process(target=watch, args=(reads, gaps, stop))
    watcher.start()
    for number in range(count):
        # Replaced whole: the daemon may read it at any time.
        new = file.with_suffix(".new")
        new.write_text(texts[number % len(texts)])
        new.rename(file)
        os.kill(pid, signal.SIGHUP)
        while pending(pid):
            time.sleep(0.002)
    stop.set()
    watcher.join()
    print(json.dumps({"reads": reads.value, "gaps": gaps.value}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
