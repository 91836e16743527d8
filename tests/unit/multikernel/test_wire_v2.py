# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of the second version: probing, physical CPU ids, memory that the kernel places, the record."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zernel.devicetree import load
from zernel.devicetree.model import Instance, Resources
from zernel.devicetree.tree import Node
from zernel.errors import ZernelError
from zernel.multikernel import baseline, inventory_record, live_tree, proc, wire_v2
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.inventory_record import Inventory, Recorded
from zernel.multikernel.journal import directory_of
from zernel.multikernel.live_tree import LiveDevice, Pool
from zernel.multikernel.simulate_v2 import HOST_CPUS, physical_id
from zernel.multikernel.wire import overlay
from zernel.multikernel.wire_v2 import V2, cpu_items, fragment, pool_change

from .conftest import EXAMPLES, Host, Killed, names, state_directory, wire_of, write_overlay

pytestmark = pytest.mark.parametrize("version", [2], indirect=True)
GB = 1 << 30


def wire(host: Host) -> V2:
    found = wire_of(host)
    assert isinstance(found, V2)
    return found


def record(host: Host) -> Path:
    (path,) = host.state.rglob("inventory.json")
    return path


def pool(host: Host) -> Pool | None:
    return live_tree.pool((host.root / "device_tree").read_bytes())


def shown(host: Host, name: str) -> live_tree.LiveInstance:
    found = live_tree.instance((host.root / "instances" / name / "device_tree").read_bytes())
    assert found is not None
    return found


def apply(host: Host, example: str = "baseline.dts") -> tuple[str, ...]:
    return ("init", f"--input={EXAMPLES / example}", "--apply")


def resources(example: str = "baseline.dts") -> Resources:
    system = load.read_file(str(EXAMPLES / example)).system
    assert system is not None
    return system.resources


# -- probing ------------------------------------------------------------------------------------------------


def test_the_wire_is_told_by_the_tree_and_shown(host: Host) -> None:
    assert host.json("show")["wire"] == "v2"
    assert host.json("show", "--report")["wire"] == "v2"
    assert host.json(*apply(host))["wire"] == "v2"
    capabilities = json.loads(host.run("doctor", "--format=json").stdout)["capabilities"]
    (details,) = [one["details"] for one in capabilities if one["name"] == "multikernel"]
    assert details["wire"] == "v2"


def test_before_a_pool_the_trees_cpus_are_no_baseline(empty: Host) -> None:
    assert "The kernel shows no pool" in empty.refused("show")
    assert "No baseline is applied" in empty.refused("create", "web", "--cpus=4", "--memory=1GB")
    assert pool(empty) is None


@pytest.fixture
def silent(empty: Host, monkeypatch: pytest.MonkeyPatch) -> MultikernelFs:
    """A kernel whose tree is empty before there is a pool."""
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(empty.state))
    read = MultikernelFs.baseline

    def tree(fs: MultikernelFs) -> bytes:
        blob = read(fs)
        return blob if live_tree.pool(blob) else b""

    monkeypatch.setattr(MultikernelFs, "baseline", tree)
    return MultikernelFs(empty.root, simulated=True)


def test_a_tree_that_tells_nothing_lets_the_kernel_decide(empty: Host, silent: MultikernelFs) -> None:
    assert baseline.apply_baseline(silent, resources(), dry_run=False).wire == "v2"
    assert empty.json("show")["baseline_complete"]


def test_what_the_kernel_made_of_the_form_that_it_took_is_told(empty: Host, silent: MultikernelFs) -> None:
    with pytest.raises(ZernelError) as caught:
        baseline.apply_baseline(silent, resources("numa_topology.dts"), dry_run=False)
    (problem,) = caught.value.problems
    assert problem.code == "memory-in-pieces"
    assert "The pool was given back to the host: nothing was changed" in problem.explanation
    assert pool(empty) is None


