# SPDX-License-Identifier: GPL-3.0-or-later
"""The second version of the simulated kernel: what it takes, what it refuses, and how it undoes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable

import pytest

from zernel.devicetree import fdt
from zernel.devicetree.model import Instance
from zernel.devicetree.tree import Node, Property, Tree
from zernel.multikernel import live_tree
from zernel.multikernel.live_tree import Pool
from zernel.multikernel.simulate_v2 import physical_id
from zernel.multikernel.wire import overlay
from zernel.multikernel.wire_v1 import V1
from zernel.multikernel.wire_v2 import cpu_items, device_items, fragment, memory_items, request_items

from .conftest import ZERNEL, Host, names, wire_of, write_overlay

pytestmark = pytest.mark.parametrize("version", [2], indirect=True)
GB = 1 << 30


def number_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
        call()
    return caught.value.errno


def status(host: Host, number: int) -> str:
    return (host.root / f"overlays/tx_{number}/status").read_text().strip()


def undo(host: Host, number: int) -> None:
    (host.root / f"overlays/tx_{number}").rmdir()


def pool(host: Host) -> Pool:
    found = live_tree.pool((host.root / "device_tree").read_bytes())
    assert found is not None
    return found


def instance(name: str, *cpus: int, size: int = GB) -> Instance:
    return Instance(name, None, cpus, 0, size)


def create(host: Host, name: str, *cpus: int) -> None:
    write_overlay(host, wire_of(host).create(instance(name, *cpus)))


def baseline(*children: Node, **values: bytes) -> bytes:
    properties = [Property(name.replace("_", "-"), (value,)) for name, value in values.items()]
    return fdt.write(
        Tree(Node("/", children=[Node("resources", properties=properties, children=[*children])]))
    )


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(
            baseline(cpus=fdt.u64(0x408), memory_base=fdt.u64(GB), memory_bytes=fdt.u64(GB)), id="form of v1"
        ),
        pytest.param(baseline(cpus=fdt.u64(0x408)), id="no memory"),
        pytest.param(baseline(*request_items([(0, None)]), cpus=fdt.u64(0x408)), id="memory of no size"),
        pytest.param(baseline(*request_items([(100, None)]), cpus=fdt.u64(0x408)), id="memory of no page"),
        pytest.param(baseline(*request_items([(GB, None)]), cpus=fdt.u64(4)), id="no physical id"),
        pytest.param(baseline(*request_items([(GB, None)]), cpus=fdt.u64(0x408, 0x408)), id="a CPU twice"),
        pytest.param(b"x" * 100, id="no blob"),
    ],
)
def test_a_baseline_of_another_form_is_einval(empty: Host, blob: bytes) -> None:
    before = (empty.root / "device_tree").read_bytes()
    assert number_of(lambda: (empty.root / "device_tree").write_bytes(blob)) == errno.EINVAL
    assert (empty.root / "device_tree").read_bytes() == before


def test_a_pool_that_is_there_is_ebusy_and_shown_as_it_is(host: Host) -> None:
    blob = baseline(*request_items([(GB, None)]), cpus=fdt.u64(physical_id(40)))
    assert number_of(lambda: (host.root / "device_tree").write_bytes(blob)) == errno.EBUSY
    create(host, "a", 4, 5)
    root = fdt.read((host.root / "device_tree").read_bytes(), "tree").root
    resources = root.child("resources")
    assert resources is not None
    free = resources.get("cpus-available")
    assert free is not None
    assert free.wide_numbers() == tuple(physical_id(cpu) for cpu in range(6, 32))
    assert [node.name for node in resources.children] == ["memory@0"]
    assert root.child("instances") is None


@pytest.mark.parametrize(
    ("target", "operation"),
    [
        ("/instances", V1().create(instance("b", 4))),
        ("/instances/nobody", Node("cpu-add", children=cpu_items([physical_id(9)]))),
        ("/instances/a", Node("cpu-add", children=cpu_items([9]))),
        ("/instances/a", Node("cpu-remove", children=cpu_items([physical_id(4)]))),
        ("/instances/a", Node("cpu-add")),
        ("/instances/a", Node("memory-add", children=memory_items([(GB, GB)]))),
        ("/instances/a", Node("memory-add", children=memory_items([(3 * GB + 4096, GB)]))),
        ("/instances/a", Node("memory-remove", children=memory_items([(GB + (64 << 20), GB)]))),
        ("/instances/a", Node("memory-remove", children=memory_items([(GB + (64 << 20), 2 << 20)]))),
        ("/instances/a", Node("device-add", children=device_items([("0000:01:00.0", None)]))),
        ("/resources", Node("cpu-remove", children=cpu_items([physical_id(4)]))),
        ("/resources", Node("memory-remove", children=memory_items([(GB, 14 * GB)]))),
        ("/resources", Node("cpu-add", children=cpu_items([physical_id(31)]))),
        ("/elsewhere", Node("cpu-add", children=cpu_items([physical_id(9)]))),
    ],
)
def test_an_operation_that_fails_is_a_write_that_succeeds(
    host: Host, target: str, operation: Node | bytes
) -> None:
    create(host, "a", 4)
    before = [(host.root / name).read_bytes() for name in ("device_tree", "instances/a/device_tree")]
    if isinstance(operation, bytes):  # the first version's own overlay has no target
        assert number_of(lambda: write_overlay(host, operation)) == errno.EINVAL
    else:
        write_overlay(host, overlay(fragment(0, target, operation)))
        assert status(host, 3) == "failed"
        assert (host.root / "overlays/tx_3/instance").read_text().strip() == target
    assert before == [(host.root / name).read_bytes() for name in ("device_tree", "instances/a/device_tree")]
    assert names(host) == {"a"}


def test_rmdir_undoes_the_operations_in_reverse(host: Host) -> None:
    wire = wire_of(host)
    create(host, "a", 4, 5)
    there = wire.read_instance("a", 1, (host.root / "instances/a/device_tree").read_bytes())
    assert there is not None
    wanted = there.but(cpus=(5, 6), memory_bytes=2 * GB)
    write_overlay(host, wire.update(there, wanted, wire.read_baseline(b"")))
    write_overlay(host, wire.remove("a"))
    assert names(host) == set()
    undo(host, 4)
    assert wire.read_instance("a", 1, (host.root / "instances/a/device_tree").read_bytes()) == wanted
    undo(host, 3)
    assert wire.read_instance("a", 1, (host.root / "instances/a/device_tree").read_bytes()) == there
    undo(host, 2)
    assert names(host) == set()
    assert {path.name for path in (host.root / "overlays").iterdir()} == {"new"}
    assert number_of(lambda: (host.root / "overlays").rmdir()) == errno.EPERM
    assert number_of(lambda: (host.root / "overlays/tx_9").rmdir()) == errno.ENOENT


def test_rmdir_of_a_failed_transaction_undoes_what_it_never_did(host: Host) -> None:
    create(host, "a", 4)
    create(host, "a", 5)  # fails: the name is taken
    assert status(host, 3) == "failed"
    undo(host, 3)
    assert names(host) == set()  # it took the first one's instance: why Zernel never undoes this way


@pytest.mark.parametrize("faulty", [["undo-fails"]], indirect=True)
def test_an_undo_that_fails_leaves_the_directory(faulty: Host) -> None:
    create(faulty, "a", 4)
    assert number_of(lambda: undo(faulty, 2)) == errno.EIO
    assert status(faulty, 2) == "failed"
    assert names(faulty) == set()  # its first inverse operation was done
    create(faulty, "a", 4)
    undo(faulty, 3)


def test_what_an_instance_in_use_has_is_not_undone(host: Host) -> None:
    create(host, "a", 4)
    added = Node("cpu-add", children=cpu_items([physical_id(40)]))
    write_overlay(host, overlay(fragment(0, "/resources", added)))
    write_overlay(host, wire_of_pool(host, "b", physical_id(40)))
    assert number_of(lambda: undo(host, 3)) == errno.EIO
    assert status(host, 3) == "failed"
    assert names(host) == {"a", "b"}


def wire_of_pool(host: Host, name: str, *ids: int) -> bytes:
    """Return a creation by physical ids: the pool is not what Zernel's record tells any more."""
    return wire_of(host).create(instance(name, *ids))


