# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest with the agent installed, for tests of the scheduler."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_package import install
from testbed import Guest

HERE = Path(__file__).parent
SETTINGS = "/etc/zernel/scheduler.toml"
PYTHON_START_S = 0.2  # emulated, on a machine that does nothing else
DROP_IN = "/run/systemd/system/zernel-scheduler.service.d/test.conf"


class Host:
    """A guest with the agent installed."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        install(guest)
        guest.put(HERE / "workloads", "/root/workloads")
        guest.run(f"cp {SETTINGS} /root/scheduler.toml")

    def reset(self) -> None:
        """Stop the service, take back what a test changed, and begin a new page of the journal."""
        self.guest.run(
            f"systemctl stop zernel-scheduler; rm -rf {DROP_IN}; cp /root/scheduler.toml {SETTINGS}; "
            "systemctl daemon-reload; systemctl reset-failed zernel-scheduler; "
            "for cpu in /sys/devices/system/cpu/cpu*/online; do echo 1 > $cpu; done",
            check=False,
        )
        self._cursor = self.guest.run("journalctl -n 1 --show-cursor").stdout.split("-- cursor: ")[1].strip()

    def start(self) -> None:
        self.guest.run("systemctl start zernel-scheduler")

    def settings(self, text: str) -> None:
        self.guest.run(f"cat > {SETTINGS}", stdin=text)

    def state(self) -> str:
        return self.guest.run("cat /sys/kernel/sched_ext/state").stdout.strip()

    def show(self, name: str) -> str:
        return self.guest.run(f"systemctl show zernel-scheduler --value -p {name}").stdout.strip()

    def journal(self) -> str:
        words = ["journalctl", "-o", "cat", "-u", "zernel-scheduler", f"--after-cursor={self._cursor}"]
        self.guest.run("journalctl --sync")
        return self.guest.run(words).stdout

    def journal_entries(self) -> list[dict[str, Any]]:
        """Return what the kernel and the service wrote since the last reset, field by field."""
        words = ["journalctl", "-o", "json", f"--after-cursor={self._cursor}"]
        self.guest.run("journalctl --sync")
        text = self.guest.run(
            [*words, "_TRANSPORT=kernel", "+", "_SYSTEMD_UNIT=zernel-scheduler.service"]
        ).stdout
        return [json.loads(line) for line in text.splitlines()]

    @contextmanager
    def background(self, name: str, command: str) -> Iterator[None]:
        """Run a shell command, with all that it starts, as long as the block lasts."""
        unit = f"test-{name}"
        self.guest.run(["systemd-run", "-q", "--collect", f"--unit={unit}", "sh", "-c", command])
        try:
            yield
        finally:
            self.guest.run(f"systemctl kill -s KILL {unit}; systemctl stop {unit}", check=False)

    def metrics(self, port: int = 9093) -> dict[str, float]:
        fetch = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
        )
        text = self.guest.run(["python3", "-c", fetch]).stdout
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def workload(self, name: str, *arguments: object, timeout: float = 240, stdin: str | None = None) -> str:
        words = " ".join(map(str, arguments))
        command = f"python3 /root/workloads/{name}.py {words}"
        return self.guest.run(command, timeout=timeout, stdin=stdin).stdout

    def allowed(self, seconds: float) -> float:
        """Return what ``seconds`` become when Python takes longer to start than in a guest left alone."""
        fastest = "min(timeit.repeat(lambda: subprocess.call(['python3', '-c', '']), number=1, repeat=3))"
        command = f"import subprocess, timeit; print({fastest})"
        return seconds * max(1.0, float(self.guest.run(["python3", "-c", command]).stdout) / PYTHON_START_S)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.journal()}"
            time.sleep(0.3)
