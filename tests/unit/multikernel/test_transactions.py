# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that misbehaves, other programs, SIGKILL at every step: never half an instance, never a lie."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest

from zernel.devicetree.load import read_file
from zernel.devicetree.model import DeviceUse, Instance
from zernel.multikernel.wire_v1 import V1

from .conftest import BOTH, EXAMPLES, ZERNEL, Host, Killed, clear, names, pending, wire_of, write_overlay

CREATE = ("create", "web", "--cpus=4-7", "--memory=2GB")


@BOTH
@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (["failed"], "Transaction tx_2 has the status 'failed'\n  Nothing was created"),
        (
            ["partial"],
            "Transaction tx_2 has the status 'failed'\n  A part of it was created, and was removed again",
        ),
        (["einval"], "Writing the overlay failed: Invalid argument\n  Nothing was created"),
        (["enospc"], "Writing the overlay failed: No space left on device\n  Nothing was created"),
        (["short"], "bytes were taken\n  Nothing was created"),
        (["lost"], "The kernel accepted the overlay, and no transaction holds it\n  Nothing was created"),
    ],
    indirect=["faulty"],
)
def test_a_kernel_that_refuses_is_believed_and_nothing_is_left(faulty: Host, says: str) -> None:
    shown = faulty.refused(*CREATE)
    assert shown.startswith("ERROR: web: The kernel did not create the instance\n")
    assert says in shown
    assert "SIMULATED" in shown
    assert faulty.instances() == {}
    assert not pending(faulty)
    faulty.ok(*CREATE)


@BOTH
@pytest.mark.parametrize("faulty", [["partial", "failed"], ["partial", "einval"]], indirect=True)
def test_what_cannot_be_removed_again_is_said(faulty: Host) -> None:
    assert "A part of it was created and could not be removed" in faulty.refused(*CREATE)
    assert set(faulty.instances()) == {"web"}
    done = faulty.json("delete", "web")
    assert (done["changed"], done["before"]["name"]) == (True, "web")
    assert "was interrupted" in done["notes"][0]
    assert faulty.instances() == {}


@BOTH
@pytest.mark.parametrize("faulty", [["partial", "failed", "failed"]], indirect=True)
def test_what_could_not_be_removed_is_tried_again_by_the_next_commands(faulty: Host) -> None:
    assert "Suggestion: Remove what is left: zernel delete web" in faulty.refused(*CREATE)
    assert pending(faulty)
    other = ("create", "other", "--cpus=4-7", "--memory=1GB")
    assert "What a failed creation left cannot be removed" in faulty.refused(*other)
    assert pending(faulty)
    done = faulty.json(*other)
    assert "removed again" in done["notes"][0]
    assert set(faulty.instances()) == {"other"}
    assert not pending(faulty)


def test_the_error_of_the_next_command_tells_what_the_killed_one_did(host: Host, killed: Killed) -> None:
    # Killed right after the kernel took the overlay: the first moment at which the instance is there.
    assert any(killed(moment, *CREATE)[0] == -signal.SIGKILL and "web" in names(host) for moment in range(99))
    assert pending(host)
    done = host.run(*CREATE, "--format=json")
    (error,) = json.loads(done.stdout)["errors"]
    assert error["code"] == "duplicate-name"
    assert error["note"] == "An earlier 'zernel create web' was interrupted: the instance is there"
    assert "--ensure" in error["suggestion"]
    assert "Note: An earlier 'zernel create web'" in done.stderr
    assert not host.json(*CREATE, "--ensure")["changed"]


@pytest.mark.parametrize("faulty", [["slow", "partial"]], indirect=True)
def test_a_deletion_called_failed_that_happened_is_no_contradiction(faulty: Host) -> None:
    faulty.ok(*CREATE)
    shown = faulty.refused("delete", "web")
    assert "The instance was deleted, and the kernel reports a failure" in shown
    assert "did not delete" not in shown
    assert "journalctl" not in shown
    assert faulty.instances() == {}


def test_only_root_changes_instances_and_says_so_before_anything_else(host: Host) -> None:
    script = "import os, sys; os.geteuid = lambda: 1000; from zernel.cli.main import main; sys.exit(main())"
    for words in (CREATE, ("delete", "web")):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], env=host.environment(), capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Suggestion: Run the command as root" in done.stderr
    assert not pending(host)
    assert host.instances() == {}


@pytest.mark.parametrize("faulty", [["failed", "failed"]], indirect=True)
def test_old_failed_transactions_are_not_taken_for_ours(faulty: Host) -> None:
    faulty.refused(*CREATE)
    faulty.refused(*CREATE)
    done = faulty.json(*CREATE)
    assert done["transaction"] == {"id": 4, "status": "applied"}


