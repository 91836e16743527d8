# SPDX-License-Identifier: GPL-3.0-or-later
"""A running guest: booted, reached over SSH, powered off, and nothing of it left behind.

``with Guest.boot(GuestSpec()) as guest: guest.run("uname -r")`` is all that most tests need.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from testbed import image as images
from testbed import kvm, qemu, ssh
from testbed.errors import TestbedError, disk_full, from_oserror
from testbed.image import Image
from testbed.network import MAX_GUESTS, PrivateNetwork, free_port
from testbed.tools import require, signals_held, tail

# Ten times what an emulated boot takes on an idle machine: others may be booting too
BOOT_TIMEOUT = 300.0
COMMAND_TIMEOUT = 120.0
# eth0 and eth1 as they are. The rest makes emulation faster: no mitigations; no bpf LSM, for which systemd
# attaches a program at boot (2 s); few udev workers, for starting one costs more than what it does.
_KERNEL_OPTIONS = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0"
    " mitigations=off lsm=landlock,lockdown,yama,apparmor udev.children_max=2"
)
# What provisioning writes to a guest, with room to spare
_SCRATCH_MIB = 1024
_RUN_PREFIX = "zernel-guest-"
# The name of such a directory until it is locked
_UNLOCKED_PREFIX = "zernel-new-guest-"
_LOCKING_SECONDS = 600
_FATAL = re.compile(r"Kernel panic - not syncing|Attempted to kill init|VFS: Unable to mount root fs")
# QEMU's words when another process took the port since free_port() looked
_PORT_TAKEN = "Could not set up host forwarding rule"


def check_name(name: str) -> None:
    """Refuse what cannot name a guest: the name becomes a host's and a directory's.

    :raises TestbedError: when it cannot.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise TestbedError(
            f"{name!r} cannot name a guest",
            suggestion="Use lower-case letters, digits and hyphens: it becomes the host name",
        )


@dataclass(frozen=True)
class GuestSpec:
    """What to boot.

    ``kernel`` is "debian" (the image's own), or the path of a bzImage with virtio_blk and ext4 built in, or
    with ``initrd`` given. ``memory_mib`` is shared evenly by the NUMA nodes. ``kvm`` None means: where a
    probe boot proves that it works. ``counted``: if it is emulated, its clock counts instructions; not for
    delays beside several busy CPUs, which QEMU 7.2 then runs by turns of up to seconds.
    """

    name: str = "guest"
    cpus: int = 2
    memory_mib: int = 2048
    numa_nodes: int = 1
    disks: tuple[qemu.Disk, ...] = ()
    kernel: str | Path = "debian"
    initrd: Path | None = None
    kernel_options: str = ""
    kvm: bool | None = None
    counted: bool = False
    boot_timeout: float = BOOT_TIMEOUT

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= 16 or not 1 <= self.numa_nodes <= self.cpus or self.memory_mib < 512:
            raise TestbedError(
                "This guest cannot be",
                f"{self.cpus} CPUs, {self.numa_nodes} NUMA nodes, {self.memory_mib} MiB",
                suggestion="Choose 1 to 16 CPUs, at most one NUMA node per CPU, at least 512 MiB",
            )
        check_name(self.name)


