# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel update`` against the simulation: the least that leads there, all of it or nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from zernel.devicetree import fdt
from zernel.devicetree.model import Instance
from zernel.devicetree.tree import Node

from .conftest import (
    BOTH,
    EXAMPLES,
    Host,
    Killed,
    names,
    pending,
    settled_by_next,
    wire_of,
    without_parts,
    write_overlay,
)

GB = 1 << 30
DATABASE = ("create", "database", "--cpus=8-15", "--memory=4GB", "--devices=eth0:vf1")
GROW = ("update", "database", "--cpus=8-19", "--memory=8GB")

GPUS = """
/dts-v1/;
/ {
    resources {
        cpus { total = <16>; host-reserved = <0 1>; available = <2 3 4 5 6 7 8 9 10 11 12 13 14 15>; };
        memory {
            total-bytes = <0x400000000>; host-reserved-bytes = <0x80000000>;
            memory-pool-base = <0x80000000>; memory-pool-bytes = <0x380000000>;
        };
        devices {
            gpu0: gpu@0 { compatible = "nvidia,h100"; pci-id = "0000:41:00.0"; };
            gpu1: gpu@1 { compatible = "nvidia,h100"; pci-id = "0000:42:00.0"; };
            eth0: ethernet@0 { pci-id = "0000:01:00.0"; sriov-vfs = <4>; available-vfs = <0 1 2 3>; };
        };
        topology { numa-nodes {
            node@0 { node-id = <0>; memory-base = <0x0>; memory-size = <0x200000000>;
                     cpus = <0 1 2 3 4 5 6 7>; };
            node@1 { node-id = <1>; memory-base = <0x200000000>; memory-size = <0x200000000>;
                     cpus = <8 9 10 11 12 13 14 15>; };
        }; };
    };
};
"""


@pytest.fixture
def gpus(empty: Host) -> Host:
    """A host with two GPUs and two NUMA nodes."""
    baseline = empty.state.with_name("gpus.dts")
    baseline.write_text(GPUS)
    empty.ok("init", f"--input={baseline}", "--apply")
    return empty


def operations(host: Host, transaction: int) -> list[Node]:
    """Return what the kernel was asked for in a transaction."""
    root = fdt.read((host.root / f"overlays/tx_{transaction}/dtbo").read_bytes(), "dtbo").root
    fragment = root.child("fragment@0")
    assert fragment is not None
    assert [child.name for child in root.children] == ["fragment@0"]
    content = fragment.child("__overlay__")
    assert content is not None
    return content.children


def test_the_documents_update(host: Host) -> None:
    host.ok(*DATABASE)
    shown = host.ok(*GROW)
    assert "✓ Instance database updated (transaction tx_3)" in shown
    assert "cpu-add 16-19" in shown
    found = host.instances()["database"]
    assert (found["cpus"], found["memory_base"], found["memory_bytes"]) == (
        list(range(8, 20)),
        2 * GB,
        8 * GB,
    )
    assert found["devices"] == ["eth0:vf1"]


def test_only_the_difference_is_asked_for(host: Host) -> None:
    host.ok(*DATABASE)
    done = host.json("update", "database", "--cpus=8-19")
    assert done["operations"] == [{"operation": "cpu-add", "cpus": [16, 17, 18, 19]}]
    (operation,) = operations(host, 3)
    assert operation.name == "cpu-add"
    instance = operation.get("mk,instance")
    assert instance is not None
    assert instance.text() == "database"
    cpus = [item.get("reg") for item in operation.children]
    assert [cpu.wide_numbers() for cpu in cpus if cpu] == [(16,), (17,), (18,), (19,)]


def test_operations_stand_in_the_kernels_order(gpus: Host) -> None:
    gpus.ok("create", "web", "--cpus=2-5", "--memory=2GB", "--devices=gpu0")
    gpus.ok("update", "web", "--cpus=4-9", "--memory=1GB", "--devices=gpu1")
    found = operations(gpus, 3)
    assert [one.name for one in found] == [
        "memory-remove",
        "cpu-remove",
        "cpu-add",
        "device-remove",
        "device-add",
    ]
    region = found[0].children[0].get("reg")
    assert region is not None
    assert region.wide_numbers() == (3 * GB, GB)
    numa = [item.get("numa-node") for item in found[2].children]
    assert [node.number() for node in numa if node] == [0, 0, 1, 1]
    address = found[4].children[0].get("pci-id")
    assert address is not None
    assert address.text() == "0000:42:00.0"
    assert gpus.instances()["web"]["devices"] == ["gpu1"]


