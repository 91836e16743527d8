# SPDX-License-Identifier: GPL-3.0-or-later
"""One QEMU process: its command line, its control socket, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.network import LOOPBACK, WAN_MAC, PrivateNetwork
from testbed.tools import dies_with_parent, environment, require

PROGRAM = "qemu-system-x86_64"
MIB = 1 << 20
# Emulated CPUs take turns on one thread, always: with a thread each they race on code that the kernel
# patches, and a guest dies ("Oops: int3" in __schedule) after 1 to 10 enables of a BPF scheduler.
# la57, svm: a fifth level of page tables and nested virtualisation cost emulated time and are of no use.
TCG = ("-accel", "tcg,thread=single", "-cpu", "max,la57=off,svm=off")
KVM = ("-accel", "kvm", "-cpu", "host")
# An instruction takes 2 ns, and time passes with them: what runs costs what it executes, however long the
# emulator takes (a switch of address spaces makes it forget its translations), and whatever else runs here.
COUNTED = ("-icount", "shift=1,align=off,sleep=on")
# PCI Express without the devices of a desktop, each of which loads drivers at boot
BOARD = ("-machine", "q35,sata=off,smbus=off,i8042=off,vmport=off")


@dataclass(frozen=True)
class Disk:
    """An empty extra disk, /dev/vdb and on for virtio, /dev/nvme0n1 and on for nvme."""

    size_mib: int
    bus: str = "virtio"


@dataclass(frozen=True)
class Kernel:
    """What QEMU boots directly. Without an initrd, disk and ext4 must be built in."""

    image: Path
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True)
class Machine:
    """The hardware of a guest. ``memory_mib`` is the sum over all NUMA nodes."""

    cpus: int = 2
    memory_mib: int = 2048
    numa_nodes: int = 1
    disks: tuple[Disk, ...] = ()
    kvm: bool = False
    counted: bool = False

    def options(self) -> list[str]:
        """Return QEMU's options for CPUs and memory."""
        options = [*BOARD, *(KVM if self.kvm else TCG), "-smp", str(self.cpus), "-m", f"{self.memory_mib}M"]
        if self.counted:
            options += COUNTED
        if self.numa_nodes > 1:
            options += self._numa_options()
        return options

    def _numa_options(self) -> list[str]:
        options = []
        size = self.memory_mib // self.numa_nodes
        for node in range(self.numa_nodes):
            first = self.cpus * node // self.numa_nodes
            last = self.cpus * (node + 1) // self.numa_nodes - 1
            options += ["-object", f"memory-backend-ram,id=node{node},size={size}M"]
            options += ["-numa", f"node,nodeid={node},cpus={first}-{last},memdev=node{node}"]
        return options


@dataclass(frozen=True)
class Files:
    """Where one guest's files are: all in a directory of its own."""

    directory: Path

    @property
    def serial(self) -> Path:
        return self.directory / "serial.log"

    @property
    def messages(self) -> Path:
        """What QEMU itself prints."""
        return self.directory / "qemu.log"

    @property
    def control(self) -> Path:
        return self.directory / "qmp"

    @property
    def process(self) -> Path:
        """Which process it is."""
        return self.directory / "process"


def command(
    name: str,
    machine: Machine,
    kernel: Kernel,
    root_disk: Path,
    ssh_port: int,
    files: Files,
    network: tuple[PrivateNetwork, int] | None = None,
) -> list[str]:
    """Return the QEMU command line. Creates the files of the extra disks."""
    argv = [PROGRAM, "-name", name, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += machine.options()
    argv += ["-kernel", str(kernel.image), "-append", kernel.command_line]
    if kernel.initrd:
        argv += ["-initrd", str(kernel.initrd)]
    argv += ["-serial", f"file:{files.serial}", "-qmp", f"unix:{files.control},server=on,wait=off"]
    # snapshot: writes go to a file that QEMU has unlinked already. unsafe: nobody will miss them.
    argv += ["-drive", f"if=none,id=root,format=raw,snapshot=on,cache=unsafe,file={_escape(root_disk)}"]
    # Where the layer for writes finds no room, the guest sees an error; it would stop for ever by default.
    argv += ["-device", "virtio-blk-pci,drive=root,werror=report", "-device", "virtio-rng-pci"]
    argv += ["-netdev", f"user,id=wan,ipv6=off,hostfwd=tcp:{LOOPBACK}:{ssh_port}-:22"]
    argv += ["-device", f"virtio-net-pci,netdev=wan,romfile=,mac={WAN_MAC}"]
    for number, disk in enumerate(machine.disks):
        path = files.directory / f"disk{number}.img"
        with path.open("wb") as image:
            image.truncate(disk.size_mib * MIB)
        argv += ["-drive", f"if=none,id=disk{number},format=raw,cache=unsafe,file={_escape(path)}"]
        model = {"virtio": "virtio-blk-pci", "nvme": "nvme"}[disk.bus]
        argv += ["-device", f"{model},drive=disk{number},serial=zernel{number}"]
    if network:
        argv += network[0].qemu_options(network[1])
    return argv


def _escape(path: Path) -> str:
    """Quote a path for an option list: a comma is doubled."""
    return str(path).replace(",", ",,")


@dataclass(frozen=True)
class Process:
    """A QEMU process, known by id and moment of start: an id alone may be somebody else's by now."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the running process with this id."""
        return cls(pid, start_time(pid) or 0)

    @classmethod
    def recorded(cls, files: Files) -> Process | None:
        """Return the process that ``record`` wrote down last, running or not."""
        with suppress(OSError, ValueError):
            pid, started = map(int, files.process.read_text().split())
            return cls(pid, started)
        return None

    def record(self, files: Files) -> None:
        """Write down which process it is, for those who come when this one's starter is gone."""
        files.process.write_text(f"{self.pid} {self.started}\n")

    def alive(self) -> bool:
        if start_time(self.pid) == self.started:
            return True
        # A child that ended stays in the table until somebody asks for its status.
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return False

    def wait(self, timeout: float) -> bool:
        """Wait for the process to end; say whether it did."""
        deadline = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def end(self, files: Files) -> None:
        """End the process: asked over its control socket, then by signals."""
        if self.alive() and quit_over_qmp(files.control):
            self.wait(3)
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
            if not self.alive():
                return
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            self.wait(patience)


def start(argv: list[str], files: Files, *, survives: bool) -> Process:
    """Start QEMU in a session of its own, so that Ctrl-C does not reach it.

    Unless it ``survives``, it also dies when the calling thread does, even by SIGKILL: start it from a
    thread that lives as long as the guest. Call it within ``signals_held``, and see to its end there.
    """
    require(PROGRAM, "setpriv")
    with files.messages.open("wb") as messages:
        process = subprocess.Popen(
            argv if survives else dies_with_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env=environment(),
            start_new_session=True,
        )
    # Whether it is alive is read from /proc; the object would only warn that it was not waited for.
    process.returncode = 0
    return Process.of(process.pid)


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (field 22 of proc(5) stat), or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    state, *rest = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(rest[18])


def quit_over_qmp(path: Path, timeout: float = 2.0) -> bool:
    """Tell QEMU to quit; say whether it agreed."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(timeout)
        control.connect(str(path))
        with control.makefile("rw") as stream:
            stream.readline()
            for order in ("qmp_capabilities", "quit"):
                stream.write(json.dumps({"execute": order}) + "\n")
                stream.flush()
                if "return" not in json.loads(stream.readline()):
                    return False
            return True
    return False
