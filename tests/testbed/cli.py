# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed's command line: ``PYTHONPATH=tests python3 -m testbed COMMAND``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import detached, image, kernel, kvm, qemu
from testbed.cache import Cache, remove_tree
from testbed.errors import TestbedError, from_oserror
from testbed.guest import BOOT_TIMEOUT, Guest, GuestSpec
from testbed.inventory import write
from testbed.qemu import Disk
from testbed.tools import COMMAND, environment, require, unwind_when_ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    unwind_when_ended()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(args.run(args))
    except TestbedError as error:
        print(error.render(), file=sys.stderr)
    except OSError as error:
        print(from_oserror(error, f"finish '{args.command}'").render(), file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _image(args: argparse.Namespace) -> int:
    built = image.ensure(image.Recipe.for_machine(args.kernel_series), rebuild=args.rebuild)
    print(built.path)
    return 0


def _kernel(args: argparse.Namespace) -> int:
    print(kernel.ensure(kernel.Recipe.for_machine(args.series), rebuild=args.rebuild))
    return 0


def _boot(args: argparse.Namespace) -> int:
    # Before minutes are spent on an image that nothing could boot
    require(qemu.PROGRAM, "setpriv", "ssh")
    guest_image = image.ensure(image.Recipe.for_machine(args.kernel_series))
    spec = GuestSpec(
        name=args.name,
        cpus=args.cpus,
        memory_mib=args.memory,
        numa_nodes=args.numa,
        disks=tuple(args.disk),
        kernel=_kernel_of(args.kernel),
        initrd=args.initrd,
        kernel_options=args.append,
        kvm={"auto": None, "kvm": True, "tcg": False}[args.accel],
        boot_timeout=args.timeout,
    )
    if args.detach:
        state = detached.Detached(args.name, args.state).boot(spec, guest_image)
        how = "KVM" if state.kvm else "emulated"
        print(f"Guest {args.name} answers after {state.boot_seconds} s ({how})")
        print(f"Log in: {COMMAND} ssh --name {args.name}")
        print(f"Stop:   {COMMAND} down --name {args.name}")
        return 0
    with Guest.boot(spec, image=guest_image, serial_log=args.serial) as guest:
        if args.inventory:
            write(args.inventory, [guest])
        if args.exec:
            done = guest.run(args.exec, check=False, timeout=args.timeout)
            sys.stdout.write(done.stdout)
            sys.stderr.write(done.stderr)
            return done.returncode
        print(f"Guest {args.name} answers after {guest.boot_seconds} s. Ctrl-C stops it. Log in:")
        print(f"  {' '.join(guest.address.command())}", flush=True)
        while guest.process.alive():
            time.sleep(0.5)
    return 0


def _kernel_of(text: str) -> str | Path:
    """Return "debian", the small kernel of a series (built when it is not there yet), or a path."""
    if text == "debian":
        return text
    if text in kernel.SERIES:
        return kernel.ensure(kernel.Recipe.for_machine(text))
    return Path(text)


def _ssh(args: argparse.Namespace) -> int:
    require("ssh")
    place = detached.Detached(args.name, args.state)
    command = place.address(place.running()).command(*(["-t"] if sys.stdin.isatty() else []))
    os.execvpe("ssh", [*command, *args.words], environment())


def _down(args: argparse.Namespace) -> int:
    was_up = detached.Detached(args.name, args.state).down()
    print(f"Guest {args.name} {'is powered off' if was_up else 'was not running'}")
    return 0


def _status(args: argparse.Namespace) -> int:
    places = detached.every(args.state)
    for place in places:
        if state := place.state():
            print(f"{place.name}: running, pid {state.pid}, SSH port {state.port}")
        elif process := place.left_behind():
            words = f"left behind by a command that was killed while it booted, pid {process.pid}"
            print(f"{place.name}: {words}; end it: {COMMAND} down --name {place.name}")
        else:
            print(f"{place.name}: dead")
    if not places:
        print("No guests")
    return 0


def _inventory(args: argparse.Namespace) -> int:
    text = detached.Detached(args.name, args.state).inventory()
    if args.output:
        args.output.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def _clean(args: argparse.Namespace) -> int:
    cache = Cache.default()
    keep = cache.in_use()
    if not args.all:
        keep.add(cache.path("image", image.Recipe.for_machine().key))
        keep.update(cache.path("kernel", kernel.Recipe.for_machine(series).key) for series in kernel.SERIES)
    for entry in cache.entries("image", "kernel"):
        if entry not in keep:
            remove_tree(entry)
            print(f"Removed {entry}")
    return 0


def _kvm(args: argparse.Namespace) -> int:
    found = kvm.verdict(image.ensure())
    print(f"KVM {'works' if found.works else 'does not work'}: {found.reason}")
    return 0


def _disk(text: str) -> Disk:
    size, _, bus = text.partition(":")
    if not size.isdigit() or int(size) == 0 or bus not in ("", "virtio", "nvme"):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIB, MIB:virtio or MIB:nvme")
    return Disk(int(size), bus or "virtio")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m testbed", description="Real Debian 13 guests in QEMU.", epilog=_EPILOG
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")

    sub = commands.add_parser("image", help="build the guest image, unless the cache has it; print its path")
    sub.add_argument("--rebuild", action="store_true", help="build it anew, with today's packages")
    _add_series(sub)
    sub.set_defaults(run=_image)

    sub = commands.add_parser("kernel", help="build a small sched_ext kernel; print the path of its bzImage")
    sub.add_argument("action", choices=["build"])
    sub.add_argument("--series", choices=kernel.SERIES, default=kernel.SERIES[0], help="linux-source-SERIES")
    sub.add_argument("--rebuild", action="store_true", help="build it anew, from the newest source")
    sub.set_defaults(run=_kernel)

    sub = commands.add_parser("boot", help="boot a guest; in the foreground it lives until Ctrl-C")
    _add_place(sub)
    sub.add_argument("--detach", action="store_true", help="return once it answers and leave it running")
    sub.add_argument("--exec", metavar="COMMAND", help="run this in the guest, power off, exit as it did")
    sub.add_argument("--cpus", type=int, default=2, metavar="N", help="CPUs (default 2)")
    sub.add_argument("--memory", type=int, default=2048, metavar="MIB", help="memory (default 2048 MiB)")
    sub.add_argument("--numa", type=int, default=1, metavar="NODES", help="NUMA nodes (default 1)")
    sub.add_argument(
        "--disk", type=_disk, action="append", default=[], metavar="MIB[:BUS]",
        help="an extra empty disk, bus virtio or nvme; may be repeated",
    )  # fmt: skip
    sub.add_argument(
        "--kernel", default="debian", metavar="KERNEL",
        help=f'"debian" (the image\'s), {" or ".join(kernel.SERIES)} (built here), or the path of a bzImage',
    )  # fmt: skip
    _add_series(sub)
    sub.add_argument("--initrd", type=Path, help="initrd for a bzImage that needs one")
    sub.add_argument("--append", default="", metavar="OPTIONS", help="more kernel command line")
    sub.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto", help="default: as KVM works")
    sub.add_argument(
        "--timeout", type=float, default=BOOT_TIMEOUT, metavar="S", help="for SSH and for --exec"
    )
    sub.add_argument("--serial", type=Path, metavar="FILE", help="keep the serial log here (foreground)")
    sub.add_argument("--inventory", type=Path, metavar="FILE", help="write an Ansible inventory (foreground)")
    sub.set_defaults(run=_boot)

    sub = commands.add_parser("ssh", help="log in to a detached guest, or run a command in it")
    _add_place(sub)
    sub.add_argument("words", nargs="*", metavar="COMMAND", help="after --")
    sub.set_defaults(run=_ssh)

    sub = commands.add_parser("down", help="power off a detached guest")
    _add_place(sub)
    sub.set_defaults(run=_down)

    sub = commands.add_parser("status", help="list detached guests")
    _add_state(sub)
    sub.set_defaults(run=_status)

    sub = commands.add_parser("inventory", help="write an Ansible inventory of a detached guest")
    _add_place(sub)
    sub.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    sub.set_defaults(run=_inventory)

    sub = commands.add_parser("clean", help="remove images and kernels that are out of date from the cache")
    sub.add_argument(
        "--all", action="store_true", help="those that are current, too; a running guest's stays"
    )
    sub.set_defaults(run=_clean)

    sub = commands.add_parser("kvm", help="say whether KVM works here, by booting")
    sub.set_defaults(run=_kvm)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="demo", help="the guest's name (default demo)")
    _add_state(parser)


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=detached.ROOT,
        metavar="DIR",
        help="where detached guests are kept",
    )


def _add_series(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel-series", default=image.KERNEL_SERIES, metavar="SERIES",
        help=f"series of the Debian kernel in the image (default {image.KERNEL_SERIES})",
    )  # fmt: skip


_EPILOG = "ZERNEL_CACHE says where images and kernels are kept (default ~/.cache/zernel)."
