# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel create``, ``delete`` and ``show`` against the simulation."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from zernel.cli.main import main
from zernel.devicetree import fdt
from zernel.devicetree.tree import Node, Property, Tree
from zernel.devicetree.units import parse_memory
from zernel.errors import ZernelError

from .conftest import EXAMPLES, Host, wire_of, write_overlay

GB = 1 << 30


def test_create_show_delete(host: Host) -> None:
    shown = host.ok("create", "web-server", "--cpus=4-7", "--memory=2GB", "--devices=eth0:vf1")
    assert "✓ Instance web-server created (transaction tx_2)" in shown
    assert "SIMULATED" in shown
    directory = host.root / "instances/web-server"
    assert (directory / "id").read_text() == "1\n"
    assert (directory / "status").read_text() == "ready\n"
    assert (host.root / "overlays/tx_2/status").read_text() == "applied\n"
    assert host.instances() == {
        "web-server": {
            "name": "web-server",
            "id": 1,
            "status": "ready",
            "cpus": [4, 5, 6, 7],
            "memory_base": 0x80000000,
            "memory_bytes": 2 * GB,
            "devices": ["eth0:vf1"],
            "numa_nodes": [],
            "cpu_affinity": None,
            "memory_policy": None,
        }
    }
    assert "CPUs: 4-7 (4)" in host.ok("show", "web-server")
    assert "deleted (transaction tx_3)" in host.ok("delete", "web-server")
    assert host.instances() == {}
    assert not directory.exists()


def test_the_name_may_stand_anywhere(host: Host) -> None:
    host.ok("create", "--cpus=8-15", "--memory=8GB", "database")
    host.ok("create", "--cpus", "4", "middle", "--memory", "1GB")
    assert set(host.instances()) == {"database", "middle"}


def test_what_is_left_open_is_chosen_lowest_first(host: Host) -> None:
    host.ok("create", "a", "--cpus=5", "--memory=1GB", "--memory-base=0x90000000", "--id=2")
    first = host.json("create", "b", "--cpu-count=4", "--memory=1GB")["instance"]
    second = host.json("create", "c", "--cpu-count=2", "--memory=256MB")["instance"]
    assert (first["cpus"], first["memory_base"], first["id"]) == ([6, 7, 8, 9], 0xD0000000, 1)
    assert (second["cpus"], second["memory_base"], second["id"]) == ([10, 11], 0x80000000, 3)
    assert host.json("create", "d", "--cpu-count=1", "--memory=4K")["instance"]["cpus"] == [4]


@pytest.mark.parametrize(
    "words",
    [
        ["web", "--cpus=4-7", "--memory=2GB"],
        ["web", "--cpu-count=3", "--memory=14GB"],
        ["web", "--cpus=9-12,40", "--memory=1GB", "--devices=eth0:vf2,nvme1:ns1"],
        ["web", "--cpus=1-4", "--memory=15GB"],
        ["web", "--cpu-count=99", "--memory=20GB", "--devices=eth0:vf9"],
        ["other", "--cpus=30", "--memory=1GB", "--memory-base=0x80000000"],
        ["taken", "--cpus=30", "--memory=1GB"],
        ["../../evil", "--cpus=30", "--memory=1GB"],
        ["web", "--cpus=30", "--memory=1GB", "--id=1"],
    ],
)
def test_a_dry_run_gives_the_verdict_and_the_text_of_the_real_run(host: Host, words: list[str]) -> None:
    host.ok("create", "taken", "--cpus=8-9", "--memory=1GB")
    before = host.instances()
    dry = host.run("create", *words, "--dry-run")
    assert host.instances() == before
    assert not (host.root / "overlays/tx_3").exists()
    real = host.run("create", *words)
    assert dry.returncode == real.returncode
    assert dry.stderr == real.stderr
    shared = dry.stdout.replace("can be created (dry run: nothing was written)", "created")
    assert shared == real.stdout.replace(" (ready)", "").replace(" (transaction tx_3)", "")