def test_both_answers_are_told_when_neither_form_is_taken(
    empty: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(tmp_path / "other"))
    root = tmp_path / "kernel"
    root.mkdir()
    (root / "device_tree").touch()
    (root / "SIMULATED.cpuinfo").write_bytes((empty.root / "SIMULATED.cpuinfo").read_bytes())
    asked = []

    def refuse(fs: MultikernelFs, blob: bytes) -> None:
        asked.append(live_tree.form(blob))
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(MultikernelFs, "write_baseline", refuse)
    with pytest.raises(ZernelError) as caught:
        baseline.apply_baseline(MultikernelFs(root, simulated=True), resources(), dry_run=False)
    (problem,) = caught.value.problems
    assert problem.explanation[:2] == ("Wire format v1: Invalid argument", "Wire format v2: Invalid argument")
    assert asked == ["v1", "v2"]
    assert inventory_record.read(directory_of(MultikernelFs(root, simulated=True))) == Inventory()


# -- the pool -----------------------------------------------------------------------------------------------


def test_the_pools_place_is_the_kernels_and_said(empty: Host) -> None:
    planned = empty.json(*apply(empty), "--dry-run")
    assert planned["after"]["memory"]["memory_pool_base"] is None
    assert pool(empty) is None
    assert not empty.state.exists()
    done = empty.json(*apply(empty))
    found = pool(empty)
    assert found is not None
    assert done["after"]["memory"]["memory_pool_base"] == found.base != resources().memory.pool_base
    assert done["notes"] == [
        f"The kernel placed the memory pool at {found.base:#x}; the baseline says 0x80000000"
    ]
    assert empty.json("show")["hardware"] == done["after"]
    assert empty.json(*apply(empty))["changed"] is False


def test_cpus_are_translated_and_those_without_an_id_refused(empty: Host, tmp_path: Path) -> None:
    many = tmp_path / "many.dts"
    text = (EXAMPLES / "baseline.dts").read_text().replace("total = <32>", "total = <400>")
    many.write_text(text.replace("29 30 31>", f"29 30 31 {HOST_CPUS - 1} {HOST_CPUS} 399>"))
    for extra in ([], ["--dry-run"]):
        told = empty.refused("init", f"--input={many}", "--apply", *extra)
        assert f"CPU {HOST_CPUS},399 has no known physical id (APIC id)" in told
    assert pool(empty) is None
    empty.init()
    found = pool(empty)
    assert found is not None
    assert found.cpus == tuple(physical_id(cpu) for cpu in range(4, 32))
    # What the pool took is not in /proc/cpuinfo any more; the record knows it.
    assert set(proc.apic_ids(empty.root / "SIMULATED.cpuinfo")) == {*range(4), *range(32, HOST_CPUS)}
    empty.ok("create", "web", "--cpus=4-6", "--memory=1GB")
    empty.ok("update", "web", "--cpus=5-8")
    assert shown(empty, "web").cpus == tuple(physical_id(cpu) for cpu in (5, 6, 7, 8))
    assert empty.instances()["web"]["cpus"] == [5, 6, 7, 8]


def test_another_baseline_changes_the_pool_by_an_overlay(host: Host) -> None:
    done = host.json(*apply(host, "minimal.dts"))
    assert done["before"]["cpus"]["total"] == 32
    found, wanted = pool(host), resources("minimal.dts")
    assert found is not None
    assert found.cpus == tuple(map(physical_id, wanted.cpus.available))
    assert found.bytes == wanted.memory.pool_bytes
    assert host.json("show")["hardware"] == done["after"]
    host.ok(*apply(host))
    assert host.json("show")["hardware"]["cpus"]["available"] == list(range(4, 32))
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    assert "zernel delete web" in host.refused(*apply(host, "minimal.dts"))


@pytest.mark.parametrize("faulty", [["failed"], ["midway"], ["einval"], ["lost"]], indirect=True)
def test_a_change_of_the_pool_that_fails_leaves_the_one_before(faulty: Host) -> None:
    before = faulty.json("show")["hardware"]
    told = faulty.refused(*apply(faulty, "minimal.dts"))
    assert "SIMULATED" in told
    assert faulty.json("show")["hardware"] == before
    assert faulty.json(*apply(faulty, "minimal.dts"))["changed"]


def test_a_pool_in_pieces_is_given_back_and_its_pieces_named(empty: Host) -> None:
    told = empty.refused(*apply(empty, "numa_topology.dts"))
    assert "The kernel placed the memory pool in several pieces; Zernel manages one" in told
    assert "0x10040000000 - " in told
    assert "The pool was given back to the host: nothing was changed" in told
    assert pool(empty) is None
    empty.init()


