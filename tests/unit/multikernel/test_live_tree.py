# SPDX-License-Identifier: GPL-3.0-or-later
"""What kernels of the second version show, in trees and in /proc, and the record beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.devicetree import fdt, load
from zernel.devicetree.tree import Node, Property, Tree
from zernel.multikernel import inventory_record, live_tree, proc
from zernel.multikernel.inventory_record import Inventory, Recorded
from zernel.multikernel.live_tree import LiveDevice, Piece, Pool
from zernel.multikernel.wire_v2 import V2, Host

from .conftest import EXAMPLES

GB = 1 << 30


def test_an_instances_memory_may_be_told_in_regions() -> None:
    def tree(*regions: tuple[int, int]) -> bytes:
        memory = [
            Node(f"memory@{at}", properties=[Property("reg", (fdt.u64(*region),))])
            for at, region in enumerate(regions)
        ]
        owned = Node("resources", properties=[Property("cpus", (fdt.u64(4),))], children=memory)
        return fdt.write(Tree(Node("/", children=[owned])))

    found = live_tree.instance(tree((2 * GB, GB), (GB, GB)))
    assert found is not None
    assert (found.base, found.size) == (GB, 2 * GB)
    assert live_tree.instance(tree((3 * GB, GB), (GB, GB))) is None


def test_a_device_without_a_name_is_called_by_its_address() -> None:
    pool = Pool((4,), (Piece(GB, GB),), (LiveDevice("pci_0000_01_00_0", "0000:01:00.0"),))
    found = V2(Host(4096, Path("/nonexistent"), Path("/nonexistent")), pool, None).read_baseline(b"")
    assert not found.complete
    assert [(one.name, one.pci_id) for one in found.devices] == [("pci_0000_01_00_0", "0000:01:00.0")]


@given(st.binary(max_size=400))
def test_tables_of_proc_never_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("proc") / "table"
    path.write_bytes(b"processor\t: 3\napicid\t\t: 7\n1000-1fff : mk-instance-1-web-region-0\n" + content)
    assert proc.apic_ids(path).get(3, 7) is not None
    assert proc.regions(path, 1, "web")[:1] == [(0x1000, 0x1000)]


@given(st.binary(max_size=400), st.integers(0, 0xFFFFFFFF), st.sampled_from(["{:x}", "{:#x}", "\t  {:#x} "]))
def test_what_debugfs_shows_of_a_cpu_never_fails(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, number: int, form: str
) -> None:
    directory = tmp_path_factory.mktemp("cpus")
    (directory / "2").write_bytes(content)
    (directory / "3").write_bytes(f"initial_apicid: 1\napicid:{form.format(number)}\n".encode() + content)
    (directory / "4").write_bytes(
        b"online:              0\n" + b"apicid:      100000000\napicid: -1\napicid:\n"
    )
    found = proc.offline_apic_ids(directory, range(2, 6))
    assert 3 in found
    assert found.keys() <= {2, 3}
    if b"apicid" not in content:
        assert found == {3: number}


NUMBERS = st.binary(max_size=24)
NODES = st.builds(
    lambda name, values: Node(name, properties=[Property(key, (value,)) for key, value in values.items()]),
    st.sampled_from(["memory@0", "devices", "pci@0", "x"]),
    st.dictionaries(
        st.sampled_from(["reg", "compatible", "vendor-id", "numa-node-id", "linux,pci-domain"]), NUMBERS
    ),
)


@given(st.lists(NODES, max_size=4), st.lists(NODES, max_size=4), NUMBERS, st.booleans())
def test_no_tree_makes_reading_fail(
    inner: list[Node], outer: list[Node], cpus: bytes, available: bool
) -> None:
    resources = Node("resources", properties=[Property("cpus", (cpus,))], children=inner)
    if available:
        resources.properties.append(Property("cpus-available", (cpus,)))
    for node in outer[:2]:
        node.properties.insert(0, Property("compatible", ("multikernel,pci-host-bridge",)))
        node.children += outer[2:]
    blob = fdt.write(Tree(Node("/", children=[resources, *outer])))
    assert live_tree.form(blob) == "v2"
    found = live_tree.pool(blob)
    assert found is None or isinstance(found, Pool)
    live_tree.instance(blob)


@given(
    example=st.sampled_from(["baseline.dts", "gpu_server.dts", "edge_computing.dts"]), cpus=st.integers(1, 99)
)
def test_a_record_is_read_as_it_was_written(
    example: str, cpus: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("record")
    system = load.read_file(str(EXAMPLES / example)).system
    assert system is not None
    ids = {cpu: cpu * cpus for cpu in range(200)}
    written = Inventory(Recorded(system.resources, ids), None)
    inventory_record.write(directory, written)
    assert inventory_record.read(directory) == written
