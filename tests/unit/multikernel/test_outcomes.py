# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a change that was not finished, and of what stands in the place of a journal's file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from zernel.devicetree.model import Instance

from .conftest import BOTH, Host, Killed, state_directory, wire_of, write_overlay
from .test_settling import AFTER_THE_DELETION, NOTHING, VISIBLE, X

AFTER_THE_CREATION = 6
"""The moment before the third overlay: the deleted instance was created anew."""
AFTER_BOTH_UPDATES = 6
"""The moment before the history is written."""


def another(host: Host, place: Path) -> Host:
    """Return another Zernel on the same file system, which knows of no change that is unfinished."""
    shutil.copytree(host.state, place)
    for journal in place.rglob("journal.json"):
        journal.unlink()
    return Host(host.root, place, host.version)


def changed(host: Host, before: Instance, *cpus: int) -> bytes:
    """Return another program's overlay that changes the CPUs of an instance."""
    wire = wire_of(host)
    pool = wire.read_baseline((host.root / "device_tree").read_bytes())
    return wire.update(before, before.but(cpus=cpus), pool)


@BOTH
@pytest.mark.parametrize(
    ("moment", "act", "outcome"),
    [
        (AFTER_THE_DELETION, "nothing", "x: it was deleted, and was created again"),
        (
            AFTER_THE_DELETION,
            "create",
            "x: an instance of this name is there, made by another program; it was left alone",
        ),
        (
            AFTER_THE_CREATION,
            "nothing",
            "x: it was created, and was removed again; x: it was deleted, and was created again",
        ),
        (AFTER_THE_CREATION, "delete", "x: it was deleted by another program, and was not created again"),
        (AFTER_THE_CREATION, "change", "x: it was changed by another program; it was left alone"),
        (AFTER_THE_CREATION, "load", "x: it was created; it is in use by now, and was left alone"),
    ],
)
def test_what_became_of_an_instance_is_said_once(
    host: Host, killed: Killed, kernel: Path, tmp_path: Path, moment: int, act: str, outcome: str
) -> None:
    declared = tmp_path / "declared"
    declared.mkdir()
    (declared / "x.yaml").write_text("name: x\ncpus: 4-5\nmemory: 1GB\nid: 7\n")
    (declared / "z.yaml").write_text("name: z\ncpus: 6\nmemory: 1GB\nid: 3\n")
    write_overlay(host, wire_of(host).create(X))
    apply = ("apply", f"--directory={declared}")
    assert killed(moment, *apply, calls=VISIBLE)[0] == -signal.SIGKILL
    if act == "create":
        write_overlay(host, wire_of(host).create(X.but(id=9)))
    elif act == "delete":
        write_overlay(host, wire_of(host).remove("x"))
    elif act == "change":
        write_overlay(host, changed(host, X.but(id=7), 4))
    elif act == "load":
        another(host, tmp_path / "another").ok("load", "x", f"--kernel={kernel}")
    told = [f"An earlier 'zernel apply' was interrupted: {outcome}"]
    assert host.json(*NOTHING, "--dry-run")["notes"] == told
    assert host.json(*NOTHING)["notes"] == told
    assert host.json(*NOTHING)["notes"] == []


@BOTH
@pytest.mark.parametrize(
    ("faulty", "outcome"),
    [
        (["none", "none", "partial"], "x: it was changed, and was changed back\n"),
        (["none", "none", "partial", "none", "failed"], "x: it was changed and could not be changed back\n"),
    ],
    indirect=["faulty"],
)
def test_an_update_of_two_overlays_has_one_outcome(faulty: Host, outcome: str) -> None:
    faulty.ok("create", "x", "--cpus=4-5", "--memory=1GB")
    shown = faulty.refused("update", "x", "--cpus=20-21")
    assert outcome in shown
    assert shown.count("x: it was") == 1


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "none", "partial"]], indirect=True)
def test_what_is_left_alone_is_not_changed_back_too(faulty: Host, killed: Killed) -> None:
    # Another program's overlay is called failed and did all that it was to do: it took a CPU that the second
    # of our two overlays left, and gave back those that it took.
    faulty.ok("create", "x", "--cpus=4-5", "--memory=1GB")
    update = ("update", "x", "--cpus=20-21")
    assert killed(AFTER_BOTH_UPDATES, *update, calls=VISIBLE)[0] == -signal.SIGKILL
    here = faulty.instances()["x"]
    now = Instance("x", 1, (20, 21), here["memory_base"], here["memory_bytes"])
    write_overlay(faulty, changed(faulty, now, 4, 5, 20))
    (note,) = faulty.json(*NOTHING)["notes"]
    assert note.endswith("was interrupted: x: it was changed by another program; it was left alone")
    assert faulty.instances()["x"]["cpus"] == [4, 5, 20]


@pytest.mark.parametrize("name", ["lock", "journal.json", "deletion.json", "inventory.json", "history"])
@pytest.mark.parametrize("kind", ["a directory", "a FIFO"])
def test_what_stands_in_the_place_of_a_file_is_named_and_hangs_nothing(
    web: Host, kernel: Path, name: str, kind: str
) -> None:
    web.ok("load", "web", f"--kernel={kernel}")
    web.ok("exec", "web")
    path = state_directory(web) / name
    if name == "history":
        kind = "a file" if kind == "a directory" else kind
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir() if kind == "a directory" else os.mkfifo(path) if kind == "a FIFO" else path.touch()
    advice = f"it: {'rm -r' if kind == 'a directory' else 'rm'} {shlex.quote(str(path))}\n"
    for words in (NOTHING, ("rollback", "--give-up")):
        real, dry = web.refused(*words), web.refused(*words, "--dry-run")
        assert real == dry
        assert f"{path} is {kind}; Zernel did not make it" in real
        assert advice in real
    web.ok("show")
    if name == "lock":
        assert advice in web.refused("kill", "web")
    else:
        web.ok("kill", "web")
    subprocess.run(advice.removeprefix("it: "), shell=True, check=True)
    web.ok("create", "db", "--cpus=8", "--memory=1GB")
    web.ok("rollback")
