# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation, mounted for real, and the command line as a person runs it. Needs root and /dev/fuse."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from host import images

from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.journal import directory_of
from zernel.multikernel.wire import Wire
from zernel.multikernel.wire_probe import wire_for

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "docs/examples"
ZERNEL = Path(sys.executable).parent / "zernel"
KILLED = Path(__file__).with_name("killed.py")
Killed = Callable[..., tuple[int, str]]
LABELLED = {
    *("apply", "create", "delete", "ensure", "exec", "kill"),
    *("load", "rollback", "show", "unload", "update"),
}
"""The commands that work on the multikernel file system; init does so with --apply only."""


@dataclass
class Host:
    """A host whose multikernel file system is simulated."""

    root: Path
    state: Path
    version: int = 1
    server: subprocess.Popen[str] | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ZERNEL_MULTIKERNEL_ROOT": str(self.root),
            "ZERNEL_STATE_DIR": str(self.state),
            **self.environ,
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``zernel`` and check what holds for every run: no traceback, and SIMULATED in the text of
        whatever looked at the simulation or changed it."""
        done = subprocess.run(
            [ZERNEL, *words], env=self.environment(), capture_output=True, text=True, timeout=60
        )
        assert "Traceback" not in done.stderr
        as_data = any(word.startswith("--format=") for word in words)
        elsewhere = as_data or bool({"--hardware", "--help"}.intersection(words))
        if done.returncode == 0 and words[0] in LABELLED and not elsewhere:
            assert "SIMULATED" in done.stdout
        return done

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok(*words, "--format=json"))
        return found

    def refused(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith(("ERROR: ", "WARNING: "))
        return done.stderr

    def start(self, *words: str) -> None:
        self.server = subprocess.Popen(
            [ZERNEL, "simulate", "multikernel", str(self.root), f"--version={self.version}", *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout is not None
        assert "SIMULATED" in self.server.stdout.readline()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.server is not None
        self.server.send_signal(how)
        status = self.server.wait(10)
        assert self.server.stdout is not None
        self.server.stdout.close()
        self.server = None
        return status

    def init(self, baseline: str = "baseline.dts") -> None:
        self.ok("init", f"--input={EXAMPLES / baseline}", "--apply")

    def instances(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("show")["instances"]
        return found


def mounted(path: Path) -> bool:
    return any(line.split()[1] == str(path) for line in Path("/proc/mounts").read_text().splitlines())


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


BOTH = pytest.mark.parametrize("version", [1, 2], indirect=True)
"""Runs a test against both versions of the kernel's interface; without it, against the first."""


@pytest.fixture
def version(request: pytest.FixtureRequest) -> int:
    """The version of the kernel's interface that is simulated."""
    return int(getattr(request, "param", 1))


@pytest.fixture
def bare(tmp_path: Path, version: int) -> Iterator[Host]:
    """A host without a mount; what a test mounts is unmounted."""
    host = Host(tmp_path / "multikernel", tmp_path / "state", version)
    yield host
    if host.server is not None:
        host.stop()
    if mounted(host.root):
        subprocess.run(["umount", "-l", host.root], check=True)


@pytest.fixture
def empty(bare: Host) -> Host:
    """A host with a simulation that has no baseline yet."""
    bare.start()
    return bare


@pytest.fixture
def host(empty: Host) -> Host:
    """A host with the document's baseline."""
    empty.init()
    return empty


@pytest.fixture
def faulty(bare: Host, request: pytest.FixtureRequest) -> Host:
    bare.start(*(f"--fault={fault}" for fault in request.param))
    bare.init()
    return bare


@pytest.fixture
def killed(bare: Host) -> Iterator[Killed]:
    """Run a command that is killed at a moment (never: -1); see killed.py. Returns status and output."""
    with subprocess.Popen(
        [sys.executable, KILLED],
        env=bare.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        stdin, stdout = server.stdin, server.stdout
        assert stdin is not None
        assert stdout is not None

        def run(moment: int, *words: str, calls: tuple[str, ...] = ()) -> tuple[int, str]:
            stdin.write(json.dumps([moment, words, calls]) + "\n")
            stdin.flush()
            status, output = json.loads(stdout.readline())
            return status, output

        yield run


def pending(host: Host) -> bool:
    return any(host.state.rglob("journal.json"))


def settled_by_next(host: Host, killed: Killed) -> None:
    """Let the next command settle what a killed one left; it says so, where something was left."""
    was_pending = pending(host)
    after, output = killed(-1, "create", "other", "--cpus=31", "--memory=1GB", "--format=json")
    assert after == 0
    assert bool(json.loads(output)["notes"]) == was_pending
    assert not pending(host)


def write_overlay(host: Host, blob: bytes) -> None:
    descriptor = os.open(host.root / "overlays/new", os.O_WRONLY)
    os.write(descriptor, blob)
    os.close(descriptor)


def names(host: Host) -> set[str]:
    """Return the instances that the kernel has. Straight from the files: some of these tests run often."""
    return {path.name for path in (host.root / "instances").iterdir()}


def wire_of(host: Host) -> Wire:
    """Return the wire format of the simulated kernel, for what another program writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZERNEL_STATE_DIR", str(host.state))
        return wire_for(MultikernelFs(host.root, simulated=True))


def state_directory(host: Host) -> Path:
    """Return where Zernel keeps what it knows of the host's file system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZERNEL_STATE_DIR", str(host.state))
        return directory_of(MultikernelFs(host.root, simulated=True))


def without_parts(host: Host, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command's words; for the second version without devices, of which it cannot be given parts."""
    return tuple(word for word in words if host.version == 1 or not word.startswith("--devices="))


def clear(host: Host) -> None:
    for name in names(host):
        write_overlay(host, wire_of(host).remove(name))
    assert not names(host)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(images.bzimage(gzip.compress(images.kernel())))
    return path


@pytest.fixture
def web(host: Host, kernel: Path) -> Host:
    """A host with an instance called web, ready."""
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    return host
