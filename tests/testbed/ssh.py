# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH to a guest on a port of loopback: one connection, many commands, never a question."""

from __future__ import annotations

import base64
import shlex
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError
from testbed.image import HOST_KEY_ALIAS
from testbed.network import LOOPBACK, free_port
from testbed.tools import dies_with_parent, environment, tail


@dataclass(frozen=True)
class Address:
    """How to log in to a guest as root."""

    port: int
    private_key: Path
    known_hosts: Path

    def options(self) -> list[str]:
        """Return the ``-o`` options that everything that speaks SSH to the guest must use, Ansible too."""
        settings = {
            # The user's own configuration may name other keys, proxies or multiplexing.
            "HostKeyAlias": HOST_KEY_ALIAS,
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self.private_key),
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            # Without it a client waits for minutes on a guest that rebooted.
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "12",
            "ConnectTimeout": "30",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def command(self, *extra: str) -> list[str]:
        """Return the ``ssh`` command line up to the command to run."""
        return ["ssh", "-F", "none", *self.options(), "-p", str(self.port), *extra, f"root@{LOOPBACK}"]

    def answers(self, timeout: float = 2.0) -> bool:
        """Say whether an SSH server greets on the port. QEMU itself accepts before the guest listens."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
        return False


class CommandError(TestbedError):
    """A command in the guest ended with another status than 0."""

    def __init__(self, command: str, done: subprocess.CompletedProcess[str]) -> None:
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        super().__init__(
            f"Command in the guest ended with status {done.returncode}",
            command,
            log=tail("\n".join(part for part in (done.stdout, done.stderr) if part)),
            suggestion="Read its output above",
        )


class Connection:
    """A multiplexed connection. The master process is ours: it ends with us, whatever happens."""

    def __init__(self, address: Address, directory: Path) -> None:
        """``directory`` holds the control socket; a path of at most 80 characters (sun_path has 108)."""
        self.address = address
        self._socket = directory / "ssh"
        self._log = directory / "ssh.log"
        self._master: subprocess.Popen[bytes] | None = None

    def open(self, timeout: float) -> bool:
        """Connect, unless connected already; say whether that worked within ``timeout`` seconds."""
        if self._master is not None and self._master.poll() is None:
            return True
        self.close()
        with self._log.open("w") as log:
            self._master = subprocess.Popen(
                dies_with_parent(self.address.command("-N", "-M", "-S", str(self._socket))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                # Ctrl-C is for us: the connection is still needed to power off.
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._master.poll() is None:
            if self._socket.exists():
                return True
            time.sleep(0.05)
        self.close()
        return False

    def close(self) -> None:
        """End the connection."""
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
        self._socket.unlink(missing_ok=True)

    def closed(self) -> bool:
        """Say whether the other side has ended the connection."""
        return self._master is None or self._master.poll() is not None

    def run(
        self, command: str | Sequence[str], *, check: bool, timeout: float, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command (or an argument list) as root and return its outputs as text."""
        text = command if isinstance(command, str) else shlex.join(command)
        try:
            done = subprocess.run(
                [*self.address.command("-S", str(self._socket)), "--", text],
                input=stdin if stdin is not None else "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=environment(),
            )
        except subprocess.TimeoutExpired as expired:
            raise TestbedError(
                f"Command in the guest did not end within {timeout:g} s",
                text,
                suggestion="Emulated guests are slow: raise timeout=, or look at the guest's serial log",
            ) from expired
        if check and done.returncode != 0:
            raise CommandError(text, done)
        return done

    def put(self, local: Path, remote: str, timeout: float) -> None:
        """Copy a file or a directory tree into the guest, with its modes, to the absolute path ``remote``."""
        # tar rather than scp: one round trip for a tree, and its name does not depend on what is there.
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w") as pack:
                pack.add(local, arcname=remote.lstrip("/"), filter=_owned_by_root)
            archive.seek(0)
            done = subprocess.run(
                [*self.address.command("-S", str(self._socket)), "--", "tar -C / -xf -"],
                stdin=archive,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment(),
            )
        if done.returncode != 0:
            raise TestbedError(
                f"Cannot copy {local} into the guest as {remote}",
                log=tail(done.stderr),
                suggestion="Check the path in the guest, and that its disk has room",
            )

    def get(self, remote: str, local: Path, timeout: float) -> None:
        """Copy a file from the guest."""
        done = self.run(["base64", "-w0", remote], check=True, timeout=timeout)
        local.write_bytes(base64.b64decode(done.stdout))

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """Make a port of the guest's loopback reachable here for the duration; yields the local port."""
        for _ in range(5):
            local = free_port()
            spec = f"{LOOPBACK}:{local}:{LOOPBACK}:{port}"
            if self._control("forward", spec):
                break
        else:
            raise TestbedError(
                f"Cannot forward the guest's port {port}",
                suggestion="Check that the guest is still up and that sshd allows forwarding",
            )
        try:
            yield local
        finally:
            self._control("cancel", spec)

    def _control(self, order: str, spec: str) -> bool:
        command = self.address.command("-S", str(self._socket), "-O", order, "-L", spec)
        return subprocess.run(command, capture_output=True, env=environment()).returncode == 0


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
