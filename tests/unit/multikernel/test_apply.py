# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel apply``: declared instances, planned as a whole and applied all or not at all."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.cli.main import main
from zernel.devicetree.model import Resources
from zernel.errors import ZernelError
from zernel.multikernel.desired import read_directory
from zernel.multikernel.wire_v1 import V1

from .conftest import Host, Killed, names, pending, settled_by_next

GB = 1 << 30
Declare = Callable[..., str]


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Write the declarations, and return the option that names their directory."""
    directory = tmp_path / "instances.d"

    def write(**declarations: str) -> str:
        directory.mkdir(exist_ok=True)
        for old in directory.iterdir():
            old.unlink()
        for name, text in declarations.items():
            (directory / f"{name}.yaml").write_text(f"name: {name}\n{text}")
        return f"--directory={directory}"

    return write


WEB = "cpus: 4-7\nmemory: 2GB\ndevices: [eth0:vf1]\n"
DB = "cpu_count: 4\nmemory: 1GB\n"


def test_what_is_declared_is_made_and_a_second_run_changes_nothing(host: Host, declare: Declare) -> None:
    option = declare(web=WEB, db=DB)
    done = host.json("apply", option)
    assert (done["status"], done["changed"]) == ("applied", True)
    assert [step["instance"] for step in done["plan"]["create"]] == ["db", "web"]
    found = host.instances()
    assert (found["web"]["cpus"], found["web"]["devices"]) == ([4, 5, 6, 7], ["eth0:vf1"])
    # What is left open keeps clear of what is given, whatever the order of the files.
    assert (found["db"]["cpus"], found["db"]["memory_bytes"]) == ([8, 9, 10, 11], GB)
    again = host.json("apply", option)
    assert (again["status"], again["changed"], again["transactions"]) == ("unchanged", False, [])
    assert again["before"] == again["after"] == found
    assert host.instances() == found


def test_the_baseline_is_read_as_often_for_many_instances_as_for_one(
    host: Host, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZERNEL_MULTIKERNEL_ROOT", "ZERNEL_STATE_DIR"):
        monkeypatch.setenv(name, host.environment()[name])
    read, times = V1.read_baseline, 0

    def counted(wire: V1, blob: bytes) -> Resources:
        nonlocal times
        times += 1
        return read(wire, blob)

    monkeypatch.setattr(V1, "read_baseline", counted)
    found = []
    for count in (1, 8):
        times = 0
        declared = {f"web{number}": "cpu_count: 2\nmemory: 1GB\n" for number in range(count)}
        assert main(["apply", declare(**declared), "--prune"]) == 0
        found.append(times)
    assert len(names(host)) == 8
    assert 1 <= found[1] <= found[0]


def test_an_update_keeps_what_it_can(host: Host, declare: Declare) -> None:
    host.ok("create", "web", "--cpus=10-13", "--memory=1GB", "--memory-base=0x100000000", "--id=9")
    done = host.json("apply", declare(web="cpu_count: 6\nmemory: 3GB\n"))
    (step,) = done["plan"]["update"]
    assert [one["operation"] for one in step["operations"]] == ["memory-add", "cpu-add"]
    found = host.instances()["web"]
    assert (found["cpus"], found["memory_base"], found["id"]) == ([*range(10, 16)], 0x100000000, 9)


def test_instances_can_exchange_what_they_have(host: Host, declare: Declare) -> None:
    host.ok("create", "a", "--cpus=4-7", "--memory=1GB")
    host.ok("create", "b", "--cpus=8-11", "--memory=1GB")
    host.ok("apply", declare(a="cpus: 4,8-10\nmemory: 1GB\n", b="cpus: 5-7,11\nmemory: 1GB\n"))
    found = host.instances()
    assert (found["a"]["cpus"], found["b"]["cpus"]) == ([4, 8, 9, 10], [5, 6, 7, 11])
    shown = host.refused("apply", declare(a="cpus: 5-7,11\nmemory: 1GB\n", b="cpus: 4,8-10\nmemory: 1GB\n"))
    assert "would exchange all their CPUs" in shown
    assert "a.yaml" in shown
    assert "b.yaml" in shown


def test_undeclared_instances_are_deleted_with_prune_only(host: Host, declare: Declare) -> None:
    host.ok("create", "old", "--cpus=4-7", "--memory=14GB")
    option = declare(web="cpus: 20\nmemory: 1GB\n")
    assert "Largest free block: none" in host.refused("apply", option)
    done = host.ok("apply", option, "--prune")
    assert "delete old: CPUs 4-7, 14GB at 0x80000000" in done
    assert set(host.instances()) == {"web"}
    host.ok("create", "mine", "--cpus=4", "--memory=1GB")
    done = host.ok("apply", option)
    assert "Not declared, left alone: mine (--prune deletes them)" in done


def test_an_apply_is_one_change_for_a_rollback(host: Host, declare: Declare) -> None:
    host.ok("create", "old", "--cpus=4-7", "--memory=2GB")
    host.ok("create", "web", "--cpus=8-9", "--memory=1GB")
    before = host.instances()
    host.ok("apply", declare(web="cpus: 4-9\nmemory: 1GB\n", db=DB), "--prune")
    assert set(host.instances()) == {"web", "db"}
    assert host.json("rollback")["undone"]["command"] == "zernel apply"
    assert host.instances() == before


@pytest.mark.parametrize(
    ("version", "at", "kind"),
    [
        *((1, at, kind) for at in range(3) for kind in ("failed", "midway", "partial", "einval", "lost")),
        (2, 1, "midway"),
        (2, 2, "partial"),
    ],
    indirect=["version"],
)
def test_all_or_nothing(bare: Host, declare: Declare, kind: str, at: int) -> None:
    # Two overlays make the state, then come a deletion, an update of two operations, and a creation.
    bare.start(*["--fault=none"] * (2 + at), f"--fault={kind}")
    bare.init()
    bare.ok("create", "old", "--cpus=4-7", "--memory=2GB")
    bare.ok("create", "web", "--cpus=8-9", "--memory=1GB")
    before = bare.instances()
    option = declare(web="cpus: 4-9\nmemory: 4GB\n", db=DB)
    shown = bare.refused("apply", option, "--prune")
    verb, name = (("delete", "old"), ("update", "web"), ("create", "db"))[at]
    assert f"ERROR: {name}: The kernel did not {verb} the instance" in shown
    assert ("old: it was deleted, and was created again" in shown) == (
        at > 0 or kind in ("partial", "midway")
    )
    assert bare.instances() == before
    assert not pending(bare)
    bare.ok("apply", option, "--prune")


@pytest.mark.parametrize("prune", [[], ["--prune"]])
def test_a_dry_run_gives_the_verdict_and_the_text_of_the_real_run(
    host: Host, declare: Declare, prune: list[str]
) -> None:
    host.ok("create", "old", "--cpus=12", "--memory=1GB")
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    for option in (
        declare(web=WEB),
        declare(web="cpus: 4-9\nmemory: 2GB\n", db=DB),
        declare(db="cpus: 12\nmemory: 1GB\n"),
    ):
        before = host.instances()
        dry = host.run("apply", option, "--dry-run", *prune)
        assert host.instances() == before
        real = host.run("apply", option, *prune)
        assert (dry.returncode, dry.stderr) == (real.returncode, real.stderr)
        told = [line for line in dry.stdout.splitlines() if "✓" not in line]
        assert told == [line for line in real.stdout.splitlines() if "✓" not in line]


def test_every_problem_of_the_final_state_with_its_place(host: Host, declare: Declare) -> None:
    option = declare(
        a="cpus: 4-7\nmemory: 1GB\n",
        b="cpus: 7-8\nmemory: 20GB\n",
        c="cpu_count: 99\nmemory: 1GB\n",
        d="cpus: 2\nmemory: 1GB\ndevices: nvme1:ns1\n",
    )
    done = host.run("apply", option, "--format=json")
    errors = {(error["code"], error["instance"]): error for error in json.loads(done.stdout)["errors"]}
    assert set(errors) == {
        ("cpu-overlap", "b"),
        ("not-enough-memory", "b"),
        ("not-enough-cpus", "c"),
        ("cpu-reserved", "d"),
        ("device-not-found", "d"),
    }
    assert errors["cpu-reserved", "d"]["file"].endswith("instances.d/d.yaml")
    assert errors["cpu-reserved", "d"]["line"] == 2
    assert "Line 2: cpus: 7-8" in done.stderr
    assert host.instances() == {}


def test_what_cannot_be_changed_in_place_is_deleted_and_created_anew(host: Host, declare: Declare) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    option = declare(web=WEB + "id: 3\nmemory_base: 0x100000000\n")
    planned = host.ok("apply", option, "--dry-run")
    assert "WARNING: web: The instance is deleted and created anew" in planned
    assert "An instance's id cannot be changed in place" in planned
    assert "Where an instance's memory begins cannot be changed in place" in planned
    assert "Device eth0:vf1 cannot be changed in place" in planned
    assert "delete web: CPUs 4-7, 2GB at 0x80000000\n  create web: CPUs 4-7, 2GB at 0x100000000" in planned
    done = host.json("apply", option)
    assert [len(done["plan"][verb]) for verb in ("create", "update", "delete")] == [1, 0, 1]
    assert host.instances()["web"]["id"] == 3
    assert not host.json("apply", option)["changed"]


def test_a_policy_that_is_declared_later_is_heeded(host: Host, declare: Declare) -> None:
    host.ok("create", "web", "--cpus=10-13", "--memory=1GB", "--id=9")
    option = declare(web="cpu_count: 4\nmemory: 1GB\ncpu_affinity: compact\nmemory_policy: local\n")
    done = host.json("apply", option)
    assert "instance-replaced" in [one["code"] for one in done["warnings"]]
    found = host.instances()["web"]
    assert (found["id"], len(found["cpus"])) == (9, 4)
    assert (found["cpu_affinity"], found["memory_policy"]) == ("compact", "local")
    assert not host.json("apply", option)["changed"]
    # The same wish by the other command is the same state.
    assert not host.json("update", "web", "--cpu-affinity=compact")["changed"]


def test_an_instance_with_a_kernel_is_not_replaced(web: Host, kernel: Path, declare: Declare) -> None:
    web.ok("load", "web", f"--kernel={kernel}")
    before = web.instances()
    option = declare(web="cpus: 4-7\nmemory: 2GB\ncpu_affinity: spread\n", db=DB)
    shown = web.refused("apply", option)
    assert "ERROR: web: The instance is loaded" in shown
    assert "zernel unload web" in shown
    assert "web.yaml" in shown
    shown = web.refused("apply", declare(web="cpus: 4-5\nmemory: 2GB\n"))
    assert "What its kernel uses is not taken from it" in shown
    assert "web.yaml" in shown
    assert web.instances() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory: 1GB\n", "Neither 'cpus' nor 'cpu_count' is given"),
        ("cpus: 4\ncpu_count: 1\nmemory: 1GB\n", "Both 'cpus' and 'cpu_count' are given"),
        ("cpus: 4\n", "The key 'memory' is missing"),
        ("cpus: 4\nmemroy: 1GB\nmemory: 1GB\n", "Did you mean:\n    - memory"),
        ("cpus: 4\nmemory: 1GB\nkernel: /boot/vmlinuz\n", "Unknown key 'kernel'"),
        ("cpus: 4\nmemory: 1GB\nname: other\n", "The key 'name' stands there twice"),
        ("cpus: 7-4\nmemory: 1GB\n", "Suggestion: Write it as cpus: 4-7"),
        ("cpus: 4\nmemory: infGB\n", "memory: 'infGB' is no size"),
        ("cpus: 4\nmemory: {a: b}\n", "'memory' takes a single value"),
        ("cpus: 4\nmemory: 1GB\nnuma_nodes: {a: b}\n", "Write it as numa_nodes: [0, 1]"),
        ("cpus: 4\nmemory: 1GB\ncpu_affinity: [spread]\n", "Write it as cpu_affinity: compact"),
        ("cpus: 4\nmemory: 1GB\nmemory_policy: [local]\n", "Write it as memory_policy: local"),
        ("cpus: &a [*a]\nmemory: 1GB\n", "'cpus' takes a list or a text"),
        ("cpus: 1:30\nmemory: 1GB\n", "'1:30' is neither a CPU number nor a range"),
        ("cpus: [4, '\n", "The file is not valid YAML"),
        ("cpus: " + "[" * 30_000, "The file is nested too deeply"),
        ('cpus: "\\UFFFFFFFF"\n', "The file is not valid YAML"),
        ("---\n- list\n", "A declaration is a mapping"),
    ],
)
def test_mistakes_in_a_file_have_their_place(host: Host, declare: Declare, text: str, says: str) -> None:
    shown = host.refused("apply", declare(web=text))
    assert says in shown
    assert "web.yaml:" in shown


def test_files_that_cannot_be_read(host: Host, declare: Declare, tmp_path: Path) -> None:
    option = declare(web=WEB)
    directory = tmp_path / "instances.d"
    (directory / "a.yaml").mkdir()
    (directory / "b.yaml").write_bytes(b"name: \xff")
    (directory / "c.yaml").write_text("#" * 70_000)
    (directory / "d.yaml").write_text(f"name: web\n{DB}")
    shown = host.refused("apply", option)
    for says in ("Is a directory", "is not UTF-8", "more than 64 KiB", 'Duplicate instance name: "web"'):
        assert says in shown
    assert "cannot be read" in host.refused("apply", f"--directory={tmp_path}/none")


def test_a_file_of_another_ending_is_named(host: Host, declare: Declare, tmp_path: Path) -> None:
    option = declare()
    (tmp_path / "instances.d/web.yml").write_text(f"name: web\n{WEB}")
    done = host.json("apply", option)
    assert done["warnings"][0]["code"] == "file-ignored"
    assert host.instances() == {}


def test_files_that_are_not_read_hide_none_that_is(declare: Declare, tmp_path: Path) -> None:
    declare(web=WEB)
    directory = tmp_path / "instances.d"
    for number in range(1001):
        (directory / f"{number}.yml").touch()
    declarations, warnings = read_directory(directory)
    assert [one.name for one in declarations] == ["web"]
    assert len(warnings) == 1001


def test_a_directory_without_a_name_is_not_this_one(host: Host, tmp_path: Path) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    assert host.run("apply", "--directory=", "--prune").returncode == 2
    assert set(host.instances()) == {"web"}


def test_much_out_of_little_is_refused_and_so_are_endless_mistakes(host: Host, tmp_path: Path) -> None:
    text = f'name: x\nmemory: 1GB\ncpus: [&a "{"4," * 15000}4", {",".join(["*a"] * 8000)}]\n'
    (tmp_path / "a.yaml").write_text(text)
    option = f"--directory={tmp_path}"
    assert "Write it without aliases" in host.refused("apply", option)
    (tmp_path / "a.yaml").write_text("---\n{a: 1}\n" * 5000)
    done = host.run("apply", option, "--format=json")
    errors = json.loads(done.stdout)["errors"]
    assert len(errors) == 1001
    assert errors[-1]["code"] == "too-many-problems"


@pytest.mark.parametrize("name", ["web.yml", ".web.yaml"])
def test_a_file_that_is_not_read_is_not_pruned(
    host: Host, declare: Declare, tmp_path: Path, name: str
) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    option = declare(db=DB)
    (tmp_path / f"instances.d/{name}").write_text(f"name: web\n{WEB}")
    for dry_run in ([], ["--dry-run"]):
        shown = host.refused("apply", option, "--prune", *dry_run)
        assert "The file is not read" in shown
        assert "Rename it to web.yaml" in shown
    assert set(host.instances()) == {"web"}


def test_devices_that_a_file_does_not_mention_are_kept(host: Host, declare: Declare) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB", "--devices=eth0:vf1")
    done = host.json("apply", declare(web="cpus: 4-9\nmemory: 2GB\n"))
    assert [step["operations"] for step in done["plan"]["update"]] == [
        [{"operation": "cpu-add", "cpus": [8, 9]}]
    ]
    assert host.instances()["web"]["devices"] == ["eth0:vf1"]
    host.ok("apply", declare(web="cpus: 4-9\nmemory: 2GB\ndevices: []\n"))
    assert host.instances()["web"]["devices"] == []


def test_several_documents_in_one_file(host: Host, declare: Declare, tmp_path: Path) -> None:
    option = declare()
    (tmp_path / "instances.d/all.yaml").write_text(f"---\nname: web\n{WEB}---\nname: db\n{DB}---\n")
    host.ok("apply", option)
    assert set(host.instances()) == {"web", "db"}


@given(
    st.binary(max_size=300) | st.text(alphabet="name: cpus-memory[]{}&*!'\"\n4", max_size=200).map(str.encode)
)
def test_no_file_gives_anything_but_declarations_or_problems(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.mktemp("instances.d")
    (directory / "x.yaml").write_bytes(content)
    with suppress(ZernelError):
        found, _ = read_directory(directory)
        assert all(one.name and one.memory_bytes for one in found)


def test_sigkill_at_every_moment_of_an_apply(host: Host, declare: Declare, killed: Killed) -> None:
    option = declare(web="cpus: 4-9\nmemory: 4GB\n", db=DB)
    moment, outcomes, status = 0, [], -signal.SIGKILL
    while status == -signal.SIGKILL:
        assert killed(-1, "create", "old", "--cpus=4-7", "--memory=2GB", "--id=1")[0] == 0
        assert killed(-1, "create", "web", "--cpus=8-9", "--memory=1GB", "--id=2")[0] == 0
        status, _ = killed(moment, "apply", option, "--prune")
        moment += 1
        settled_by_next(host, killed)
        found = json.loads(killed(-1, "show", "--format=json")[1])["instances"]
        outcomes.append((sorted(found), len(found["web"]["cpus"]), found["web"]["memory_bytes"] // GB))
        for name in names(host):
            assert killed(-1, "delete", name)[0] == 0
    assert status == 0
    before, done = (["old", "other", "web"], 2, 1), (["db", "other", "web"], 6, 4)
    assert all(one in (before, done) for one in outcomes)
    assert outcomes.count(before) > 10
    assert outcomes.count(done) > 1