def test_cpus_by_number_keep_what_is_there_and_take_what_follows(host: Host) -> None:
    host.ok("create", "web", "--cpus=10-11", "--memory=1GB")
    assert host.json("update", "web", "--cpu-count=4")["after"]["cpus"] == [10, 11, 12, 13]
    assert host.json("update", "web", "--cpu-count=1")["after"]["cpus"] == [10]
    host.ok("create", "other", "--cpus=11", "--memory=1GB")
    assert host.json("update", "web", "--cpu-count=3")["after"]["cpus"] == [4, 5, 10]
    assert "Free CPUs" in host.refused("update", "web", "--cpu-count=28")


def test_cpus_to_come_and_to_go(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=1GB")
    done = host.json("update", "--add-cpus=8,9", "web", "--remove-cpus=4")
    assert done["after"]["cpus"] == [5, 6, 7, 8, 9]
    shown = host.refused("update", "web", "--add-cpus=5,30", "--remove-cpus=20")
    assert "--add-cpus: CPU 5 makes no sense" in shown
    assert "--remove-cpus: CPU 20 makes no sense" in shown
    assert "has no CPU" in host.refused("update", "web", "--remove-cpus=5-9")
    # The same where it is to be somewhere else, and created anew for that.
    elsewhere = ("update", "web", "--cpu-affinity=spread")
    assert "--add-cpus: CPU 5 makes no sense" in host.refused(*elsewhere, "--add-cpus=5,30")
    assert "has no CPU" in host.refused(*elsewhere, "--remove-cpus=5-9")


def test_all_cpus_can_be_exchanged_for_others(host: Host) -> None:
    host.ok(*DATABASE)
    done = host.json("update", "database", "--cpus=20-21")
    assert [one["id"] for one in done["transactions"]] == [3, 4]
    assert host.instances()["database"]["cpus"] == [20, 21]


def test_what_is_so_already_is_no_change(host: Host) -> None:
    host.ok(*DATABASE)
    done = host.json("update", "database", "--cpus=8-15", "--memory=4GB", "--devices=eth0:vf1")
    assert (done["status"], done["changed"], done["transactions"]) == ("unchanged", False, [])
    assert not (host.root / "overlays/tx_3").exists()


def test_memory_that_cannot_grow_says_what_is_free(host: Host) -> None:
    host.ok(*DATABASE)
    host.ok("create", "web", "--cpus=4", "--memory=1GB", "--memory-base=0x200000000")
    shown = host.refused("update", "database", "--memory=9GB")
    assert "Free behind it: 2GB" in shown
    assert "Conflict: Instance web begins at 0x200000000" in shown
    assert "Largest free block: 7GB at 0x240000000" in shown
    assert "Suggestion: Use --memory=6GB or less" in shown
    assert host.json("update", "database", "--memory=6GB")["after"]["memory_bytes"] == 6 * GB
    assert "Free behind it: 0 bytes" in host.refused("update", "database", "--memory=7GB")


def test_the_full_state_is_validated_and_every_problem_told(host: Host) -> None:
    host.ok(*DATABASE)
    host.ok("create", "web", "--cpus=4-7", "--memory=1GB")
    shown = host.refused("update", "web", "--cpus=7-9,40", "--memory=20GB", "--devices=nvme1:ns1")
    assert "CPU allocation conflict" in shown
    assert "CPU 40 does not exist" in shown
    assert "20GB of memory cannot be given in one piece" in shown
    assert "Invalid device reference" in shown
    assert host.instances()["web"]["cpus"] == [4, 5, 6, 7]


def test_what_is_created_anew_anyhow_grows_where_there_is_room(host: Host) -> None:
    host.ok(*DATABASE)
    host.ok("create", "web", "--cpus=4", "--memory=1GB", "--memory-base=0x200000000")
    host.refused("update", "database", "--memory=7GB")
    done = host.json("update", "database", "--memory=7GB", "--devices=eth0:vf2")
    assert {one["code"] for one in done["warnings"]} >= {"instance-replaced"}
    assert (done["after"]["memory_base"], done["after"]["memory_bytes"]) == (0x240000000, 7 * GB)
    # What it has itself is free then.
    host.ok("delete", "web")
    done = host.json("update", "database", "--memory=14GB", "--devices=eth0:vf1")
    assert done["after"]["memory_bytes"] == 14 * GB
    shown = host.refused("update", "database", "--memory=99GB", "--devices=eth0:vf2")
    assert "99GB of memory cannot be given in one piece" in shown
    assert host.instances()["database"]["memory_bytes"] == 14 * GB


def test_memory_is_not_moved_from_where_it_was_asked_to_be(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB", "--memory-base=0x80000000")
    host.ok("create", "db", "--cpus=5", "--memory=1GB", "--memory-base=0xc0000000")
    shown = host.refused("update", "web", "--memory=2GB", "--memory-base=0x80000000", "--id=9")
    assert "Memory cannot grow to 2GB" in shown
    assert "Instance db begins at 0xc0000000" in shown
    assert host.instances()["web"]["memory_base"] == 0x80000000


def test_what_cannot_be_changed_in_place_is_deleted_and_created_anew(gpus: Host) -> None:
    gpus.ok("create", "web", "--cpus=2", "--memory=1GB", "--devices=gpu0,eth0:vf1", "--id=7")
    before = gpus.instances()["web"]
    planned = gpus.ok("update", "web", "--devices=gpu0,eth0:vf2", "--dry-run")
    assert "WARNING: web: The instance is deleted and created anew" in planned
    assert "Device eth0:vf1, eth0:vf2 cannot be changed in place" in planned
    assert gpus.instances()["web"] == before
    done = gpus.json("update", "web", "--devices=gpu0,eth0:vf2")
    assert [one["code"] for one in done["warnings"]] == ["instance-replaced"]
    assert (done["operations"], len(done["transactions"])) == ([], 2)
    assert gpus.instances()["web"] == before | {"devices": ["gpu0", "eth0:vf2"]}
    # What can be changed in place is.
    done = gpus.json("update", "web", "--devices=gpu1,eth0:vf2")
    assert (done["warnings"], done["after"]["devices"]) == ([], ["gpu1", "eth0:vf2"])
    gpus.ok("rollback")
    gpus.ok("rollback")
    assert gpus.instances()["web"] == before


def test_an_instance_that_shall_be_elsewhere_is_placed_anew(gpus: Host) -> None:
    gpus.ok("create", "web", "--cpu-count=4", "--memory=2GB", "--id=7")
    words = ("update", "web", "--numa-nodes=1", "--memory-policy=bind")
    done = gpus.json(*words)
    assert "instance-replaced" in [one["code"] for one in done["warnings"]]
    after = gpus.instances()["web"]
    assert (after["numa_nodes"], after["memory_policy"], after["id"]) == ([1], "bind", 7)
    assert (len(after["cpus"]), after["memory_bytes"]) == (4, 2 * GB)
    assert min(after["cpus"]) >= 8
    assert not gpus.json(*words)["changed"]
    assert "memory-base" not in gpus.refused("update", "web", "--numa-nodes=9")


def test_an_id_and_a_place_in_memory_are_changed_as_ensure_does(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    words = ("web", "--id=7", "--memory-base=0x100000000")
    planned = host.json("ensure", *words, "--dry-run")
    done = host.json("update", *words)
    assert (done["after"]["id"], done["after"]["memory_base"]) == (7, 0x100000000)
    assert (done["after"], done["warnings"]) == (planned["after"], planned["warnings"])
    assert host.instances()["web"] == done["after"]
    assert "--id: '0' is not possible" in host.refused("update", "web", "--id=0")


@pytest.mark.parametrize("words", [["--cpu-affinity=spread"], ["--devices=eth0:vf2"]])
def test_an_instance_with_a_kernel_is_not_replaced(web: Host, kernel: Path, words: list[str]) -> None:
    web.ok("load", "web", f"--kernel={kernel}")
    before = web.instances()
    shown = web.refused("update", "web", *words)
    assert "ERROR: web: The instance is loaded\n" in shown
    assert "cannot be changed in place" in shown
    assert "Suggestion: Unload its kernel first: zernel unload web" in shown
    assert shown == web.refused("update", "web", *words, "--dry-run")
    assert web.instances() == before


def test_what_is_refused_is_not_said_to_be_replaced(web: Host) -> None:
    shown = web.refused("update", "web", "--cpu-affinity=spread", "--devices=eth0:vf9")
    assert "exceeds available VFs" in shown
    assert "created anew" not in shown


@pytest.mark.parametrize("faulty", [["none", "none", "failed"], ["none", "failed"]], indirect=True)
def test_a_replacement_that_fails_leaves_what_was_there(faulty: Host) -> None:
    faulty.ok(*DATABASE)
    before = faulty.instances()
    assert "The kernel did not" in faulty.refused("update", "database", "--cpu-affinity=spread")
    assert faulty.instances() == before
    assert not pending(faulty)


def test_an_instance_that_is_not_there(host: Host) -> None:
    host.ok(*DATABASE)
    assert "Did you mean:\n    - database" in host.refused("update", "databse", "--memory=1GB")


@pytest.mark.parametrize(
    "words",
    [[], ["--cpus=4", "--cpu-count=2"], ["--cpus=4", "--add-cpus=5"], ["--cpu-count=2", "--remove-cpus=4"]],
)
def test_options_that_make_no_sense_are_wrong_usage(host: Host, words: list[str]) -> None:
    assert host.run("update", "web", *words).returncode == 2


def test_every_mistake_in_the_options_is_told(host: Host) -> None:
    shown = host.refused("update", "web", "--cpus=7-4", "--memory=infGB", "--devices=%")
    assert shown.count("ERROR: ") == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--cpus=8-19", "--memory=8GB"],
        ["--cpu-count=99"],
        ["--memory=20GB"],
        ["--cpus=20"],
        ["--cpus=8-15"],
        ["--devices=eth0:vf9"],
    ],
)
def test_a_dry_run_gives_the_verdict_and_the_text_of_the_real_run(host: Host, words: list[str]) -> None:
    host.ok(*DATABASE)
    before = host.instances()
    dry = host.run("update", "database", *words, "--dry-run")
    assert host.instances() == before
    real = host.run("update", "database", *words)
    assert (dry.returncode, dry.stderr) == (real.returncode, real.stderr)
    shared = dry.stdout.replace("can be updated (dry run: nothing was written)", "updated")
    assert shared == real.stdout.replace(" (transaction tx_3)", "").replace(" (transactions tx_3, tx_4)", "")


@BOTH
@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (["none", "failed"], "the status 'failed'\n  Nothing was changed"),
        (["none", "einval"], "Invalid argument\n  Nothing was changed"),
        (["none", "short"], "bytes were taken\n  Nothing was changed"),
        (["none", "lost"], "no transaction holds it\n  Nothing was changed"),
        (["none", "midway"], "the status 'failed'\n  A part of it was changed, and was changed back"),
        (["none", "partial"], "the status 'failed'\n  A part of it was changed, and was changed back"),
    ],
    indirect=["faulty"],
)
def test_a_failed_update_leaves_what_was_there(faulty: Host, says: str) -> None:
    faulty.ok(*without_parts(faulty, DATABASE))
    before = faulty.instances()
    shown = faulty.refused(*GROW)
    assert shown.startswith("ERROR: database: The kernel did not update the instance\n")
    assert says in shown
    assert faulty.instances() == before
    assert not pending(faulty)
    faulty.ok(*GROW)


