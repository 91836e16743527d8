# SPDX-License-Identifier: GPL-3.0-or-later
"""Running other programs: found with a clear error, never left behind, their failures told in words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from testbed.errors import TestbedError, disk_full

# How a person calls the testbed at the top of a clone
COMMAND = "PYTHONPATH=tests python3 -m testbed"

# The Debian package that a program comes from, where its name does not say so
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "apt-get": "apt",
    "apt-cache": "apt",
    "apt-config": "apt",
    "dpkg-deb": "dpkg",
    "pahole": "dwarves",
    "ld": "binutils",
}
# A file system with less free than this, in bytes, was the reason for whatever failed on it
_FULL = 16 << 20
# Where administrators' programs live, which an ordinary PATH may lack
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return PATH with the administrators' directories after it."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])


def require(*names: str) -> None:
    """Refuse to go on when one of the programs is missing, naming all of them and their packages."""
    missing = [name for name in names if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise TestbedError(
            f"Missing {'program' if len(missing) == 1 else 'programs'}: {', '.join(missing)}",
            suggestion=f"apt-get install {' '.join(packages)}",
        )


def tail(text: str, lines: int = 40) -> str:
    """Return the last non-empty lines of a log, without the control characters of a serial console."""
    clean = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines())
    return "\n".join([line for line in clean if line.strip()][-lines:])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for programs whose messages are read: C locale, full search path."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": search_path(), **(extra or {})}


def run(
    argv: Sequence[str | Path],
    doing: str,
    *,
    suggestion: str = "Read the messages above and try again",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return its standard output. ``doing`` completes "Cannot ..."."""
    require(str(argv[0]))
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise _failure(str(argv[0]), done.returncode, done.stderr or done.stdout, doing, suggestion)
    return done.stdout


def build(
    argv: Sequence[str | Path],
    doing: str,
    log: Path,
    *,
    suggestion: str = "Read the messages above and try again",
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program that starts many others, its outputs to a log; none of them outlives this call.

    Ctrl-C, SIGTERM and even SIGKILL of this process end them all: for root they have a process name space
    of their own, which the kernel empties; for others, the session is signalled.
    """
    require(str(argv[0]), "setpriv", "unshare")
    contained = dies_with_parent(argv, "KILL")
    if os.geteuid() == 0:
        space = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"]
        contained = dies_with_parent([*space, *argv], "KILL")
    with log.open("ab") as stream:
        process = subprocess.Popen(
            contained,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # Ctrl-C is for us: we end the others.
            start_new_session=True,
        )
        try:
            process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode != 0:
        messages = log.read_text(errors="replace")
        # Not every program passes the reason on, and the log itself may have found no room.
        if (free := shutil.disk_usage(log.parent).free) < _FULL:
            state = f"{log.parent} has {free >> 20} MiB free"
            raise disk_full(doing, f"{argv[0]} ended with status {process.returncode}: {state}")
        raise _failure(str(argv[0]), process.returncode, messages, doing, suggestion)


def kept_waiting(pid: int) -> float:
    """Return for how long this machine kept the threads of a process waiting for a CPU so far, in seconds."""
    waited = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            waited += int(thread.read_text().split()[1])
    return waited / 1e9


def unwind_when_ended(leave: Callable[[int], object] = sys.exit) -> None:
    """Let SIGTERM and a terminal that hangs up unwind us, as Ctrl-C does.

    Their default action would end us without any clean-up. ``leave`` raises what unwinds, given the status.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores one of them, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _frame: leave(128 + received))


@contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C and orders to end wait until the block is done.

    What the block starts is then always known to those who end it: an exception out of a signal handler would
    come between a process and its being written down.
    """
    came: list[int] = []
    before = {}
    try:
        # Only there are Python's handlers run.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # One that is ignored stays so, and one that would end us without any clean-up does.
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda received, _frame: came.append(received))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _failure(program: str, status: int, messages: str, doing: str, suggestion: str) -> TestbedError:
    if "No space left on device" in messages:
        return disk_full(doing, f"{program}: No space left on device")
    return TestbedError(
        f"Cannot {doing}",
        f"{program} ended with status {status}",
        log=tail(messages, 25),
        suggestion=suggestion,
    )


def dies_with_parent(argv: Iterable[str | Path], name: str = "TERM") -> list[str]:
    """Wrap a command so that the kernel ends it when the thread that started it dies, even by SIGKILL."""
    return ["setpriv", "--pdeathsig", name, "--", *(str(word) for word in argv)]
