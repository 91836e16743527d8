# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change that was not finished becomes: settled, however often that is interrupted, or given up."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
from pathlib import Path

import pytest

from zernel.devicetree.model import Instance
from zernel.multikernel.fs import DEFAULT_ROOT, MultikernelFs
from zernel.multikernel.journal import directory_of

from .conftest import (
    BOTH,
    ZERNEL,
    Host,
    Killed,
    clear,
    names,
    pending,
    state_directory,
    wait_until,
    wire_of,
    write_overlay,
)

X = Instance("x", 1, (4, 5), 0x80000000, 1 << 30)
TAKES_XS = Instance("other", 9, (4, 5), 0x80000000, 1 << 30)
REPLACE = ("ensure", "x", "--state=present", "--id=7")
NOTHING = ("delete", "nobody", "--ensure")
VISIBLE = ("write", "replace", "unlink")
"""The calls whose effect another process sees: writes to the kernel, and files put in place or removed. What
is right after one is what is right before the next, so that every second moment is all of them."""
AFTER_THE_DELETION = 4
"""The moment before a replacement's second overlay: the journal and the first overlay were written."""
BEFORE_THE_HISTORY = 4
"""The moment after the only overlay of a change, which is not recorded yet."""


def ids(host: Host) -> dict[str, int]:
    return {name: int((host.root / "instances" / name / "id").read_text()) for name in names(host)}


def replacing_x(host: Host, killed: Killed) -> None:
    """Leave a replacement of x that was killed when x was deleted."""
    write_overlay(host, wire_of(host).create(X))
    assert killed(AFTER_THE_DELETION, *REPLACE, calls=VISIBLE)[0] == -signal.SIGKILL
    assert "x" not in names(host)
    assert pending(host)


@BOTH
def test_sigkill_at_every_moment_of_settling_a_replacement(
    host: Host, killed: Killed, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ncpus: 4-5\nmemory: 1GB\nid: 7\n")
    (tmp_path / "z.yaml").write_text("name: z\ncpus: 6\nmemory: 1GB\nid: 3\n")
    apply = ("apply", f"--directory={tmp_path}")
    outcomes = []
    first = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        second, settling = 0, -signal.SIGKILL
        while settling == -signal.SIGKILL:
            write_overlay(host, wire_of(host).create(X))
            status, _ = killed(first, *apply, calls=VISIBLE)
            settling, _ = killed(second, *NOTHING, calls=VISIBLE)
            assert killed(-1, *NOTHING)[0] == 0
            assert not pending(host)
            outcomes.append(ids(host))
            assert outcomes[-1] in ({"x": 1}, {"x": 7, "z": 3}), (first, second)
            clear(host)
            second += 2
        first += 2
    assert status == 0
    assert {"x": 1} in outcomes
    assert {"x": 7, "z": 3} in outcomes
    assert len(outcomes) > 15


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "partial", "none", "failed"]], indirect=True)
def test_a_replaced_instance_comes_back_when_its_first_return_was_refused(faulty: Host) -> None:
    write_overlay(faulty, wire_of(faulty).create(X))
    assert "x: it was deleted and could not be created again" in faulty.refused(*REPLACE)
    assert ids(faulty) == {}
    assert "x: it was deleted, and was created again" in faulty.json(*NOTHING)["notes"][0]
    assert ids(faulty) == {"x": 1}


@BOTH
@pytest.mark.parametrize("faulty", [["fewer"]], indirect=True)
def test_a_creation_of_which_the_kernel_did_a_part_is_ours(faulty: Host) -> None:
    shown = faulty.refused("create", "web", "--cpus=4-7", "--memory=2GB")
    assert "A part of it was created, and was removed again" in shown
    assert names(faulty) == set()