@BOTH
@pytest.mark.parametrize("faulty", [["none", "midway", "failed", "failed"]], indirect=True)
def test_what_cannot_be_changed_back_is_said_and_tried_again(faulty: Host) -> None:
    faulty.ok(*without_parts(faulty, DATABASE))
    assert "A part of it was changed and could not be changed back" in faulty.refused(*GROW)
    assert faulty.instances()["database"]["memory_bytes"] == 8 * GB
    other = ("create", "other", "--cpus=4", "--memory=1GB")
    assert "What a failed change left cannot be undone" in faulty.refused(*other)
    done = faulty.json(*other)
    assert done["notes"] == [
        "An earlier 'zernel update database' was interrupted: a part of it was changed, and was changed back"
    ]
    found = faulty.instances()["database"]
    assert (found["memory_bytes"], len(found["cpus"])) == (4 * GB, 8)


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "midway"]], indirect=True)
def test_two_overlays_are_one_transaction(faulty: Host) -> None:
    # The CPUs are all exchanged: the new ones are added, then the overlay that takes the old ones fails.
    faulty.ok(*without_parts(faulty, DATABASE))
    before = faulty.instances()
    assert "database: it was changed, and was changed back" in faulty.refused(
        "update", "database", "--cpus=20"
    )
    assert faulty.instances() == before


