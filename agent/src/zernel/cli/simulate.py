# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel simulate``: stand-ins for what a machine may not have. What they serve says that it is
simulated."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from zernel.cli.output import add_format_option, print_result
from zernel.errors import ZernelError, fail, from_oserror
from zernel.multikernel import fs, mounts, simulate


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``zernel simulate``."""
    parser.add_argument("what", choices=["multikernel"], help="what to simulate")
    parser.add_argument(
        "mountpoint", type=Path, metavar="MOUNTPOINT", help="where to mount it; made if need be"
    )
    parser.add_argument(
        "--background", action="store_true", help="return once it is mounted; stop it with umount"
    )
    parser.add_argument(
        "--version",
        type=int,
        choices=(1, 2),
        default=1,
        help="which version of the kernel's interface: 1 shows the baseline as it was written (the default);"
        " 2 takes physical CPU ids, places memory itself, and undoes a transaction by rmdir",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        choices=list(simulate.FAULTS),
        help="let the next overlay, load, unload, boot or halt meet a fault; each further --fault is for the"
        " one after it (policies-hidden: from the start)",
    )
    add_format_option(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, Ctrl-C or umount. All simulated state is lost then."""
    if args.version == 1 and set(args.fault) & set(simulate.UNDO_FAULTS):
        args.wrong_usage("the first version has no undo: --fault=undo-fails goes with --version=2")
    # Resolved once: a mount has no other name, and a link that changes later leads nowhere else.
    mountpoint = mounts.resolved(Path(args.mountpoint))
    _prepare(mountpoint)
    if args.background:
        return _in_background(args, mountpoint)
    _serve(args, mountpoint, lambda: _announce(args, mountpoint, os.getpid()))
    return 0


def _prepare(mountpoint: Path) -> None:
    """Make the mount point usable: no live mount of ours or of a kernel's on it, none of a dead one."""
    if os.geteuid() != 0:
        raise fail(
            "not-root",
            "Only root may mount a simulated multikernel file system",
            suggestion="Run the command as root",
        )
    found = mounts.mount_at(mountpoint)
    if found is not None and found.fstype == "multikernel":
        raise fail(
            "real-multikernel",
            f"A kernel's multikernel file system is mounted at {mountpoint}",
            suggestion="Simulate elsewhere: zernel simulate multikernel /run/zernel/multikernel",
        )
    if found is not None and found.fstype == fs.SIMULATED_TYPE:
        try:
            mountpoint.stat()
        except OSError:
            mounts.unmount(mountpoint, mounts.MNT_DETACH)  # its server died
        else:
            raise fail(
                "already-simulated",
                f"A simulation is mounted at {mountpoint} already",
                suggestion=f"Use it, or end it: umount {shlex.quote(str(mountpoint))}",
            )
    if mountpoint.exists() and not mountpoint.is_dir():
        raise fail(
            "not-a-directory",
            f"{mountpoint} is no directory",
            suggestion="Name a directory that is empty, or one that is to be made",
        )
    mountpoint.mkdir(parents=True, exist_ok=True)
    if any(mountpoint.iterdir()):
        raise fail(
            "mountpoint-not-empty",
            f"The directory {mountpoint} is not empty",
            explanation="A mount would hide what is in it",
            suggestion="Name an empty directory, such as /run/zernel/multikernel",
        )


def _serve(args: argparse.Namespace, mountpoint: Path, ready: Callable[[], None]) -> None:
    from zernel.multikernel import fuse

    served = simulate.simulated(args.version, list(args.fault))
    fuse.serve(mountpoint, simulate.SOURCE, served, ready)


def _announce(args: argparse.Namespace, mountpoint: Path, pid: int) -> None:
    from zernel.service import notify

    notify("READY=1\nSTATUS=SIMULATED multikernel file system")
    data = {
        "status": "mounted",
        "simulated": True,
        "version": args.version,
        "mountpoint": str(mountpoint),
        "pid": pid,
    }
    quoted = shlex.quote(str(mountpoint))
    text = (
        f"SIMULATED multikernel file system (version {args.version}) mounted at {mountpoint} (pid {pid})\n"
        f"  Use it:  export ZERNEL_MULTIKERNEL_ROOT={quoted}\n"
        f"  End it:  umount {quoted}  (all simulated state is lost)"
    )
    print_result(data, args.format, lambda: text)
    sys.stdout.flush()


def _in_background(args: argparse.Namespace, mountpoint: Path) -> int:
    """Serve in a child of its own session; return once it is mounted, or with its error."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiver)
        status = 1
        try:
            os.setsid()
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            _serve(args, mountpoint, lambda: _tell(sender, "ready"))
            status = 0
        except ZernelError as error:
            _tell(sender, _packed(error))
        except OSError as error:
            _tell(sender, _packed(from_oserror(error, "mount the simulation")))
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, encoding="utf-8") as messages:
        message = messages.read()
    if message != "ready":
        os.waitpid(pid, 0)
        if message:
            code, category, explanation, suggestion = json.loads(message)
            raise fail(code, category, explanation=tuple(explanation), suggestion=suggestion)
        raise fail(
            "simulation-failed",
            "The simulation did not start",
            explanation="Its process ended without a word",
            suggestion="Run it without --background to see what happens",
        )
    _announce(args, mountpoint, pid)
    return 0


def _packed(error: ZernelError) -> str:
    problem = error.problems[0]
    return json.dumps([problem.code, problem.category, problem.explanation, problem.suggestion or ""])


def _tell(sender: int, message: str) -> None:
    os.write(sender, message.encode())
    os.close(sender)
