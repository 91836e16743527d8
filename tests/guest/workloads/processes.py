# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scheduler tells of processes and takes from hints for them: ``python3 processes.py``.

Loads the scheduler itself. Prints as JSON what it said of three processes (a hog, one that sleeps, one that
waits for storage), and how a hog was treated with a hint: a fresh one, a stale one, one for another process
of its number; and how a process was treated that got the hog's number while its hint was fresh, and that then
got one of its own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from zernel.scheduler.config import Config, Safety
from zernel.scheduler.loader import load_checked
from zernel.scheduler.maps import Activity, Hint, SchedulerMaps
from zernel.scheduler.policy import Phase

HOG = "while True: pass"
SLEEPER = "import time\nwhile True: time.sleep(0.02)"
READER = """
import mmap, os
disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
while True:
    os.preadv(disk, [buffer], 0)
"""
LIFETIME_S = 1.0
SYS_CLONE3 = 435


class CloneArguments(ctypes.Structure):
    """``struct clone_args`` of include/uapi/linux/sched.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


def start_as(pid: int) -> None:
    """Start a hog that has this process id."""
    wanted = (ctypes.c_int * 1)(pid)
    arguments = CloneArguments(
        exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=len(wanted)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    child = libc.syscall(SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child == 0:
        # What the parent has open, the scheduler's link above all, is closed by that.
        os.execv(sys.executable, [sys.executable, "-c", HOG])
    assert child == pid, os.strerror(ctypes.get_errno())


def start(program: str) -> subprocess.Popen[bytes]:
    """Start the program and wait until it is at work: that takes seconds in an emulated guest."""
    text = f"print(flush=True)\n{program}"
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def plain(activity: Activity) -> dict[str, Any]:
    return dataclasses.asdict(activity) | {"roles": sorted(activity.roles)}


def phase(maps: SchedulerMaps, pid: int, after: float) -> str | None:
    time.sleep(after)
    task = maps.task(pid)
    assert task is not None
    return task.phase


def main() -> None:
    config = dataclasses.replace(Config(), safety=Safety(hint_lifetime_ms=round(LIFETIME_S * 1000)))
    with load_checked(config) as scheduler:
        maps = scheduler.maps
        programs = {"hog": HOG, "sleeper": SLEEPER, "reader": READER}
        running = {name: start(text) for name, text in programs.items()}
        time.sleep(1)
        maps.drain()
        time.sleep(2)
        seen = maps.drain()
        report: dict[str, Any] = {name: plain(seen[process.pid]) for name, process in running.items()}
        report["start_ticks"] = {name: start_ticks(process.pid) for name, process in running.items()}
        hog = running["hog"].pid
        maps.set_hints({hog: Hint(start_ticks(hog), Phase.GPU_COMPUTE)})
        report["fresh"] = phase(maps, hog, LIFETIME_S / 2)
        report["stale"] = phase(maps, hog, LIFETIME_S)
        maps.set_hints({hog: Hint(start_ticks(hog) - 1, Phase.GPU_COMPUTE)})
        report["other"] = phase(maps, hog, LIFETIME_S / 2)
        hint = Hint(start_ticks(hog), Phase.GPU_COMPUTE)
        maps.set_hints({hog: hint})
        dead = running.pop("hog")
        dead.kill()
        dead.wait()
        start_as(hog)
        # Nobody told the daemon yet: it keeps the dead process's hint fresh.
        maps.set_hints({})
        maps.set_hints({hog: hint})
        report["successor"] = phase(maps, hog, LIFETIME_S / 2)
        maps.set_hints({hog: Hint(start_ticks(hog), Phase.GPU_COMPUTE)})
        report["successors_own"] = phase(maps, hog, LIFETIME_S / 2)
        os.kill(hog, signal.SIGKILL)
        os.waitpid(hog, 0)
        for process in running.values():
            process.kill()
            process.wait()
        time.sleep(0.5)
        maps.drain()
        gone = {hog, *(process.pid for process in running.values())}
        report["gone"] = maps.task(hog) is None and not gone & maps.drain().keys()
        report["self"] = maps.task(os.getpid()) is not None
    print(json.dumps(report))


if __name__ == "__main__":
    main()