@BOTH
def test_what_another_program_changed_meanwhile_is_left_alone(host: Host, killed: Killed) -> None:
    host.ok(*without_parts(host, DATABASE))
    moment = 0
    while not (host.root / "overlays/tx_3").exists():
        killed(moment, "update", "database", "--cpus=20-21")
        moment += 1
    there = Instance("database", 1, (*range(8, 16), 20, 21), 2 * GB, 4 * GB)
    wire = wire_of(host)
    pool = wire.read_baseline((host.root / "device_tree").read_bytes())
    write_overlay(host, wire.update(there, there.but(cpus=(*there.cpus, 30)), pool))
    done = host.json("create", "other", "--cpus=4", "--memory=1GB")
    assert "changed by another program; it was left alone" in done["notes"][0]
    assert host.instances()["database"]["cpus"] == [*range(8, 16), 20, 21, 30]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (1, ("--cpus=8-19", "--memory=8GB")),
        (1, ("--cpus=20-21", "--memory=1GB")),
        (1, ("--cpu-affinity=compact", "--cpus=20-21")),  # deleted and created anew
        (2, ("--cpus=20-21", "--memory=8GB")),
    ],
    indirect=["version"],
)
def test_sigkill_at_every_moment_of_an_update(host: Host, killed: Killed, words: tuple[str, ...]) -> None:
    first = ([*range(8, 16)], 4 * GB)
    outcomes = []
    moment, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        assert killed(-1, *without_parts(host, DATABASE))[0] == 0
        status, _ = killed(moment, "update", "database", *words)
        moment += 1
        settled_by_next(host, killed)
        found = json.loads(killed(-1, "show", "--format=json")[1])["instances"]["database"]
        outcomes.append((found["cpus"], found["memory_bytes"]))
        assert killed(-1, "delete", "database")[0] == 0
        assert killed(-1, "delete", "other")[0] == 0
        assert names(host) == set()
    assert status == 0
    assert moment > 15
    # All of it or nothing, and both were met.
    last = outcomes[-1]
    assert all(outcome in (first, last) for outcome in outcomes)
    assert outcomes.count(first) > 1
    assert outcomes.count(last) > 1
    assert first != last