def test_a_pool_is_changed_by_overlays_and_goes_when_all_is_gone(host: Host) -> None:
    before = pool(host)
    nodes = [
        Node("memory-add", children=request_items([(GB, 1), (2 * GB, None)])),
        Node("cpu-remove", children=cpu_items([physical_id(31)])),
        Node("device-add", children=device_items([("0000:05:00.1", "gpu7")])),
    ]
    write_overlay(host, overlay(fragment(0, "/resources", *nodes)))
    now = pool(host)
    assert [(one.size, one.node) for one in now.pieces] == [(14 * GB, 0), (2 * GB, 0), (GB, 1)]
    assert set(before.cpus) - set(now.cpus) == {physical_id(31)}
    assert [(one.name, one.pci_id) for one in now.devices] == [("gpu7", "0000:05:00.1")]
    undo(host, 2)
    assert pool(host) == before
    nodes = [
        Node("memory-remove", children=memory_items((one.base, one.size) for one in before.pieces)),
        Node("cpu-remove", children=cpu_items(before.cpus)),
    ]
    write_overlay(host, overlay(fragment(0, "/resources", *nodes)))
    assert live_tree.pool((host.root / "device_tree").read_bytes()) is None
    write_overlay(host, overlay(fragment(0, "/resources", nodes[1])))
    assert status(host, 3) == "failed"  # the numbers of those undone are used again


def test_the_first_version_has_no_undo_that_could_fail(bare: Host) -> None:
    words = [ZERNEL, "simulate", "multikernel", str(bare.root), "--fault=undo-fails"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--version=2" in done.stderr
    assert not bare.root.exists()


def test_dtc_reads_what_it_shows(host: Host) -> None:
    host.stop()
    host.start()
    host.init("edge_computing.dts")
    host.ok("create", "web", "--cpus=4", "--memory=1GB", "--devices=gpu0")
    for name in ("device_tree", "instances/web/device_tree"):
        blob = (host.root / name).read_bytes()
        done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts"], input=blob, capture_output=True, timeout=30)
        assert done.returncode == 0, os.fsdecode(done.stderr)