def test_a_dry_run_of_delete(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    assert "can be deleted (dry run" in host.ok("delete", "web", "--dry-run")
    assert set(host.instances()) == {"web"}
    assert host.run("delete", "wep", "--dry-run").stderr == host.run("delete", "wep").stderr


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", "x" * 300, ".", "..", "a b", "ä", "a\n", "-"])
def test_names_that_cannot_be_directories_are_refused(host: Host, name: str) -> None:
    for words in (
        ("create", name, "--cpus=4", "--memory=1GB"),
        ("delete", name),
        ("delete", name, "--ensure"),
    ):
        done = host.run(*words)
        assert done.returncode in (1, 2)
        assert "name" in done.stderr or done.returncode == 2
    assert host.instances() == {}


@pytest.mark.parametrize(
    "memory",
    [
        "0",
        "-1GB",
        "infGB",
        "nanGB",
        "1",
        "1e30",
        "1e3",
        "GB",
        "",
        "999999999999999GB",
        "0x",
        "2 GB GB",
        "4097",
        "1.0001K",
    ],
)
def test_memory_that_is_no_amount_is_refused(host: Host, memory: str) -> None:
    shown = host.refused("create", "web", "--cpus=4", f"--memory={memory}")
    assert "--memory" in shown
    assert "Suggestion: " in shown
    assert host.instances() == {}


@pytest.mark.parametrize(
    ("memory", "suggested"),
    [("1073741825", "1048580KB"), ("4095", "4KB"), (str((1 << 64) - 1), "18014398509481980KB")],
)
def test_the_size_that_is_suggested_is_exact_and_taken(memory: str, suggested: str) -> None:
    with pytest.raises(ZernelError) as caught:
        parse_memory(memory, "--memory")
    (problem,) = caught.value.problems
    assert f"{memory} bytes is no usable" in problem.category
    assert problem.suggestion == f"Use --memory={suggested}"
    assert abs(parse_memory(suggested, "--memory") - int(memory)) <= 4096


def test_no_memory_is_not_answered_with_the_least_that_can_be_written() -> None:
    with pytest.raises(ZernelError) as caught:
        parse_memory("0", "--memory")
    assert caught.value.problems[0].suggestion == "Write it as --memory=2GB"


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("2GB", 2 * GB),
        ("2G", 2 * GB),
        ("2gib", 2 * GB),
        ("512MB", GB // 2),
        ("1.5GB", 3 * GB // 2),
        ("0x1000", 4096),
        ("8K", 8192),
    ],
)
def test_memory_sizes(host: Host, memory: str, size: int) -> None:
    found = host.json("create", "web", "--cpus=4", f"--memory={memory}", "--dry-run")
    assert found["instance"]["memory_bytes"] == size


@pytest.mark.parametrize(
    "cpus",
    ["4-30000000", "7-4", "-1", "4,4", "4-6,5", "a", "4-", "", "4;5", "0x4", "99999999999999999999", "4--5"],
)
def test_cpu_lists_that_are_none_are_refused_at_once(host: Host, cpus: str) -> None:
    began = time.monotonic()
    shown = host.refused("create", "web", f"--cpus={cpus}", "--memory=1GB")
    assert time.monotonic() - began < 2
    assert "is no CPU list" in shown


def test_ids_reach_as_far_as_the_kernels(host: Host) -> None:
    host.ok("create", "last", "--cpus=4", "--memory=1GB", "--id=2047")
    assert host.instances()["last"]["id"] == 2047
    assert "from 1 to 2047" in host.refused("create", "over", "--cpus=5", "--memory=1GB", "--id=2048")
    assert "1 to 2047" in host.ok("create", "--help")
    assert host.run("unload", "--id=2048").returncode == 2
    assert "last" in host.refused("unload", "--id=2047")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "", "99999999999"])
@pytest.mark.parametrize("option", ["--cpu-count", "--id"])
def test_numbers_that_are_none_are_refused(host: Host, option: str, value: str) -> None:
    rest = ["--cpus=4"] if option == "--id" else []
    assert option in host.refused("create", "web", f"{option}={value}", "--memory=1GB", *rest)


