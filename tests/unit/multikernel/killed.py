# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ``zernel`` and kills it with SIGKILL at one of the calls that change something outside of it.

Usage: ``python killed.py``, then one JSON line ``[N, [WORDS...]]`` for each run. The run is a process of its
own, forked so that Python starts once; it dies right before (even N) or right after (odd N) the N/2-th such
call, or of those that a third item of the line lists. It ends by itself, with the command's own status, when
there are fewer calls, or when N is negative. The answer is one JSON line ``[STATUS, STDOUT]``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from zernel.cli.main import main

# All that the commands use to change files, the kernel or the lock.
CALLS = ("open", "write", "pwrite", "ftruncate", "replace", "rename", "unlink", "fsync", "mkdir")
WRITES = os.O_WRONLY | os.O_RDWR


def arm(moment: int, calls: list[str]) -> None:
    seen = 0

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if name == "open" and not args[1] & WRITES:
                return call(*args, **kwargs)
            if moment == 2 * seen:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if moment == 2 * seen + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            return result

        return wrapper

    for name in calls:
        setattr(os, name, watched(name, getattr(os, name)))


def run(moment: int, words: list[str], calls: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            arm(moment, calls or list(CALLS))
            status = main(words)
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        return status, output.read().decode()


if __name__ == "__main__":
    for verb in (
        "apply",
        "create",
        "delete",
        "ensure",
        "exec",
        "init",
        "kill",
        "load",
        "rollback",
        "show",
        "unload",
        "update",
    ):
        importlib.import_module(f"zernel.cli.{verb}")
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
