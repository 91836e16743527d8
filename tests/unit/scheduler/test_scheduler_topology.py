# SPDX-License-Identifier: GPL-3.0-or-later
"""CPUs and NUMA nodes read from a /sys that is not this machine's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.errors import ZernelError
from zernel.scheduler import topology
from zernel.scheduler.topology import NO_NODE, Topology


def system(root: Path, possible: str, nodes: dict[int, str] | None = None, smt: str = "0") -> Path:
    files = {"cpu/possible": possible, "cpu/smt/active": smt}
    if nodes is not None:
        files["node/online"] = ",".join(map(str, nodes))
        files |= {f"node/node{number}/cpulist": cpus for number, cpus in nodes.items()}
    for name, content in files.items():
        path = root / "sys/devices/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def test_nodes_get_indices_without_gaps(tmp_path: Path) -> None:
    found = topology.read(system(tmp_path, "0-7", {0: "0-1,4-5", 2: "2-3,6-7"}, smt="1"))
    assert found == Topology(8, (0, 2), (0, 0, 1, 1, 0, 0, 1, 1), smt=True)


def test_a_node_with_memory_alone_gets_no_queue(tmp_path: Path) -> None:
    found = topology.read(system(tmp_path, "0-3", {0: "0-1", 1: "", 2: "2-3"}))
    assert found.nodes == (0, 2)
    assert found.node_of_cpu == (0, 0, 1, 1)


def test_cpus_that_are_possible_but_not_there_count(tmp_path: Path) -> None:
    found = topology.read(system(tmp_path, "0-127", {0: "0-3"}))
    assert found.nr_cpus == 128
    assert set(found.node_of_cpu) == {0}


def test_a_kernel_without_numa_has_one_queue(tmp_path: Path) -> None:
    assert topology.read(system(tmp_path, "0-1")) == Topology(2, (NO_NODE,), (0, 0), smt=False)


@pytest.mark.parametrize("possible", ["", "garbage", "0-99999999999", "3-1", "0-8192"])
def test_a_list_of_cpus_that_cannot_be_is_refused(tmp_path: Path, possible: str) -> None:
    with pytest.raises(ZernelError, match="which CPUs there are"):
        topology.read(system(tmp_path, possible))


def test_this_machine_has_at_least_the_cpus_that_this_process_may_use() -> None:
    import os

    found = topology.read()
    assert found.nr_cpus > max(os.sched_getaffinity(0))
    assert len(found.node_of_cpu) == found.nr_cpus
    assert max(found.node_of_cpu) < len(found.nodes)


@given(st.text(alphabet="0123456789,- \n", max_size=40))
def test_any_text_is_a_list_or_nothing(text: str) -> None:
    numbers = topology.cpu_list(text)
    assert all(number >= 0 for number in numbers)


def test_a_node_without_cpus_is_served_by_the_closest_that_has_some(tmp_path: Path) -> None:
    root = system(tmp_path, "0-3", {0: "0-1", 1: "2-3", 2: "", 3: ""})
    (root / "sys/devices/system/node/node2/distance").write_text("40 20 10 80\n")
    found = topology.read(root)
    assert [found.index_of(number) for number in (0, 1, 2, 3, 9, None)] == [0, 1, 1, 0, None, None]
    assert found.cpus_of(1) == [2, 3]