def test_every_mistake_in_the_options_is_told_at_once(host: Host) -> None:
    shown = host.refused(
        "create", "web", "--cpus=7-4", "--memory=infGB", "--devices=:", "--id=0", "--memory-base=1"
    )
    assert shown.count("ERROR: ") == 5


def test_every_conflict_is_told_at_once_and_with_what_is_free(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-11", "--memory=10GB", "--devices=eth0:vf1")
    shown = host.refused(
        "create", "db", "--cpus=2,8-15,35", "--memory=8GB", "--devices=eth0:vf1,eth0:vf0,gpu0"
    )
    for line in (
        "ERROR: db: 8GB of memory cannot be given in one piece",
        "  Largest free block: 4GB at 0x300000000",
        "ERROR: db: CPU 2 is reserved for host kernel",
        "ERROR: db: CPU 35 does not exist (hardware has 0-31)",
        "ERROR: db: CPU allocation conflict with web",
        "ERROR: web and db: Both allocated eth0:vf1",
        "ERROR: db: VF 0 is reserved for host kernel",
        "ERROR: db: Invalid device reference",
        "  Suggestion: Change db to use CPUs 12-21",
        "  Suggestion: Change device reference to eth0:vf2",
    ):
        assert line in shown.split("\n")
    assert shown.count("ERROR: ") == shown.count("SIMULATED: ")


def test_devices_are_exclusive(host: Host) -> None:
    host.ok("create", "a", "--cpus=4", "--memory=1GB", "--devices=eth0:vf1,nvme0_ns2")
    assert "Both allocated nvme0:ns2" in host.refused(
        "create", "b", "--cpus=5", "--memory=1GB", "--devices=nvme0:ns2"
    )
    host.ok("create", "b", "--cpus=5", "--memory=1GB", "--devices=nvme0:ns3")


def test_ensure_leaves_an_equal_instance_alone_and_refuses_another(host: Host) -> None:
    words = ("create", "web", "--cpus=4-7", "--memory=2GB", "--ensure")
    assert host.json(*words)["changed"]
    again = host.json(*words)
    assert (again["changed"], again["status"], again["transaction"]) == (False, "unchanged", None)
    assert not host.json("create", "web", "--cpu-count=4", "--memory=2GB", "--ensure")["changed"]
    shown = host.refused("create", "web", "--cpus=4-8", "--memory=3GB", "--devices=eth0:vf1", "--ensure")
    assert "CPUs: has 4-7, asked 4-8" in shown
    assert "Memory: has 2GB, asked 3GB" in shown
    assert "Devices: has none, asked eth0:vf1" in shown
    assert host.json("delete", "web", "--ensure")["changed"]
    assert not host.json("delete", "web", "--ensure")["changed"]


def test_every_problem_of_a_request_is_told_at_once(host: Host) -> None:
    shown = host.refused("create", "a/b", "--cpus=99", "--memory=1GB", "--devices=eth0:vf77")
    for told in ("a/b", "CPU 99 does not exist", "eth0:vf77"):
        assert told in shown
    assert shown.count("ERROR: ") == 3


def test_a_second_instance_of_a_name_is_refused(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    assert 'Duplicate instance name: "web"' in host.refused("create", "web", "--cpus=5", "--memory=1GB")
    assert host.instances()["web"]["cpus"] == [4]


def test_deleting_what_is_not_there_suggests_what_is(host: Host) -> None:
    host.ok("create", "database", "--cpus=4", "--memory=1GB")
    shown = host.refused("delete", "databse")
    assert "Did you mean:\n    - database" in shown
    assert "There is no such instance" in host.refused("show", "databse")


def test_the_change_as_data(host: Host) -> None:
    created = host.json("create", "web", "--cpus=4", "--memory=1GB")
    assert (created["status"], created["changed"], created["simulated"]) == ("created", True, True)
    assert created["before"] is None
    assert created["after"] == created["instance"] == host.instances()["web"]
    assert created["transaction"] == {"id": 2, "status": "applied"}
    planned = host.json("delete", "web", "--dry-run")
    assert (planned["status"], planned["changed"], planned["transaction"]) == ("planned", True, None)
    deleted = host.json("delete", "web")
    assert (deleted["status"], deleted["before"], deleted["after"]) == ("deleted", created["after"], None)
    assert planned["before"] == deleted["before"]


def test_errors_as_data_say_simulated_too(host: Host) -> None:
    done = host.run("create", "web", "--cpus=2", "--memory=1GB", "--format=json")
    (error,) = json.loads(done.stdout)["errors"]
    assert (error["code"], error["instance"]) == ("cpu-reserved", "web")
    assert any(line.startswith("SIMULATED") for line in error["context"])


def test_without_a_baseline_nothing_is_created(empty: Host) -> None:
    assert "zernel init" in empty.refused("create", "web", "--cpus=4", "--memory=1GB")


def test_the_pool_can_be_used_up_and_is_free_again(host: Host) -> None:
    for number in range(28):
        host.ok("create", f"i{number}", "--cpu-count=1", "--memory=512MB")
    owned = [instance["cpus"] for instance in host.instances().values()]
    assert sorted(cpu for cpus in owned for cpu in cpus) == list(range(4, 32))
    assert "Free CPUs: none" in host.refused("create", "more", "--cpu-count=1", "--memory=1GB")
    host.ok("delete", "i7")
    assert host.json("create", "more", "--cpu-count=1", "--memory=512MB")["instance"]["cpus"] == [11]


def test_show_before_and_after_as_text(host: Host) -> None:
    shown = host.ok("show")
    assert "No instances" in shown
    assert re.search(r"^SIMULATED: ", shown, re.MULTILINE)


def test_of_a_baseline_that_holds_the_pool_only_nothing_else_is_told(empty: Host) -> None:
    pool = Node(
        "resources",
        properties=[
            Property("cpus", (fdt.u64(8, 9, 10),)),
            Property("memory-base", (fdt.u64(GB),)),
            Property("memory-bytes", (fdt.u64(2 * GB),)),
        ],
        children=[
            Node("devices", children=[Node("eth0", properties=[Property("device-type", ("ethernet",))])])
        ],
    )
    (empty.root / "device_tree").write_bytes(fdt.write(Tree(Node("/", children=[pool]))))
    data = empty.json("show")
    assert data["baseline_complete"] is False
    hardware = data["hardware"]
    assert hardware["cpus"] == {"total": None, "host_reserved": None, "available": [8, 9, 10]}
    assert hardware["memory"] == {
        "total_bytes": None,
        "host_reserved_bytes": None,
        "memory_pool_base": GB,
        "memory_pool_bytes": 2 * GB,
    }
    assert (hardware["devices"]["eth0"]["type"], hardware["devices"]["eth0"]["host_reserved_vf"]) == (
        None,
        None,
    )
    assert (
        "  CPUs: total unknown\n    Host reserved: unknown\n    Memory pool: 8-10 (3 CPUs)\n"
        "  Memory: total unknown\n    Host reserved: unknown\n    Memory pool: 2GB at 0x40000000\n"
        "  Devices: eth0\n"
    ) in empty.ok("show")
    before = empty.json("init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")["before"]
    assert before == hardware


@pytest.mark.parametrize("file", ["id", "status", "device_tree"])
def test_an_instance_that_is_deleted_while_it_is_read_is_not_there(
    host: Host, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    host.ok("create", "db", "--cpus=5", "--memory=1GB")
    removal = wire_of(host).remove("web")
    opened = os.open

    def removed_meanwhile(path: Path, *args: Any, **kwargs: Any) -> int:
        found = opened(path, *args, **kwargs)
        if path == host.root / "instances/web" / file:
            monkeypatch.undo()
            write_overlay(host, removal)  # as another program, between this process's open and its read
        return found

    environment = host.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ZERNEL_MULTIKERNEL_ROOT", "ZERNEL_STATE_DIR"):
            patch.setenv(name, environment[name])
        monkeypatch.setattr(os, "open", removed_meanwhile)
        assert main(["show", "--format=json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["instances"]) == {"db"}