# -- instances ----------------------------------------------------------------------------------------------


def test_memory_is_where_the_kernel_puts_it(host: Host) -> None:
    words = ("create", "web", "--cpus=4-7", "--memory=2GB")
    planned = host.json(*words, "--dry-run")
    assert planned["after"]["memory_base"] is planned["instance"]["memory_base"] is None
    assert "Memory: 2GB (the kernel chooses where)" in host.ok(*words, "--dry-run")
    done = host.json(*words)
    assert done["after"]["memory_base"] == shown(host, "web").base != pool(host).base  # type: ignore[union-attr]
    for extra in ([], ["--dry-run"]):
        told = host.refused("create", "db", "--cpus=8", "--memory=1GB", "--memory-base=0x80000000", *extra)
        assert "db: Where an instance's memory is cannot be asked for on this kernel" in told
        assert told.count("ERROR") == 1
    assert names(host) == {"web"}


def test_declarations_leave_the_place_of_memory_to_the_kernel(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    words = ("apply", f"--directory={tmp_path}")
    file.write_text("name: web\ncpus: 4-7\nmemory: 2GB\nmemory_base: 0x80000000\n")
    told = host.refused(*words)
    assert "cannot be asked for on this kernel" in told
    assert "Line 4: memory_base" in told
    file.write_text("name: web\ncpus: 4-7\nmemory: 2GB\n---\nname: db\ncpu_count: 2\nmemory: 1GB\n")
    planned = host.json(*words, "--dry-run")
    assert [step["after"]["memory_base"] for step in planned["plan"]["create"]] == [None, None]
    assert planned["after"]["web"]["memory_base"] is None
    done = host.json(*words)
    found = {name: shown(host, name).base for name in ("web", "db")}
    assert {name: one["memory_base"] for name, one in done["after"].items()} == found
    assert {step["instance"]: step["after"]["memory_base"] for step in done["plan"]["create"]} == found
    assert host.json(*words)["changed"] is False
    # What is there may be named where it is.
    file.write_text(f"name: web\ncpus: 4-7\nmemory: 2GB\nmemory_base: {found['web']:#x}\n")
    assert host.json(*words)["changed"] is False


def test_what_is_created_anew_is_where_the_kernel_puts_it(host: Host) -> None:
    planned = host.json("ensure", "web", "--cpus=4-7", "--memory=2GB", "--dry-run")
    assert planned["after"]["memory_base"] is None
    done = host.json("ensure", "web", "--cpus=4-7", "--memory=2GB")
    assert done["after"]["memory_base"] == shown(host, "web").base
    assert "cannot be asked for on this kernel" in host.refused("ensure", "web", "--memory-base=0x90000000")
    assert host.json("ensure", "web", f"--memory-base={shown(host, 'web').base:#x}")["changed"] is False
    words = ("update", "web", "--cpu-affinity=compact", "--cpus=20-21")
    planned = host.json(*words, "--dry-run")
    assert planned["after"]["memory_base"] is None
    assert "(the kernel chooses where)" in host.ok(*words, "--dry-run")
    done = host.json(*words)
    assert done["after"]["memory_base"] == shown(host, "web").base
    assert shown(host, "web").cpus == (physical_id(20), physical_id(21))
    host.ok("rollback")
    assert shown(host, "web").cpus == tuple(map(physical_id, range(4, 8)))


def test_whole_devices_go_by_address_and_their_parts_are_refused(empty: Host) -> None:
    empty.init("edge_computing.dts")
    found = pool(empty)
    assert found is not None
    assert found.devices == (LiveDevice("gpu0", "0000:01:00.0"),)  # the host keeps a part of the others
    for device in ("eth0:vf1", "nvme0:ns2"):
        told = empty.refused("create", "web", "--cpus=4", "--memory=1GB", f"--devices={device}")
        assert f"Device {device} cannot be given on this kernel" in told
    empty.ok("create", "web", "--cpus=4", "--memory=1GB", "--devices=gpu0")
    assert shown(empty, "web").devices == found.devices
    assert pool(empty).devices == ()  # type: ignore[union-attr]
    assert empty.instances()["web"]["devices"] == ["gpu0"]
    empty.ok("update", "web", "--devices=none")
    assert shown(empty, "web").devices == ()
    empty.ok("rollback")
    assert shown(empty, "web").devices == found.devices


@pytest.mark.parametrize("fault", ["midway", "partial"])
def test_a_creation_that_stops_before_its_devices_is_undone(bare: Host, fault: str) -> None:
    bare.start(f"--fault={fault}")
    bare.init("edge_computing.dts")
    words = ("create", "web", "--cpus=4", "--memory=1GB", "--devices=gpu0")
    assert "A part of it was created, and was removed again" in bare.refused(*words)
    assert names(bare) == set()
    bare.ok(*words)


def test_memory_comes_in_units_and_goes_in_the_regions_in_which_it_came(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    assert "multiples of 2MB" in host.refused("update", "web", "--memory=0x40001000")
    host.ok("update", "web", "--memory=2GB")
    host.ok("update", "web", "--memory=4GB")
    told = host.refused("update", "web", "--memory=3GB")
    assert "Use --memory=0x40000000 (1GB) or 0x80000000 (2GB)" in told
    operations = host.json("update", "web", "--memory=1GB")["operations"]
    assert [one["operation"] for one in operations] == ["memory-remove"]
    assert shown(host, "web").size == GB
    assert "Memory cannot shrink to that size" in host.refused("update", "web", "--memory=512MB")


def test_what_comes_back_may_lie_elsewhere(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    was = host.instances()["web"]
    host.ok("delete", "web")
    write_overlay(host, wire(host).create(Instance("kerf", 7, (20,), 0, GB)))
    assert host.json("rollback")["steps"][0]["after"]["memory_base"] == shown(host, "web").base
    now = host.instances()["web"]
    assert now["memory_base"] != was["memory_base"]
    assert {**now, "memory_base": 0} == {**was, "memory_base": 0}
    host.ok("rollback")  # of the creation: the address is no difference
    assert names(host) == {"kerf"}


def test_changes_of_another_program_are_told_by_the_overlay(host: Host) -> None:
    made = wire(host)
    web = Instance("web", 1, (4,), 0, GB)
    assert made.concerns("/instances", made.create(web)) == {"web"}
    assert made.concerns("/instances", made.remove("web")) == {"web"}
    changed = made.update(web, web.but(cpus=(5,)), resources())
    assert made.concerns("/instances/web", changed) == {"web"}
    assert made.concerns("web", b"no overlay") == {"web"}


def test_the_live_tree_can_be_validated_and_converted(empty: Host, tmp_path: Path) -> None:
    empty.init("edge_computing.dts")
    tree, file = empty.root / "device_tree", tmp_path / "pool.dts"
    (found,) = empty.json("validate", str(tree))["files"]
    assert found["dialect"] == "v2"
    assert found["hardware"]["devices"]["gpu0"]["pci_id"] == "0000:01:00.0"
    empty.ok("convert", str(tree), str(file))
    assert "gpu0: pci@0 {" in file.read_text()


# -- the record ---------------------------------------------------------------------------------------------


@contextmanager
def without_debugfs(host: Host) -> Iterator[None]:
    """Hide what the kernel shows of CPUs that are offline."""
    place = host.root / "SIMULATED.topology"
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_without_a_record_nobody_is_told_to_delete_the_instances(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=1GB")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    told = host.refused(*apply(host, "minimal.dts"))
    assert "The pool that there is was not made of this baseline" in told
    assert f"Suggestion: Put back {path}, which tells" in told
    with without_debugfs(host):
        told = host.refused(*apply(host))
        assert "CPU 4-31 has no known physical id (APIC id)" in told
        assert f"Suggestion: Put back {path}, which tells" in told
    path.write_bytes(content)
    assert "Delete them first: zernel delete web" in host.refused(*apply(host, "minimal.dts"))


def test_a_lost_record_is_made_anew_from_the_same_baseline(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    before = host.json("show")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    assert host.json("show")["instances"]["web"]["cpus"] == [physical_id(4), physical_id(5)]
    planned = host.json(*apply(host), "--dry-run")
    assert not path.exists()
    done = host.json(*apply(host))
    assert planned["changed"] is done["changed"] is True
    assert host.json("show") == before
    assert path.read_bytes() == content
    assert host.json(*apply(host))["changed"] is False


def test_a_lost_record_is_not_made_anew_where_an_instance_does_not_fit(empty: Host, tmp_path: Path) -> None:
    empty.init("edge_computing.dts")
    empty.ok("create", "web", "--cpus=4", "--memory=1GB", "--devices=gpu0")
    record(empty).unlink()
    file, text = tmp_path / "other.dts", (EXAMPLES / "edge_computing.dts").read_text()
    file.write_text(text.replace("0000:01:00.0", "0000:7f:00.0"))
    assert file.read_text() != text
    told = empty.refused("init", f"--input={file}", "--apply")
    assert "The baseline cannot be replaced while there are instances" in told
    assert "The pool that there is was not made of this baseline" in told
    assert empty.json(*apply(empty, "edge_computing.dts"))["changed"]
    assert empty.instances()["web"]["devices"] == ["gpu0"]


def test_a_lost_record_is_made_anew_for_the_nodes_that_instances_are_on(empty: Host, tmp_path: Path) -> None:
    node = "node@0 { node-id = <0>; memory-base = <0x0>; memory-size = <0x400000000>; cpus = <CPUS>; };"
    cpus = " ".join(map(str, range(32)))
    text = (EXAMPLES / "baseline.dts").read_text()
    at = text.index("devices {")
    file = tmp_path / "nodes.dts"
    topology = f"topology {{ numa-nodes {{ {node.replace('CPUS', cpus)} }}; }};"
    file.write_text(f"{text[:at]}{topology}{text[at:]}")
    words = ("init", f"--input={file}", "--apply")
    empty.ok(*words)
    empty.ok("create", "web", "--cpus=4", "--memory=1GB", "--numa-nodes=0")
    record(empty).unlink()
    told = empty.refused(*apply(empty))
    assert "Suggestion: Put back" in told
    assert "  web: " in told
    empty.ok(*words)
    assert empty.instances()["web"]["numa_nodes"] == [0]


def test_what_debugfs_tells_is_not_taken_from_cpus_that_the_pool_does_not_have(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZERNEL_STATE_DIR", str(host.state))
    record(host).unlink()
    for cpu in range(4, 32):
        # CPU 31 had once an id that is an online CPU's now.
        (tmp_path / str(cpu)).write_text(f"apicid: {physical_id(cpu if cpu < 31 else 0):x}\n")
    monkeypatch.setattr(MultikernelFs, "cpu_topology", tmp_path)
    with pytest.raises(ZernelError) as caught:
        baseline.apply_baseline(MultikernelFs(host.root, simulated=True), resources(), dry_run=False)
    (problem,) = caught.value.problems
    assert problem.category == "CPU 31 has no known physical id (APIC id)"
    assert "mount debugfs: mount -t debugfs none /sys/kernel/debug" in str(problem.suggestion)


@pytest.mark.parametrize("how", ["lost", "corrupt", "cut", "stale"])
def test_without_a_record_that_agrees_only_the_pool_is_known(host: Host, how: str, tmp_path: Path) -> None:
    path = record(host)
    content = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "corrupt":
        path.write_bytes(content.replace(b'"total": 32', b'"total": 33'))
        assert path.read_bytes() != content
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        taken = Node("cpu-remove", children=cpu_items([physical_id(31)]))
        write_overlay(host, overlay(fragment(0, "/resources", taken)))
    data = host.json("show")
    assert data["baseline_complete"] is False
    last = 31 if how != "stale" else 30
    assert data["hardware"]["cpus"]["available"] == [physical_id(cpu) for cpu in range(4, last + 1)]
    text = host.ok("show")
    assert "only the pool is known" in text
    # What another program's pool does not tell is not guessed.
    cpus, memory = data["hardware"]["cpus"], data["hardware"]["memory"]
    assert (cpus["total"], cpus["host_reserved"]) == (None, None)
    assert (memory["total_bytes"], memory["host_reserved_bytes"]) == (None, None)
    assert "  CPUs: total unknown\n    Host reserved: unknown\n    Memory pool: " in text
    assert "  Memory: total unknown\n    Host reserved: unknown\n    Memory pool: " in text
    assert "CPUs are shown by their physical ids" in text
    # Commands take what is shown.
    why = (
        "Linux's numbers for these CPUs, and what the host keeps, are not known:"
        f" {path} is missing, damaged or of another pool"
    )
    last_id = physical_id(last)
    for numbers in ("4", "0", "3000", f"4,{last_id + 1}"):  # in Linux's numbers the first is in the pool
        told = host.refused("create", "web", f"--cpus={numbers}", "--memory=1GB")
        verb = "are" if "," in numbers else "is"
        assert f"CPU{'s' * (verb == 'are')} {numbers} {verb} not in the pool\n  {why}\n" in told
        assert "WARNING: web: CPUs are shown and taken by their physical (APIC) ids" in told
        assert "reserved" not in told
        assert "exist" not in told
    told = host.ok("create", "web", f"--cpus={physical_id(4)}", "--memory=1GB")
    assert f"WARNING: web: CPUs are shown and taken by their physical (APIC) ids\n  {why}\n" in told
    assert "zernel init --input=FILE --apply" in told
    assert shown(host, "web").cpus == (physical_id(4),)
    assert "CPU 5 is not in the pool" in host.refused("update", "web", "--add-cpus=5")
    (warning,) = host.json("update", "web", f"--add-cpus={physical_id(5)}")["warnings"]
    assert (warning["code"], warning["instance"]) == ("cpu-physical-ids", "web")
    assert host.json("update", "web", f"--cpus={physical_id(4)}")["warnings"] == []
    (tmp_path / "db.yaml").write_text("name: db\ncpu_count: 1\nmemory: 1GB\n")
    declared = ("apply", f"--directory={tmp_path}")
    assert [one["code"] for one in host.json(*declared)["warnings"]] == ["cpu-physical-ids"]
    assert host.json(*declared)["warnings"] == []
    host.ok("delete", "db")
    host.ok("delete", "web")
    with without_debugfs(host):
        done = host.run(*apply(host))
        assert "has no known physical id" in done.stderr
    host.ok(*apply(host))
    assert host.json("show")["baseline_complete"]


def test_a_change_is_not_rolled_back_by_other_numbers_for_cpus(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    host.ok("delete", "web")
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    told = host.refused("rollback")
    assert "It names CPUs by Linux's numbers, and they go by their physical ids now" in told
    assert f"{path} is missing" in told
    host.ok("create", "db", f"--cpus={physical_id(8)}", "--memory=1GB", "--id=5")
    path.write_bytes(content)
    assert "by their physical ids, and they go by Linux's numbers now" in host.refused("rollback")
    host.ok("rollback", "tx_3")
    assert host.instances()["web"]["cpus"] == [4, 5]


def test_what_was_interrupted_is_not_settled_by_other_numbers_for_cpus(host: Host, killed: Killed) -> None:
    replaced = ("ensure", "web", "--state=present", "--id=7")
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    host.ok("create", "db", "--cpus=8", "--memory=1GB")
    moment = 0
    while "web" in names(host):
        assert killed(moment, *replaced)[0] == -signal.SIGKILL
        moment += 1
    path = record(host)
    content = path.read_bytes()
    path.unlink()
    another = ("create", "other", f"--cpus={physical_id(9)}", "--memory=1GB")
    told = host.refused(*another)
    assert "It names CPUs by Linux's numbers, and they go by their physical ids now" in told
    assert f"{path} is missing" in told
    assert "To create web as it was: zernel create web --cpus=4-5 --memory=1GB --id=1" in told
    assert host.refused(*another, "--dry-run") == told
    host.ok("delete", "db")
    assert names(host) == set()
    path.write_bytes(content)
    assert (
        "web: it was deleted, and was created again" in host.json("delete", "nobody", "--ensure")["notes"][0]
    )
    assert host.instances()["web"]["cpus"] == [4, 5]


def test_a_record_of_before_a_reboot_is_not_believed(host: Host) -> None:
    host.stop()
    host.start()
    assert "No baseline is applied" in host.refused("show")
    host.init()
    assert host.json("show")["baseline_complete"]


@pytest.mark.parametrize("before", [None, "minimal.dts"])
def test_sigkill_at_every_moment_of_an_init(empty: Host, killed: Killed, before: str | None) -> None:
    moment, outcomes, status = 0, [], -signal.SIGKILL
    wanted = resources().cpus.available
    while status == -signal.SIGKILL:
        if before is not None:
            assert killed(-1, *apply(empty, before))[0] == 0
        elif moment:
            take_back(empty)
        status, _ = killed(moment, *apply(empty))
        moment += 1
        now = pool(empty)
        # Reading needs no repair: the record of what was begun is believed once the pool is there.
        if now is not None:
            data = json.loads(killed(-1, "show", "--format=json")[1])
            assert data["baseline_complete"]
        done = now is not None and now.cpus == tuple(map(physical_id, wanted))
        outcomes.append(done)
        begun = any(json.loads(path.read_text())["begun"] for path in empty.state.rglob("inventory.json"))
        code, output = killed(-1, *apply(empty), "--format=json")
        assert code == 0
        data = json.loads(output)
        assert data["changed"] is not done
        said = "the baseline is applied" if done else "it changed nothing"
        notes = [note for note in data["notes"] if "interrupted" in note]
        assert notes == ([f"An earlier 'zernel init --apply' was interrupted: {said}"] if begun else [])
        assert json.loads(record(empty).read_text())["begun"] is None
    assert status == 0
    assert min(outcomes.count(True), outcomes.count(False)) > 1


def test_a_pool_between_two_baselines_is_brought_back(host: Host) -> None:
    directory, before = record(host).parent, host.json("show")["hardware"]
    wanted = resources("minimal.dts")
    applied = inventory_record.read(directory).applied
    assert applied is not None
    # As a command leaves it that is killed while the kernel has done a part of what it was asked.
    begun = Recorded(wanted, applied.ids)
    inventory_record.write(directory, Inventory(applied, begun))
    taken = Node("cpu-remove", children=cpu_items([physical_id(31)]))
    write_overlay(host, overlay(fragment(0, "/resources", taken)))
    done = host.json("create", "web", "--cpus=31", "--memory=1GB")
    assert done["notes"] == [
        "An earlier 'zernel init --apply' was interrupted: the pool before it was brought back"
    ]
    assert host.json("show")["hardware"] == before
    # With an instance on it, it is left as it is.
    inventory_record.write(directory, Inventory(applied, begun))
    taken = Node("cpu-remove", children=cpu_items([physical_id(30)]))
    write_overlay(host, overlay(fragment(0, "/resources", taken)))
    told = host.refused("create", "db", "--cpus=5", "--memory=1GB")
    assert "the pool is neither the old nor the new one, and in use" in told
    assert host.json("show")["baseline_complete"] is False


def test_another_programs_pool_is_not_taken_back_for_ours(empty: Host) -> None:
    # As a command leaves it that is killed before its write, on a pool that another program made.
    ids = {cpu: physical_id(cpu) for cpu in range(HOST_CPUS)}
    begun = Recorded(resources(), ids)
    foreign = Recorded(resources("minimal.dts"), ids)
    (empty.root / "device_tree").write_bytes(wire_v2.baseline(foreign))
    before = pool(empty)
    directory = state_directory(empty)
    inventory_record.write(directory, Inventory(None, begun))
    done = empty.json("create", "web", f"--cpus={physical_id(2)}", "--memory=1GB")
    assert done["notes"] == [
        "An earlier 'zernel init --apply' was interrupted: the pool is another program's, and was left alone"
    ]
    assert pool(empty) == before


def test_a_pool_in_pieces_that_a_killed_init_left_is_given_back(empty: Host) -> None:
    ids = {cpu: physical_id(cpu) for cpu in range(HOST_CPUS)}
    begun = Recorded(resources("numa_topology.dts"), ids)
    (empty.root / "device_tree").write_bytes(wire_v2.baseline(begun))
    directory = state_directory(empty)
    inventory_record.write(directory, Inventory(None, begun))
    done = empty.json(*apply(empty))
    assert done["notes"][0].endswith("interrupted: the pool was given back to the host: nothing was changed")
    assert empty.json("show")["baseline_complete"]


def take_back(host: Host) -> None:
    """Return the pool to the host, as another program does."""
    found = pool(host)
    assert found is not None
    blob = pool_change(found, None)
    assert blob is not None
    write_overlay(host, blob)
    assert pool(host) is None


def test_the_record_is_for_everyone_to_read(host: Host) -> None:
    assert stat.S_IMODE(record(host).stat().st_mode) == 0o644
