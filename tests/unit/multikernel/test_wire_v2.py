# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of the second version: probing, physical CPU ids, memory that the kernel places."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from zernel.devicetree.model import Instance
from zernel.errors import ZernelError
from zernel.multikernel import baseline, inventory_record, live_tree, proc
from zernel.multikernel.fs import MultikernelFs
from zernel.multikernel.inventory_record import Inventory
from zernel.multikernel.journal import directory_of
from zernel.multikernel.live_tree import LiveDevice
from zernel.multikernel.simulate_v2 import HOST_CPUS, physical_id

from .conftest import EXAMPLES, Host, names, write_overlay
from .v2 import GB, apply, pool, resources, shown, wire

pytestmark = pytest.mark.parametrize("version", [2], indirect=True)


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