@BOTH
def test_what_can_never_be_undone_stops_no_kernel_and_can_be_given_up(
    host: Host, killed: Killed, kernel: Path
) -> None:
    away = () if host.version == 2 else ("--memory-base=0x100000000",)
    host.ok("create", "hung", "--cpus=20", "--memory=1GB", "--id=2", *away)
    host.ok("load", "hung", f"--kernel={kernel}")
    host.ok("exec", "hung")
    replacing_x(host, killed)
    write_overlay(host, wire_of(host).create(TAKES_XS))
    blocked = ("create", "db", "--cpus=8", "--memory=1GB")
    shown = host.refused(*blocked)
    assert "x: it was deleted and could not be created again: other has CPUs 4-5" in shown
    assert "Alternative: Leave it as it is, and end that change: zernel rollback --give-up" in shown
    assert host.refused(*blocked, "--dry-run") == shown
    assert "interrupted; the next change settles it" in host.json("kill", "hung", "--force")["notes"][0]
    host.ok("unload", "hung")
    assert pending(host)
    assert host.json("rollback", "--give-up", "--dry-run")["status"] == "planned"
    assert pending(host)
    done = host.json("rollback", "--give-up")
    assert (done["status"], done["changed"]) == ("given-up", True)
    assert any("x: it was deleted and could not be created again" in text for text in done["left"])
    assert any(
        "To create x as it was: zernel create x --cpus=4-5 --memory=1GB --" in one for one in done["left"]
    )
    host.ok(*blocked)
    assert host.json("rollback", "--give-up")["status"] == "unchanged"


def x_is_in_the_way_of(host: Host, killed: Killed) -> None:
    """Leave a replacement of x that cannot be undone, as another instance has by now what x had."""
    replacing_x(host, killed)
    write_overlay(host, wire_of(host).create(TAKES_XS))
    assert "cannot be undone" in host.refused("create", "db", "--cpus=8", "--memory=1GB")


@BOTH
@pytest.mark.parametrize("words", [("delete", "other"), ("ensure", "other", "--state=absent")])
def test_what_is_in_the_way_can_be_deleted(host: Host, killed: Killed, words: tuple[str, ...]) -> None:
    x_is_in_the_way_of(host, killed)
    before = names(host)
    planned = host.json(*words, "--dry-run")
    assert names(host) == before
    done = host.json(*words)
    assert done["changed"]
    assert done["notes"] == planned["notes"]
    assert "cannot be undone yet; x: it was deleted and could not be created again" in done["notes"][0]
    assert names(host) == set()
    assert pending(host)
    assert "x: it was deleted, and was created again" in host.json(*NOTHING)["notes"][0]
    assert ids(host) == {"x": 1}
    assert not pending(host)
    # It is a change as any other: what it deleted cannot come back now, as x has that again.
    assert "CPU allocation conflict" in host.refused("rollback")
    host.ok("delete", "x")
    host.ok("rollback")
    assert ids(host) == {"x": 1}


@BOTH
def test_what_an_unsettled_change_is_about_is_not_deleted_past_it(host: Host, killed: Killed) -> None:
    x_is_in_the_way_of(host, killed)
    assert "cannot be undone" in host.refused("delete", "x", "--ensure")
    (journal,) = host.state.rglob("journal.json")
    before = journal.read_bytes()
    assert host.json("delete", "nobody", "--ensure")["changed"] is False
    assert ids(host) == {"other": 9}
    assert journal.read_bytes() == before, "it grows with each try"


@BOTH
def test_sigkill_at_every_moment_of_deleting_what_is_in_the_way(host: Host, killed: Killed) -> None:
    moment, status, outcomes = 0, -signal.SIGKILL, []
    while status == -signal.SIGKILL:
        x_is_in_the_way_of(host, killed)
        (journal,) = host.state.rglob("journal.json")
        history = {path.name for path in journal.parent.glob("history/[1-9]*")}
        status, _ = killed(moment, "delete", "other", calls=VISIBLE)
        moment += 2
        assert journal.exists()
        gone, begun = "other" not in names(host), (journal.parent / "deletion.json").exists()
        outcomes.append((gone, begun))
        # The next command says what became of it, whether it can go on or not.
        shown = host.run("create", "db", "--cpus=8", "--memory=1GB", "--format=json")
        said = f"An earlier 'zernel delete other' was interrupted: the instance is {'' if gone else 'still '}"
        assert (said in shown.stdout) is begun
        assert shown.returncode == (0 if gone else 1)
        assert not (journal.parent / "deletion.json").exists()
        if not gone:
            assert killed(-1, "delete", "other")[0] == 0
        assert killed(-1, *NOTHING)[0] == 0
        assert ids(host)["x"] == 1
        assert not pending(host)
        assert len({path.name for path in journal.parent.glob("history/[1-9]*")} - history) == 1 + gone
        clear(host)
    assert status == 0
    assert {(False, False), (False, True), (True, True), (True, False)} == set(outcomes)