@dataclass
class Guest:
    """A guest that answers over SSH. A context manager: leaving it powers the guest off."""

    spec: GuestSpec
    image: Image
    files: qemu.Files
    process: qemu.Process
    address: ssh.Address
    private_address: str | None = None
    boot_seconds: float = 0.0
    kvm: bool = False
    _connection: ssh.Connection | None = None
    _cleanup: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def boot(
        cls,
        spec: GuestSpec | None = None,
        *,
        image: Image | None = None,
        directory: Path | None = None,
        serial_log: Path | None = None,
    ) -> Guest:
        """Boot one guest and wait until it answers over SSH.

        ``serial_log`` is where a copy of the serial console is kept when the guest ends. With ``directory``
        the guest's files go there and stay, and the guest outlives this process (``make demo``).
        """
        return _boot_all([spec or GuestSpec()], image, None, directory, serial_log)[0]

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root. With ``check``, another status than 0 raises CommandError."""
        return self.connection().run(command, check=check, timeout=timeout, stdin=stdin)

    def put(self, local: Path | str, remote: str, timeout: float = COMMAND_TIMEOUT) -> None:
        """Copy a file or directory tree to exactly ``remote``, with its modes, owned by root."""
        self.connection().put(Path(local).resolve(), remote, timeout)

    def get(self, remote: str, local: Path, timeout: float = COMMAND_TIMEOUT) -> None:
        """Copy a file from the guest."""
        self.connection().get(remote, local, timeout)

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """Reach a port of the guest's loopback from here; yields the local port."""
        with self.connection().forward(port) as local:
            yield local

    def reboot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Reboot (the same kernel, loaded by QEMU again) and wait for SSH."""
        deadline = time.monotonic() + timeout
        connection = self.connection()
        before = self._boot_id()
        self.run("systemctl reboot", check=False)
        while self.process.alive() and time.monotonic() < deadline:
            # sshd answers for a while yet: what tells is the identity of the boot.
            if connection.closed():
                self._wait_for_ssh(deadline)
                if self._boot_id() not in ("", before):
                    return
            time.sleep(0.2)
        raise self._failure(f"The guest did not come back within {timeout:g} s of its reboot")

    def _boot_id(self) -> str:
        """Return the identity of the running boot, or nothing when the connection breaks meanwhile."""
        return self.run("cat /proc/sys/kernel/random/boot_id", check=False).stdout.strip()

    def serial_tail(self, lines: int = 40) -> str:
        """Return the end of the serial console's log."""
        with suppress(OSError):
            return tail(self.files.serial.read_text(errors="replace"), lines)
        return ""

    def connection(self) -> ssh.Connection:
        """Return the SSH connection, opened again when it was lost."""
        if self._connection is None:
            self._connection = ssh.Connection(self.address, self.files.directory)
        self._connection.open(timeout=60)
        return self._connection

    def power_off(self, timeout: float = 60.0) -> bool:
        """Shut the guest down as its administrator would; say whether it ended by itself."""
        if self.process.alive():
            with suppress(TestbedError):
                self.run("systemctl poweroff", check=False, timeout=timeout)
            self.process.wait(timeout)
        return not self.process.alive()

    def close(self, *, clean: bool = True) -> None:
        """End the guest: powered off when ``clean``, at once otherwise. Removes its files."""
        try:
            if clean:
                self.power_off()
        finally:
            if self._connection:
                self._connection.close()
            self.process.end(self.files)
            self._cleanup.close()

    def detach(self) -> None:
        """Let go of the guest without ending it."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failure or Ctrl-C nobody wants to wait for an orderly shutdown of a throwaway machine.
        self.close(clean=kind is None)

    def _wait_for_ssh(self, deadline: float) -> None:
        """Wait until a command could be run, or raise with the end of the serial log."""
        while time.monotonic() < deadline:
            if not self.process.alive():
                raise self._failure("QEMU ended before the guest answered over SSH")
            if _FATAL.search(self._serial_text()):
                time.sleep(0.5)  # the call trace follows
                raise self._failure("The guest's kernel panicked")
            if self.address.answers() and self._open_connection(deadline):
                return
            time.sleep(0.2)
        raise self._failure("The guest did not answer over SSH in time")

    def _open_connection(self, deadline: float) -> bool:
        if self._connection is None:
            self._connection = ssh.Connection(self.address, self.files.directory)
        return self._connection.open(max(1.0, deadline - time.monotonic()))

    def _serial_text(self) -> str:
        with suppress(OSError):
            return self.files.serial.read_text(errors="replace")
        return ""

    def _failure(self, category: str) -> TestbedError:
        messages = ""
        with suppress(OSError):
            messages = tail(self.files.messages.read_text(errors="replace"), 10)
        log = self.serial_tail() or "(the guest printed nothing)"
        return TestbedError(
            category,
            f"Kernel: {self.spec.kernel}",
            *([f"QEMU says: {messages}"] if messages else []),
            "The end of the guest's serial console:",
            log=log,
            suggestion=_suggestion(log, messages, self.process.alive()),
        )


def _suggestion(log: str, messages: str, running: bool) -> str:
    if "Unable to mount root fs" in log or "does not exist.  Dropping to a shell" in log:
        return "Build virtio_blk and ext4 into the kernel, or give its initrd; check root= in --append"
    if "Cannot allocate memory" in messages or "cannot set up guest memory" in messages:
        return "Give the guest less memory with --memory"
    if "Kernel panic" in log:
        return "The lines above name the cause; try --kernel debian to see whether it is the kernel"
    if "kvm" in messages.lower():
        return "Boot it emulated, with --accel tcg"
    if not running:
        return "What QEMU says above names the cause; if nothing, see dmesg: was it ended for want of memory?"
    return "If the guest was still starting, the machine is busy: try again, with a longer --timeout"


@contextmanager
def boot_network(specs: Sequence[GuestSpec], image: Image | None = None) -> Iterator[list[Guest]]:
    """Boot up to four guests that share a private network, side by side.

    They reach each other as guest1 to guest4 (10.77.0.1 to .4), in the order given.
    """
    if not 1 <= len(specs) <= MAX_GUESTS:
        raise TestbedError(f"{len(specs)} guests were asked for", suggestion=f"Boot 1 to {MAX_GUESTS} guests")
    guests = _boot_all(specs, image, PrivateNetwork.create(), None, None)
    clean = False
    try:
        yield guests
        clean = True
    finally:
        if clean:
            for guest in guests:
                with suppress(TestbedError):
                    guest.run("systemctl poweroff", check=False, timeout=30)
        for guest in guests:
            guest.close(clean=clean)


def _boot_all(
    specs: Sequence[GuestSpec],
    image: Image | None,
    network: PrivateNetwork | None,
    directory: Path | None,
    serial_log: Path | None,
) -> list[Guest]:
    require(qemu.PROGRAM, "setpriv", "ssh")
    _require_room()
    image = image or images.ensure()
    sweep()
    guests: list[Guest] = []
    started = time.monotonic()
    try:
        with ExitStack() as undo:
            # All are started before the first is waited for.
            for index, spec in enumerate(specs, 1):
                place = (network, index) if network else None
                guest = _start(spec, image, place, directory, serial_log, undo.enter_context(ExitStack()))
                undo.callback(guest.close, clean=False)
                guests.append(guest)
            for guest in guests:
                guest._wait_for_ssh(started + guest.spec.boot_timeout)
                guest.boot_seconds = round(time.monotonic() - started, 1)
            undo.pop_all()
    except OSError as error:
        raise from_oserror(error, "boot the guest") from error
    return guests


def _start(
    spec: GuestSpec,
    image: Image,
    network: tuple[PrivateNetwork, int] | None,
    directory: Path | None,
    serial_log: Path | None,
    cleanup: ExitStack,
) -> Guest:
    """Start QEMU; the guest that is returned need not answer yet.

    ``cleanup`` ends QEMU from its first moment, also when we are interrupted before we return.
    """
    kernel = _kernel(spec, image)
    use_kvm = kvm.usable(image) if spec.kvm is None else spec.kvm
    counted = spec.counted and not use_kvm
    machine = qemu.Machine(spec.cpus, spec.memory_mib, spec.numa_nodes, spec.disks, use_kvm, counted)
    files = qemu.Files(directory or cleanup.enter_context(_run_directory()))
    if serial_log:
        cleanup.callback(_keep, files.serial, serial_log)
    for _ in range(5):
        port = free_port()
        argv = qemu.command(spec.name, machine, kernel, image.disk, port, files, network)
        with signals_held():
            process = qemu.start(argv, files, survives=directory is not None)
            cleanup.callback(process.end, files)
            process.record(files)
        if _is_up(process, files) or _PORT_TAKEN not in files.messages.read_text(errors="replace"):
            break
    address = ssh.Address(port, image.private_key, image.known_hosts)
    private = PrivateNetwork.address(network[1]) if network else None
    return Guest(spec, image, files, process, address, private, kvm=use_kvm, _cleanup=cleanup)


def _is_up(process: qemu.Process, files: qemu.Files, timeout: float = 30.0) -> bool:
    """Wait until QEMU has set up its ports, which it does before it opens the control socket."""
    deadline = time.monotonic() + timeout
    while process.alive() and time.monotonic() < deadline:
        if files.control.exists():
            return True
        time.sleep(0.02)
    return False


def _require_room() -> None:
    """Refuse to boot where the guest's writes would soon find no room."""
    scratch = os.environ.get("TMPDIR", "/var/tmp")  # where QEMU puts the layer above the image
    free_mib = shutil.disk_usage(scratch).free // qemu.MIB
    if free_mib < _SCRATCH_MIB:
        raise disk_full(
            "boot the guest", f"{scratch} has {free_mib} MiB free; {_SCRATCH_MIB} MiB are needed."
        )


