# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that outlive the command that booted them, such as the demo's: where they are written down.

Each has a directory ``.demo/NAME`` in the clone, with its state, serial log and control sockets.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from testbed import qemu, ssh
from testbed.errors import TestbedError
from testbed.guest import Guest, GuestSpec, check_name
from testbed.image import Image
from testbed.inventory import host_variables, render
from testbed.tools import COMMAND

ROOT = Path(__file__).resolve().parents[2] / ".demo"


@dataclass(frozen=True)
class State:
    """What must be known about a running guest, as its state file holds it."""

    name: str
    pid: int
    started: int
    port: int
    image: str
    boot_seconds: float
    private_key: str
    known_hosts: str
    kernel: str
    kvm: bool


@dataclass(frozen=True)
class Detached:
    """One guest's directory, whether or not the guest runs."""

    name: str
    root: Path = ROOT

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    @property
    def files(self) -> qemu.Files:
        return qemu.Files(self.directory)

    def state(self) -> State | None:
        """Return the state of the guest if it runs, else None."""
        with suppress(OSError, ValueError, TypeError):
            data = json.loads(self._state_file.read_text())
            state = State(**{field.name: data[field.name] for field in fields(State) if field.name in data})
            return state if qemu.Process(state.pid, state.started).alive() else None
        return None

    def left_behind(self) -> qemu.Process | None:
        """Return a QEMU that runs without a state: its command was killed before it wrote one."""
        process = qemu.Process.recorded(self.files)
        return process if process and process.alive() else None

    def running(self) -> State:
        """Return the state of the guest, which must run."""
        if state := self.state():
            return state
        raise TestbedError(
            f"No guest {self.name!r} is running",
            suggestion=f"Boot it: make demo, or {COMMAND} boot --detach --name {self.name}",
        )

    def boot(self, spec: GuestSpec, image: Image) -> State:
        """Boot the guest and let go of it. What an earlier one of this name left is removed."""
        with self._locked():
            if self.state():
                raise TestbedError(
                    f"A guest {self.name!r} is running already",
                    suggestion=f"{COMMAND} down --name {self.name}, or choose another --name",
                )
            if len(str(self.files.control)) > 100:
                raise TestbedError(
                    "The clone's path is too long for a socket",
                    str(self.files.control),
                    suggestion="Clone to a shorter path, or give --state a shorter directory",
                )
            self._remove()
            self.directory.mkdir()
            try:
                guest = Guest.boot(spec, image=image, directory=self.directory)
                state = State(
                    name=self.name,
                    pid=guest.process.pid,
                    started=guest.process.started,
                    port=guest.address.port,
                    image=str(image.path),
                    boot_seconds=guest.boot_seconds,
                    private_key=str(guest.address.private_key),
                    known_hosts=str(guest.address.known_hosts),
                    kernel=str(spec.kernel),
                    kvm=guest.kvm,
                )
                partial = self._state_file.with_suffix(".partial")
                partial.write_text(json.dumps(asdict(state), indent=2) + "\n")
                partial.replace(self._state_file)
                guest.detach()
            except BaseException:
                self._end()
                self._state_file.unlink(missing_ok=True)
                # A serial log stays: its end alone is in the error.
                if not self.files.serial.exists():
                    self._remove()
                raise
            return state

    def guest(self) -> Guest:
        """Return the running guest, to run commands in it."""
        state = self.running()
        return Guest(
            spec=GuestSpec(name=self.name, kernel=state.kernel, kvm=state.kvm),
            image=Image(Path(state.image)),
            files=self.files,
            process=qemu.Process(state.pid, state.started),
            address=self.address(state),
            boot_seconds=state.boot_seconds,
            kvm=state.kvm,
        )

    @staticmethod
    def address(state: State) -> ssh.Address:
        return ssh.Address(state.port, Path(state.private_key), Path(state.known_hosts))

    def inventory(self) -> str:
        """Return the Ansible inventory of the running guest."""
        return render({self.name: host_variables(self.address(self.running()))})

    def down(self) -> bool:
        """Power the guest off and remove its directory; say whether it was running."""
        with self._locked():
            state = self.state()
            if state:
                self.guest().close()
            self._remove()
        return state is not None

    def _remove(self) -> None:
        """Remove all there is of the guest, a QEMU too whose command was killed before it wrote the state."""
        self._end()
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _end(self) -> None:
        if process := qemu.Process.recorded(self.files):
            process.end(self.files)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one command at a time start or stop this guest."""
        self.root.mkdir(parents=True, exist_ok=True)
        # The file stays for ever: were it removed, one that waits for it and one that comes later would each
        # hold a lock of their own.
        with (self.root / f".{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def every(root: Path = ROOT) -> list[Detached]:
    """Return all guests that have a directory."""
    if not root.is_dir():
        return []
    return [Detached(path.name, root) for path in sorted(root.iterdir()) if path.is_dir()]
