# SPDX-License-Identifier: GPL-3.0-or-later
"""What daemons say to systemd, and how they wait. Each case is a process: signals are process-wide."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from zernel import service\nfrom zernel.service import *\n{code}"],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGHUP, "RELOAD"), (signal.SIGTERM, "STOP"), (signal.SIGINT, "STOP")]
)
def test_a_signal_ends_the_wait(number: signal.Signals, name: str) -> None:
    with run("s = Service()\nprint('up', flush=True)\nprint(s.wait(30).name)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.communicate(timeout=10) == (f"{name}\n", "")
    assert process.returncode == 0


def test_a_signal_that_comes_between_two_waits_is_not_lost() -> None:
    code = "import os\ns = Service()\nos.kill(os.getpid(), 1)\nprint(s.wait(5).name, s.wait(0.01).name)"
    with run(code) as process:
        assert process.communicate(timeout=10)[0] == "RELOAD TIMEOUT\n"


@pytest.mark.parametrize("abstract", [False, True])
def test_notifications_reach_the_manager(tmp_path: Path, abstract: bool) -> None:
    name = f"@zernel-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        code = "s = Service()\ns.ready('up')\ns.reloading()\ns.status('x')\ns.stopping()"
        with run(code, NOTIFY_SOCKET=name) as process:
            process.wait(10)
        said = [manager.recv(1000).decode() for _ in range(4)]
    assert said[0] == "READY=1\nSTATUS=up"
    assert said[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said[2:] == ["STATUS=x", "STOPPING=1"]


def test_without_a_manager_nothing_is_said_and_nothing_fails() -> None:
    with run("s = Service()\ns.ready('up')\nprint(s.wait(0).name)", NOTIFY_SOCKET="/nonexistent") as process:
        assert process.communicate(timeout=10) == ("TIMEOUT\n", "")


@pytest.mark.parametrize(("pid", "expected"), [(None, True), ("1", False)])
def test_the_watchdog_is_fed_only_by_the_process_it_watches(
    tmp_path: Path, pid: str | None, expected: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        if pid:
            variables["WATCHDOG_PID"] = pid
        with run("Service().wait(0.5)", **variables) as process:
            process.wait(10)
        said = []
        try:
            while True:
                said.append(manager.recv(1000))
        except BlockingIOError:
            pass
    assert (said.count(b"WATCHDOG=1") >= 4) is expected
    assert bool(said) is expected


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise fail('x', 'It broke', suggestion='Mend it')", ["ERROR: It broke", "Suggestion: Mend it"]),
        (
            "raise PermissionError(13, 'Permission denied', '/x')",
            ["Permission denied /x", "Run the command as root"],
        ),
        ("raise RuntimeError('boom')", ["Internal error", "RuntimeError: boom", "ZERNEL_LOG=debug"]),
    ],
)
def test_no_failure_ends_in_a_traceback(code: str, words: list[str]) -> None:
    program = f"from zernel.errors import fail\ndef work():\n    {code}\nraise SystemExit(service.main(work))"
    with run(program) as process:
        _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "Traceback" not in said
    for word in words:
        assert word in said


def test_lines_for_the_journal_carry_their_priority() -> None:
    """Where python3-systemd is not installed, systemd reads the priority from each line."""
    code = (
        "import sys\nsys.modules['systemd'] = sys.modules['systemd.journal'] = None\n"
        "setup_logging('x')\nimport logging\nlogging.warning('one\\ntwo')\nlogging.debug('no')\n"
    )
    with run(code, JOURNAL_STREAM="1:2", ZERNEL_LOG="info") as process:
        assert process.communicate(timeout=10)[1] == "<4>one\n<4>two\n"


def test_a_manager_that_does_not_read_does_not_stop_the_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        code = (
            "import socket, os\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.setblocking(False)\n"
            "try:\n    while True: s.sendto(b'x', os.environ['NOTIFY_SOCKET'])\n"
            "except BlockingIOError: pass\n"
            "Service().status('x')\nprint('went on')"
        )
        with run(code, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert process.communicate(timeout=20)[0] == "went on\n"


def test_a_status_is_sent_when_it_changes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        code = "s = Service()\ns.ready('a')\ns.status('a')\ns.status('b')\ns.status('b')\ns.stopping()"
        with run(code, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            process.wait(10)
        said = [manager.recv(1000).decode() for _ in range(3)]
    assert said == ["READY=1\nSTATUS=a", "STATUS=b", "STOPPING=1"]