def test_instances_of_other_programs_are_seen_and_kept_clear_of(host: Host) -> None:
    write_overlay(
        host, V1().create(Instance("kerf", 1, (4, 5), 0x80000000, 1 << 30, (DeviceUse("eth0", vf=1),)))
    )
    assert set(host.instances()) == {"kerf"}
    assert "conflict with kerf" in host.refused(*CREATE)
    done = host.json("create", "web", "--cpu-count=2", "--memory=1GB")["instance"]
    assert (done["cpus"], done["memory_base"], done["id"]) == ([6, 7], 0xC0000000, 2)


def refused_while_another_writes(host: Host, other: bytes, *words: str) -> str:
    """Run a command while another program writes an overlay between our look at the state and our own write,
    which then fails; return what is said. An empty overlay undoes the first transaction instead."""
    script = (
        "import os, sys; from zernel.cli.main import main; from zernel.multikernel import fs;"
        "write = fs.MultikernelFs.write_overlay;"
        f"other = bytes.fromhex('{other.hex()}');"
        "fs.MultikernelFs.write_overlay = lambda self, blob:"
        " (setattr(fs.MultikernelFs, 'write_overlay', write),"
        " write(self, other) if other else os.rmdir(self.root / 'overlays/tx_2'), write(self, blob));"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=host.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("version", "how"),
    [(1, "as we do"), (1, "otherwise"), (2, "as we do"), (2, "otherwise"), (2, "by rmdir")],
    indirect=["version"],
)
def test_what_another_program_deleted_meanwhile_is_no_change_of_ours(host: Host, how: str) -> None:
    host.ok(*CREATE)
    host.ok("create", "db", "--cpus=8", "--memory=1GB")
    ours = wire_of(host).remove("web")
    boot_cpu = slice(28, 32)  # in the header of the blob; it has no meaning here
    theirs = ours[: boot_cpu.start] + b"\0\0\0\1" + ours[boot_cpu.stop :]
    other = {"as we do": ours, "otherwise": theirs, "by rmdir": b""}[how]
    shown = refused_while_another_writes(host, other, "delete", "web")
    assert "The instance is gone, and it is not known by whose transaction" in shown
    assert "rollback" not in shown
    assert set(host.instances()) == {"db"}
    assert not pending(host)
    host.ok("rollback")
    assert host.instances() == {}


@BOTH
def test_an_instance_that_another_program_made_meanwhile_is_left_alone(host: Host) -> None:
    other = wire_of(host).create(Instance("web", 9, (4, 5, 6, 7), 0x80000000, 2 << 30))
    assert "made by another program; it was left alone" in refused_while_another_writes(host, other, *CREATE)
    assert host.instances()["web"]["id"] == 9
    assert not pending(host)


def test_the_lock_is_not_the_file_that_holds_it(host: Host) -> None:
    host.ok(*CREATE)
    (lock,) = host.state.rglob("lock")
    lock.write_text("99999\n")
    host.ok("delete", "web")


def test_a_held_lock_names_its_holder(host: Host) -> None:
    host.ok(*CREATE)
    (lock,) = host.state.rglob("lock")
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        shown = host.refused("delete", "web")
    assert f"Another command is changing the instances: pid {os.getpid()}" in shown
    assert set(host.instances()) == {"web"}


def test_reading_needs_no_lock(host: Host) -> None:
    host.ok(*CREATE)
    (lock,) = host.state.rglob("lock")
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert set(host.instances()) == {"web"}
        host.ok("create", "db", "--cpus=9", "--memory=1GB", "--dry-run")


def test_a_broken_journal_is_no_traceback(host: Host) -> None:
    host.ok(*CREATE)
    (lock,) = host.state.rglob("lock")
    journal = lock.parent / "journal.json"
    for content in (
        "{",
        "[]",
        '{"action": 5, "instance": 7, "overlay": "", "before": []}',
        '{"action": "create", "instance": 7, "overlay": "", "before": []}',
        '{"action": "create", "instance": "web", "overlay": "", "before": "ab"}',
    ):
        journal.write_text(content)
        shown = host.refused("delete", "web")
        assert f"then remove {journal}" in shown, content
    assert set(host.instances()) == {"web"}


