# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a real zerneld as systemd would, and reads its metrics as Prometheus would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

CLONE = Path(__file__).resolve().parents[1]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command() -> list[str]:
    """Return how zerneld is started from the clone."""
    return [sys.executable, "-m", "zernel.observe.daemon"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"ZERNEL_BPF_DIR": str(CLONE / "bpf"), "ZERNEL_LOG": "info"} | more


def wait_until(what: Callable[[], bool], why: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def with_bpffs(directory: Path | None) -> list[str]:
    """Return what runs a command with ``directory`` at /sys/fs/bpf, or with a BPF file system of its own.

    So that what is pinned there stays among those that a test starts.
    """
    mount = f"--bind {directory}" if directory else "-t bpf none"
    return ["unshare", "--mount", "sh", "-c", f'mount {mount} /sys/fs/bpf && exec "$@"', "sh"]


class Zerneld:
    """A running daemon with settings of its own. ``started_s``: from its start to READY=1."""

    def __init__(
        self, directory: Path, settings: str = "", *, bpffs: Path | None = None, **variables: str
    ) -> None:
        """Start it.

        :param settings: TOML, after a [prometheus] and a [discovery] table made here.
        :param bpffs: see :func:`with_bpffs`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.config = directory / "zerneld.toml"
        self.configure(settings)
        self._log_path = directory / "zerneld.log"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = directory / "notify"
        address.unlink(missing_ok=True)
        self._manager.bind(str(address))
        self.notices: list[str] = []
        self._reader = threading.Thread(target=self._read_notices, daemon=True)
        self._reader.start()
        began = time.monotonic()
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*with_bpffs(bpffs), *command(), "--config", str(self.config)],
                env=environment(NOTIFY_SOCKET=str(address), **variables),
                stdout=log,
                stderr=log,
            )
        self.wait_notice("READY=1")
        self.started_s = time.monotonic() - began

    def configure(self, settings: str = "", port: int | None = None) -> None:
        """Write the settings file; does not tell the daemon."""
        self.config.write_text(
            f"[prometheus]\nport = {port or self.port}\n[discovery]\ninterval_s = 0.1\n{settings}\n"
        )

    def reload(self) -> None:
        """Send SIGHUP and wait for the reload's end."""
        self.notices.clear()
        self.process.send_signal(signal.SIGHUP)
        self.wait_notice("RELOADING=1")
        self.wait_notice("READY=1")

    def wait_notice(self, wanted: str, timeout_s: float = 20) -> None:
        """Wait for a notification with that line."""
        deadline = time.monotonic() + timeout_s
        while not any(wanted in notice.splitlines() for notice in self.notices):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"no {wanted}: {self.notices}\n{self.log}"
            time.sleep(0.01)

    def _read_notices(self) -> None:
        """Take notifications as they come, as systemd does: the queue is short, and a full one blocks."""
        while notice := self._manager.recv(4096):
            self.notices.append(notice.decode())

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of one request."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def scrape(self) -> Samples:
        status, text = self.get("/metrics")
        assert status == 200, text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.scrape().get((name, frozenset(labels.items())))

    def memory(self, pid: int) -> dict[str, tuple[int, int]]:
        """Return gpu_id → (used, peak) in bytes of one process."""
        samples = self.scrape()
        found = {}
        for (name, labels), value in samples.items():
            named = dict(labels)
            if name == "zernel_gpu_memory_used_bytes" and named["pid"] == str(pid):
                peak = samples["zernel_gpu_memory_peak_bytes", labels]
                found[named["gpu_id"]] = (int(value), int(peak))
        return found

    def drops(self) -> dict[str, int]:
        """Return reason → number, those that are not zero."""
        return {
            dict(labels)["reason"]: int(value)
            for (name, labels), value in self.scrape().items()
            if name == "zernel_probe_drops_total" and value
        }

    def wait_attached(self, path: Path, probe: str = "gpu_mem") -> None:
        """Wait until that library is probed."""
        said = f"{probe}: probing {path}"
        wait_until(lambda: said in self.log, f"{path} is not probed: {self.log}")

    def stop(self) -> int:
        """Stop it as systemd does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        # Ends the reader: an empty datagram.
        self._manager.sendto(b"", self._manager.getsockname())
        self._reader.join(10)
        self._manager.close()