@BOTH
def test_a_deletion_beside_what_cannot_be_settled_is_given_up_with_it(host: Host, killed: Killed) -> None:
    x_is_in_the_way_of(host, killed)
    moment = 0
    while not any(host.state.rglob("deletion.json")):
        assert killed(moment, "delete", "other", calls=VISIBLE)[0] == -signal.SIGKILL
        moment += 2
    assert any("delete other" in note for note in host.json("unload", "other", "--ensure")["notes"])
    done = host.json("rollback", "--give-up")
    assert done["status"] == "given-up"
    assert done["notes"] == ["An earlier 'zernel delete other' was interrupted: the instance is still there"]
    assert not pending(host)
    assert not any(host.state.rglob("deletion.json"))


def test_a_replacement_is_settled_rather_than_given_up_where_it_can_be(host: Host, killed: Killed) -> None:
    replacing_x(host, killed)
    done = host.json("rollback", "--give-up")
    assert (done["status"], done["left"]) == ("settled", [])
    assert ids(host) == {"x": 1}
    assert host.run("rollback", "tx_2", "--give-up").returncode == 2


def test_a_full_disk_stops_no_kernel(host: Host, killed: Killed, kernel: Path) -> None:
    host.ok("create", "hung", "--cpus=20", "--memory=1GB")
    host.ok("load", "hung", f"--kernel={kernel}")
    host.ok("exec", "hung")
    # Killed when all of it was done, and nothing was recorded yet.
    assert killed(4, "create", "web", "--cpus=4", "--memory=1GB", calls=VISIBLE)[0] == -signal.SIGKILL
    assert pending(host)
    (lock,) = host.state.rglob("lock")
    journal = (lock.parent / "journal.json").read_bytes()
    # Room for itself, the lock and the journal, and for nothing more.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "none", lock.parent], check=True)
    try:
        lock.touch()
        (lock.parent / "journal.json").write_bytes(journal)
        shown = host.refused("create", "db", "--cpus=8", "--memory=1GB")
        assert "The change was made, and could not be recorded" in shown
        host.ok("kill", "hung", "--force")
        host.ok("unload", "hung")
    finally:
        subprocess.run(["umount", lock.parent], check=True)
    assert host.json("delete", "web")["notes"] == [
        "An earlier 'zernel create web' was interrupted: the instance is there"
    ]


def test_a_read_only_disk_stops_no_kernel(host: Host, kernel: Path, tmp_path: Path) -> None:
    host.ok("create", "hung", "--cpus=20", "--memory=1GB")
    host.ok("load", "hung", f"--kernel={kernel}")
    host.ok("exec", "hung")
    (lock,) = host.state.rglob("lock")
    (lock.parent / "call.json").write_text('{"verb": "exec", "instance": "hung"}')  # as if it was killed
    subprocess.run(["mount", "--bind", host.state, host.state], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", host.state], check=True)
        shown = host.refused("create", "db", "--cpus=8", "--memory=1GB")
        assert "Read-only file system" in shown
        assert "Note: An earlier 'zernel exec hung' was interrupted: the instance is active\n" in shown
        assert "SIMULATED" in shown
        host.ok("kill", "hung", "--force")
        host.ok("unload", "hung")
    finally:
        subprocess.run(["umount", host.state], check=True)
    assert host.instances()["hung"]["status"] == "ready"


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_without_room_for_a_lock_stops_no_kernel(host: Host, kernel: Path, disk: str) -> None:
    host.ok("create", "hung", "--cpus=20", "--memory=1GB")
    host.ok("load", "hung", f"--kernel={kernel}")
    host.ok("exec", "hung")
    options = {"full": "nr_inodes=1", "read-only": "ro"}[disk]
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", host.state], check=True)
    try:
        for words in (("create", "db", "--cpus=8", "--memory=1GB"), ("rollback", "--give-up")):
            assert str(host.state) in host.refused(*words)
        for verb in (("kill", "hung", "--force"), ("unload", "hung")):
            (note,) = host.json(*verb)["notes"]
            assert note.startswith(f"Other commands are not kept waiting: {host.state}")
    finally:
        subprocess.run(["umount", host.state], check=True)
    assert host.instances()["hung"]["status"] == "ready"


@pytest.mark.parametrize("inodes", [1, 2], ids=["for the lock", "for the journal"])
def test_a_full_disk_is_named(host: Host, inodes: int) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    (lock,) = host.state.rglob("lock")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "none", lock.parent], check=True)
    try:
        shown = host.refused("create", "db", "--cpus=8", "--memory=1GB")
        assert "SIMULATED" in shown
        assert str(lock.parent) in shown
        assert "No space left on device" in shown
    finally:
        subprocess.run(["umount", lock.parent], check=True)


