# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel ensure``: what it says, and what it leaves behind when it is killed.

Every state from every state, and the faults, are in tests/unit/modules/test_instance_module.py: the module
adds nothing to what this command does.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from zernel.cli.main import main
from zernel.multikernel import operations

from .conftest import Host, Killed, pending
from .lives import pending as call_pending
from .lives import status

OWNS = ("--cpus=4-7", "--memory=2GB")


def test_what_a_person_reads(host: Host, kernel: Path) -> None:
    started = ("ensure", "web", "--state=started", *OWNS, f"--kernel={kernel}")
    planned = host.ok(*started, "--dry-run")
    assert "✓ Instance web can be started: create, load, exec (dry run: nothing was done)" in planned
    assert host.instances() == {}
    done = host.ok(*started)
    assert "Instance web (active)\n  ID: 1\n  CPUs: 4-7 (4)\n" in done
    assert "✓ Instance web is started now: create, load, exec (transaction tx_2)" in done
    again = host.ok(*started)
    assert "✓ Instance web is started already: nothing to change" in again
    assert f"NOTE: web has a kernel already, and nothing tells which: {kernel} was not loaded" in again
    grown = host.ok("ensure", "web", "--cpu-count=6")
    assert "  cpu-add 8-9\n✓ Instance web is present now: update (transaction tx_3)" in grown
    busy = host.refused("ensure", "web", "--state=absent")
    assert busy.startswith("ERROR: web: The instance is active")
    assert "Alternative: To stop its kernel and delete it all the same: --force" in busy
    gone = host.ok("ensure", "--force", "--state=absent", "web")
    assert "✓ Instance web is absent now: kill, unload, delete (transaction tx_4)" in gone
    assert "✓ There is no instance web: nothing to change" in host.ok("ensure", "web", "--state=absent")
    assert all("SIMULATED" in text for text in (planned, done, again, grown, busy, gone))


def test_the_data_is_the_same_for_every_outcome(host: Host, kernel: Path) -> None:
    started = ("ensure", "web", "--state=started", *OWNS, f"--kernel={kernel}", "--cmdline=quiet")
    planned, done, again = (host.json(*started, *more) for more in (["--dry-run"], [], []))
    assert list(planned) == list(done) == list(again)
    assert [one["status"] for one in (planned, done, again)] == ["planned", "changed", "unchanged"]
    assert done["loaded"]["cmdline"] == "quiet"
    assert done["loaded"]["kernel"]["path"] == str(kernel)
    assert planned | {"status": "", "dry_run": False, "transactions": []} == done | {
        "status": "",
        "transactions": [],
    }
    assert again["loaded"] is None


def test_an_instance_that_another_command_changed_meanwhile_is_not_changed(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.ok("ensure", "web", *OWNS, "--id=1")
    for name in ("ZERNEL_MULTIKERNEL_ROOT", "ZERNEL_STATE_DIR"):
        monkeypatch.setenv(name, host.environment()[name])
    update = operations.update

    def late(*args: Any, dry_run: bool, **kwargs: Any) -> operations.Outcome:
        if not dry_run:  # the way was judged, and its first step has not begun
            host.ok("ensure", "web", "--id=9")
        return update(*args, dry_run=dry_run, **kwargs)

    monkeypatch.setattr(operations, "update", late)
    words = ["ensure", "web", "--cpus=4-9", "--id=1", "--format=json"]
    assert main(words) == 1
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error["code"] == "state-changed"
    assert host.instances()["web"]["id"] == 9
    assert host.instances()["web"]["cpus"] == [4, 5, 6, 7]
    monkeypatch.setattr(operations, "update", update)
    assert main(words) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["replaced"], done["operations"]) == (True, [])
    assert host.instances()["web"]["id"] == 1


def test_a_change_can_be_rolled_back(host: Host) -> None:
    host.ok("ensure", "web", *OWNS)
    host.ok("ensure", "web", "--cpu-count=6")
    host.ok("rollback")
    assert host.instances()["web"]["cpus"] == [4, 5, 6, 7]


def test_wrong_words(host: Host) -> None:
    assert host.run("ensure", "web", "--state=paused").returncode == 2
    assert host.run("ensure", "web", "--cpus=4", "--cpu-count=1").returncode == 2
    said = host.refused("ensure", "web", "--cpus=4-30000000", "--memory=infGB", "--devices=a b")
    assert said.count("ERROR: ") == 3


def test_a_wrong_name_is_named_with_those_that_are_near(host: Host) -> None:
    host.ok("ensure", "web-server", *OWNS)
    said = host.refused("ensure", "web-sever", "--state=stopped")
    assert "There is no such instance" in said
    assert "- web-server" in said


@pytest.mark.parametrize("first", ["absent", "started"])
def test_sigkill_at_every_moment(host: Host, kernel: Path, killed: Killed, first: str) -> None:
    """From one state to the other, killed before and after each call; the next run brings it to the end."""
    words = {
        "absent": ("ensure", "web", "--state=absent", "--force"),
        "started": ("ensure", "web", "--state=started", *OWNS, f"--kernel={kernel}"),
    }
    there, wanted = words[first], words[{"absent": "started", "started": "absent"}[first]]
    moment, ended = 0, -signal.SIGKILL
    seen = set()
    while ended == -signal.SIGKILL:
        assert killed(-1, *there)[0] == 0
        ended, _ = killed(moment, *wanted)
        moment += 1
        seen.add(status(host) if (host.root / "instances/web").exists() else "absent")
        code, output = killed(-1, *wanted, "--format=json")
        assert code == 0, output
        found = json.loads(output)["after"]
        assert (found and found["status"]) == ("active" if first == "absent" else None)
        assert not pending(host)
        assert not call_pending(host)
        assert not json.loads(killed(-1, *wanted, "--format=json")[1])["changed"]
    assert ended == 0
    assert seen == {"absent", "ready", "loaded", "active"}
