# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads, boots and halts that are killed at any step, and at the same time."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from zernel.multikernel.kexec import KernelCalls
from zernel.multikernel.wire_v1 import V1

from .conftest import ZERNEL, Host, Killed, wait_until, write_overlay
from .lives import bring, calls, loaded, pending, status, words


@pytest.mark.parametrize(
    ("verb", "before", "after", "back"),
    [
        ("load", "ready", "loaded", lambda made: made.unload(1)),
        ("exec", "loaded", "active", lambda made: made.halt(1, force=False)),
        ("kill", "active", "loaded", lambda made: made.boot(1)),
        ("unload", "loaded", "ready", None),
    ],
)
def test_sigkill_at_every_moment(
    web: Host,
    kernel: Path,
    killed: Killed,
    verb: str,
    before: str,
    after: str,
    back: Callable[[KernelCalls], None] | None,
) -> None:
    bring(web, kernel, before)
    moment = happened = 0
    ended = -signal.SIGKILL
    while ended == -signal.SIGKILL:
        ended, _ = killed(moment, *words(verb, kernel))
        moment += 1
        found = status(web)
        assert found in (before, after)
        happened += found == after
        was_pending = pending(web)
        # The next command says what became of it, and does what is left to do.
        code, output = killed(-1, *words(verb, kernel, "--ensure", "--format=json"))
        assert code == 0
        data = json.loads(output)
        assert data["changed"] == (found == before)
        said = f"An earlier 'zernel {verb} web' was interrupted: the instance is {found}"
        assert data["notes"] == ([said] if was_pending else [])
        assert status(web) == after
        assert not pending(web)
        if back is not None:
            back(calls(web))
        else:
            assert killed(-1, *words("load", kernel))[0] == 0
        assert status(web) == before
    assert ended == 0
    # Enough moments for the loop to have met every step, and both outcomes among them.
    assert moment > 15
    assert 1 < happened < moment


@pytest.mark.parametrize("faulty", [["load-slow"]], indirect=True)
def test_sigkill_while_the_kernel_loads(faulty: Host, kernel: Path) -> None:
    faulty.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    with subprocess.Popen([ZERNEL, *words("load", kernel)], env=faulty.environment()) as process:
        wait_until(lambda: pending(faulty))
        process.kill()
    done = faulty.json(*words("load", kernel, "--ensure"))
    assert "An earlier 'zernel load web' was interrupted: the instance is " in done["notes"][0]
    assert status(faulty) == "loaded"


def test_an_instance_deleted_meanwhile_is_gone(web: Host, kernel: Path, killed: Killed) -> None:
    moments = iter(range(99))
    while not pending(web):
        assert killed(next(moments), *words("load", kernel))[0] == -signal.SIGKILL
    assert status(web) == "ready"
    write_overlay(web, V1().remove("web"))
    shown = web.refused(*words("load", kernel))
    assert "Note: An earlier 'zernel load web' was interrupted: the instance is gone" in shown


def test_a_broken_journal_stops_no_command(web: Host, kernel: Path) -> None:
    (lock,) = web.state.rglob("lock")
    journal = lock.parent / "call.json"
    for content in ("{", "[]", "null", '{"verb": "load"}', '{"verb": "rm", "instance": "web"}', "[" * 4000):
        journal.write_text(content)
        (note,) = web.json(*words("load", kernel), "--dry-run")["notes"]
        assert f"{journal} cannot be read" in note, content
        assert journal.read_text() == content
    journal.write_text('{"verb": "load", "instance": "../../web"}')
    assert f"{journal} cannot be read" in web.json(*words("load", kernel))["notes"][0]
    assert not journal.exists()
    assert status(web) == "loaded"


def test_every_change_tells_what_a_killed_load_did(web: Host, kernel: Path, killed: Killed) -> None:
    moments = iter(range(99))
    while status(web) == "ready":
        assert killed(next(moments), *words("load", kernel))[0] == -signal.SIGKILL
    note = "An earlier 'zernel load web' was interrupted: the instance is loaded"
    assert f"Note: {note}" in web.refused("delete", "web", "--dry-run")
    assert f"Note: {note}" in web.refused("delete", "web")
    assert web.json("create", "db", "--cpus=9", "--memory=1GB")["notes"] == []


def test_giving_up_tells_what_a_killed_load_did(web: Host, kernel: Path, killed: Killed) -> None:
    moments = iter(range(99))
    while status(web) == "ready":
        assert killed(next(moments), *words("load", kernel))[0] == -signal.SIGKILL
    for more in (("--dry-run",), ()):
        done = web.json("rollback", "--give-up", *more)
        assert (done["status"], done["left"]) == ("unchanged", [])
        assert done["notes"] == ["An earlier 'zernel load web' was interrupted: the instance is loaded"]
    assert web.json("rollback", "--give-up")["notes"] == []


def test_commands_at_the_same_time_load_one_kernel(web: Host, kernel: Path) -> None:
    running = [
        subprocess.Popen(
            [ZERNEL, *words("load", kernel, f"--cmdline=n={number}")],
            env=web.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    said = [process.communicate(timeout=60) for process in running]
    winners = [number for number, process in enumerate(running) if process.returncode == 0]
    assert len(winners) == 1
    assert loaded(web)["web"]["cmdline"] == f"n={winners[0]}"
    assert all(
        "A kernel is loaded already" in errors
        for number, (_, errors) in enumerate(said)
        if number not in winners
    )