@pytest.mark.parametrize("faulty", [["slow"]], indirect=True)
def test_a_command_at_work_has_left_nothing(faulty: Host) -> None:
    with subprocess.Popen(
        [ZERNEL, "create", "web", "--cpus=4", "--memory=1GB"],
        env=faulty.environment(),
        stdout=subprocess.PIPE,
    ) as process:
        wait_until(lambda: pending(faulty))
        done = faulty.json("rollback", "--give-up", "--dry-run")
        assert (done["status"], done["notes"]) == ("unchanged", [])
        process.communicate()
    assert process.returncode == 0


def test_what_is_at_work_is_not_called_interrupted(host: Host, killed: Killed) -> None:
    host.ok("create", "idle", "--cpus=20", "--memory=1GB")
    run_killed_after_its_write(host, killed, "create", "web", "--cpus=4", "--memory=1GB")
    dry_run = ("unload", "idle", "--ensure", "--dry-run")
    assert "'zernel create web' was interrupted" in host.json(*dry_run)["notes"][0]
    with (state_directory(host) / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the command does which is at work
        assert host.json(*dry_run)["notes"] == []


@BOTH
def test_what_an_earlier_boot_began_or_did_is_not_taken_for_this_ones(host: Host, killed: Killed) -> None:
    web = ("create", "web", "--cpus=4", "--memory=1GB")

    def boot() -> None:
        host.stop()
        host.start()
        host.init()

    for _ in range(2):
        boot()
        host.ok(*web)
        host.ok("delete", "web")
    host.ok("rollback")
    host.ok("rollback")
    assert "There is no change to roll back" in host.refused("rollback")
    boot()
    replacing_x(host, killed)
    boot_of_its_own = host.root / "SIMULATED.identity"
    before = boot_of_its_own.read_text()
    host.stop()
    host.start()
    assert boot_of_its_own.read_text() != before
    done = host.run("init", "--input=docs/examples/baseline.dts", "--apply", "--format=json")
    assert "nothing of it is there" in json.loads(done.stdout)["notes"][0]
    assert ids(host) == {}
    assert not pending(host)


def test_no_two_file_systems_share_a_directory_and_no_mount_has_one_of_its_own(
    host: Host, tmp_path: Path
) -> None:
    paths = ["/run/zernel/multikernel", "/run/zernel-multikernel", "/run/zernel/multikernel-", "/run", "/"]
    kernel = directory_of(MultikernelFs(DEFAULT_ROOT, simulated=False))
    found = [directory_of(MultikernelFs(Path(path), simulated=True)) for path in (*paths, DEFAULT_ROOT)]
    assert len({*found, kernel}) == len(found) + 1
    assert directory_of(MultikernelFs(Path("/mnt/multikernel"), simulated=False)) == kernel
    second = tmp_path / "second"
    second.mkdir()
    subprocess.run(["mount", "--bind", host.root, second], check=True)
    try:
        first, other = (directory_of(MultikernelFs(root, simulated=True)) for root in (host.root, second))
        assert first == other
    finally:
        subprocess.run(["umount", second], check=True)


@BOTH
@pytest.mark.parametrize(
    "words",
    [
        ("create", "x", "--cpus=8", "--memory=1GB"),
        ("create", "db", "--cpus=5,6", "--memory=1GB"),
        ("rollback",),
        ("delete", "x"),
        ("delete", "db"),
        ("update", "x", "--cpus=4-6"),
    ],
)
def test_a_dry_run_after_a_kill_gives_the_verdict_of_the_real_run(
    host: Host, killed: Killed, words: tuple[str, ...]
) -> None:
    replacing_x(host, killed)
    dry = host.run(*words, "--dry-run")
    assert pending(host)
    assert ids(host) == {}
    real = host.run(*words)
    assert (dry.returncode, dry.stderr) == (real.returncode, real.stderr), words
    for run in (dry, real):
        assert "was created again" in run.stdout + run.stderr


def run_killed_after_its_write(host: Host, killed: Killed, *words: str) -> None:
    """Run a command of one overlay; it is killed before it records what it did."""
    assert killed(BEFORE_THE_HISTORY, *words, calls=VISIBLE)[0] == -signal.SIGKILL
    assert pending(host)


@BOTH
@pytest.mark.parametrize("words", [("rollback",), ("rollback", "tx_3")])
def test_a_dry_run_rolls_back_what_settling_would_record(
    host: Host, killed: Killed, words: tuple[str, ...]
) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    run_killed_after_its_write(host, killed, "create", "db", "--cpus=8", "--memory=1GB")
    assert names(host) == {"web", "db"}
    dry = host.json(*words, "--dry-run")
    assert pending(host)
    real = host.json(*words)
    assert dry["undone"] == real["undone"] == {"command": "zernel create db", "transactions": [3]}
    assert dry["notes"] == real["notes"]
    assert names(host) == {"web"}


def test_a_journal_of_the_older_form_is_refused_until_it_is_given_up(host: Host, killed: Killed) -> None:
    replacing_x(host, killed)
    (journal,) = host.state.rglob("journal.json")
    older = {
        key: value
        for key, value in json.loads(journal.read_text()).items()
        if key not in ("format", "identity", "made")
    }
    journal.write_text(json.dumps(older))
    shown = host.refused(*NOTHING)
    assert "An older version of Zernel began a change and did not finish it" in shown
    assert "zernel rollback --give-up" in shown
    assert host.json("rollback", "--give-up")["left"]
    host.ok("create", "x", "--cpus=4-5", "--memory=1GB")


def test_the_history_of_an_older_zernel_is_read_and_not_rolled_back(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    (file,) = host.state.rglob("history/*.json")
    entry = json.loads(file.read_text())
    for key in ("format", "identity", "made"):
        del entry[key]
    file.write_text(json.dumps(entry))
    assert "There is no change to roll back" in host.refused("rollback")
    host.ok("delete", "web")
    host.ok("rollback")


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "partial"]], indirect=True)
def test_a_deletion_that_is_said_to_have_failed_can_be_taken_back(faulty: Host) -> None:
    faulty.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    faulty.ok("create", "db", "--cpus=8", "--memory=1GB")
    shown = faulty.refused("delete", "web")
    assert "The instance was deleted, and the kernel reports a failure all the same" in shown
    assert "Suggestion: Nothing is left to be deleted; to have it back: zernel rollback tx_4\n" in shown
    assert set(faulty.instances()) == {"db"}
    faulty.ok("rollback", "tx_4")
    assert faulty.instances()["web"]["cpus"] == [4, 5]
    assert not pending(faulty)


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "partial"]], indirect=True)
def test_a_rollback_that_is_said_to_have_failed_is_taken_back_by_its_number(faulty: Host) -> None:
    faulty.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    faulty.ok("create", "db", "--cpus=8", "--memory=1GB")
    shown = faulty.refused("rollback")
    assert set(faulty.instances()) == {"web"}
    (advice,) = (line for line in shown.splitlines() if "to have it back: zernel " in line)
    faulty.ok(*advice.partition("zernel ")[2].split())
    assert set(faulty.instances()) == {"web", "db"}
    assert not pending(faulty)


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "partial"]], indirect=True)
def test_a_deletion_that_is_said_to_have_failed_is_recorded_by_the_next_command(
    faulty: Host, killed: Killed
) -> None:
    faulty.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    faulty.ok("create", "db", "--cpus=8", "--memory=1GB")
    run_killed_after_its_write(faulty, killed, "delete", "web")
    assert names(faulty) == {"db"}
    dry, real = faulty.json("rollback", "--dry-run"), faulty.json("rollback")
    assert (
        dry["notes"]
        == real["notes"]
        == ["An earlier 'zernel delete web' was interrupted: the instance is gone"]
    )
    assert dry["undone"] == real["undone"] == {"command": "zernel delete web", "transactions": [4]}
    assert names(faulty) == {"web", "db"}