def _kernel(spec: GuestSpec, image: Image) -> qemu.Kernel:
    options = f"{_KERNEL_OPTIONS} systemd.hostname={spec.name} {spec.kernel_options}".strip()
    if spec.kernel == "debian":
        return qemu.Kernel(image.kernel, spec.initrd or image.initrd, options)
    path = Path(spec.kernel)
    for file in (path, *([spec.initrd] if spec.initrd else [])):
        if not file.is_file():
            raise TestbedError(f"{file} is not a file", suggestion='Give the path of a bzImage, or "debian"')
    # "HdrS" at 0x202 marks the Linux boot protocol (Documentation/arch/x86/boot.rst).
    with path.open("rb") as stream:
        stream.seek(0x202)
        if stream.read(4) != b"HdrS":
            raise TestbedError(
                f"{path} is not an x86 kernel",
                suggestion="Give a bzImage (arch/x86/boot/bzImage after a build), not vmlinux",
            )
    return qemu.Kernel(path, spec.initrd, options)


def _keep(serial: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(serial, target)


@contextmanager
def _run_directory() -> Iterator[Path]:
    """Yield a directory that is gone afterwards. Its lock says that its owner is alive."""
    path = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX))
    try:
        with (path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only under this name does sweep() look at it: it never sees one that is not locked yet.
            path = path.rename(path.with_name(path.name.replace(_UNLOCKED_PREFIX, _RUN_PREFIX, 1)))
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep() -> None:
    """Remove what guests left whose owner was killed. Their QEMU processes died with the owner."""
    for path in Path(tempfile.gettempdir()).glob(f"{_RUN_PREFIX}*"):
        with suppress(OSError):
            if path.stat().st_uid != os.geteuid():
                continue
            with (path / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
    # Nobody takes as long as this to lock a new one: its owner was killed in that moment.
    for path in Path(tempfile.gettempdir()).glob(f"{_UNLOCKED_PREFIX}*"):
        with suppress(OSError):
            found = path.stat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _LOCKING_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