@pytest.mark.parametrize("faulty", [["none", "midway"]], indirect=True)
def test_sigkill_while_a_failed_update_is_undone(faulty: Host, killed: Killed) -> None:
    moment, half, status = 0, 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        assert killed(-1, *without_parts(faulty, DATABASE))[0] == 0
        status, _ = killed(moment, *GROW)
        moment += 1
        if not (faulty.root / "overlays/tx_3").exists():
            write_overlay(
                faulty, wire_of(faulty).remove("nobody")
            )  # killed before its write: the fault is used up here
        size = json.loads(killed(-1, "show", "--format=json")[1])["instances"]["database"]["memory_bytes"]
        half += size == 8 * GB
        assert killed(-1, "create", "other", "--cpus=31", "--memory=1GB")[0] == 0
        found = json.loads(killed(-1, "show", "--format=json")[1])["instances"]["database"]
        assert (found["cpus"], found["memory_bytes"]) == ([*range(8, 16)], 4 * GB)
        assert not pending(faulty)
        faulty.stop()
        faulty.start("--fault=none", "--fault=midway")
        assert killed(-1, "init", f"--input={EXAMPLES / 'baseline.dts'}", "--apply")[0] == 0
    assert status == 1
    assert half > 1


def test_the_report_of_what_is_used(gpus: Host) -> None:
    gpus.ok("create", "web", "--cpus=2-5,8", "--memory=6GB", "--devices=gpu0,eth0:vf1")
    shown = gpus.ok("show", "--report")
    assert "WARNING: 9 CPUs (64% of memory pool) are unallocated" in shown
    assert "  Used: 2-5,8 (5 CPUs, 36%)" in shown
    assert "  gpu0: used gpu0 (web); free none" in shown
    assert "SIMULATED" in shown
    found = gpus.json("show", "--report")["utilisation"]
    assert found["memory"] == {
        "total_bytes": 14 * GB,
        "used_bytes": 6 * GB,
        "free_bytes": 8 * GB,
        "largest_free_block": {"base": 8 * GB, "bytes": 8 * GB},
        "free_blocks": [{"base": 8 * GB, "bytes": 8 * GB}],
    }
    first, second = found["numa_nodes"]
    assert (first["cpus"]["free"], first["memory"]["free_bytes"]) == ([6, 7], 0)
    assert (second["cpus"]["used"], second["memory"]["used_bytes"]) == ([8], 0)
    assert found["instances"]["web"]["cpu_nodes"] == [0, 1]
    assert "utilisation:" in gpus.ok("show", "--report", "--format=yaml")
    gpus.ok("update", "web", "--cpus=2-15")
    assert gpus.json("show", "--report")["warnings"] == []
    for words in (["--hardware"], ["web"]):
        assert gpus.run("show", "--report", *words).returncode == 2