@BOTH
def test_sigkill_at_every_moment_of_a_creation(host: Host, killed: Killed) -> None:
    created = moments = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        status, _ = killed(moments, *CREATE)
        moments += 1
        there = "web" in names(host)
        was_pending = pending(host)
        # The next command settles it, whatever it is, and works; what was not created is free.
        cpus = "--cpus=9" if there else "--cpus=4-7"
        after, output = killed(-1, "create", "other", cpus, "--memory=1GB", "--format=json")
        assert after == 0
        data = json.loads(output)
        assert bool(data["notes"]) == was_pending
        if was_pending:
            assert ("the instance is there" in data["notes"][0]) == there
        assert not pending(host)
        assert names(host) == ({"web", "other"} if there else {"other"})
        created += there
        clear(host)
    assert status == 0
    # Enough moments for the loop to have met every step, and both outcomes among them.
    assert moments > 15
    assert 1 < created < moments


@BOTH
def test_sigkill_at_every_moment_of_a_deletion(host: Host, killed: Killed) -> None:
    web = wire_of(host).create(Instance("web", 1, (4,), 0x80000000, 1 << 30))
    moments = gone = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        write_overlay(host, web)
        status, _ = killed(moments, "delete", "web")
        moments += 1
        there = "web" in names(host)
        gone += not there
        after, output = killed(-1, "delete", "web", "--ensure", "--format=json")
        assert after == 0
        assert json.loads(output)["changed"] == there
        assert not pending(host)
        assert not names(host)
    assert status == 0
    assert 1 < gone < moments


@BOTH
@pytest.mark.parametrize("faulty", [["partial"]], indirect=True)
def test_sigkill_while_a_failed_creation_is_undone(faulty: Host, killed: Killed) -> None:
    moment, repaired, status = 0, 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        status, _ = killed(moment, *CREATE)
        moment += 1
        if not (faulty.root / "overlays/tx_2").exists():
            write_overlay(
                faulty, wire_of(faulty).remove("nobody")
            )  # killed before its write: the fault is used up here
        repaired += "web" in names(faulty)
        assert killed(-1, "create", "other", "--cpus=20", "--memory=1GB")[0] == 0
        assert not pending(faulty)
        # What the kernel calls failed is gone after the repair; a creation killed before its write never was.
        assert names(faulty) == {"other"}
        # The fault is met once, so each moment needs a file system of its own.
        faulty.stop()
        faulty.start("--fault=partial")
        assert killed(-1, "init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")[0] == 0
    assert status == 1
    assert repaired > 1


def test_a_baseline_killed_at_every_moment_is_there_or_not(empty: Host, killed: Killed) -> None:
    moment, status = 0, -signal.SIGKILL
    words = ("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")
    seen = set()
    while status == -signal.SIGKILL:
        status, _ = killed(moment, *words)
        moment += 1
        code, shown = killed(-1, "show", "--format=json")
        seen.add(json.loads(shown)["hardware"]["cpus"]["total"] if code == 0 else None)
        assert killed(-1, *words)[0] == 0
        assert killed(-1, "init", f"--input={EXAMPLES / 'minimal.dts'}", "--apply")[0] == 0
    assert status == 0
    assert seen == {None, 8, 32}


@BOTH
def test_commands_at_the_same_time_never_share_anything(host: Host) -> None:
    for _ in range(3):
        running = [
            subprocess.Popen(
                [ZERNEL, "create", f"i{number}", "--cpu-count=5", "--memory=3GB"],
                env=host.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(8)
        ]
        statuses = []
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert "Traceback" not in errors
            statuses.append(process.returncode)
        instances = host.instances()
        # 14GB hold four instances of 3GB, 28 CPUs five of 5.
        assert sorted(statuses) == [0] * 4 + [1] * 4
        assert len(instances) == 4
        cpus = [cpu for found in instances.values() for cpu in found["cpus"]]
        assert len(cpus) == len(set(cpus))
        ranges = sorted((found["memory_base"], found["memory_bytes"]) for found in instances.values())
        for (base, size), (following, _) in pairwise(ranges):
            assert base + size <= following
        clear(host)


def test_the_examples_instances_can_all_be_created(host: Host) -> None:
    system = read_file(EXAMPLES / "system.dts").system
    assert system is not None
    for instance in system.instances:
        devices = [f"--devices={','.join(map(str, instance.devices))}"] if instance.devices else []
        host.ok(
            "create",
            instance.name,
            f"--cpus={','.join(map(str, instance.cpus))}",
            f"--memory={instance.memory_bytes:#x}",
            f"--memory-base={instance.memory_base:#x}",
            f"--id={instance.id}",
            *devices,
        )
    assert len(host.instances()) == 3
