# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel create`` on a server with sockets, SMT siblings and NUMA nodes, and where these are unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zernel.devicetree import fdt, render
from zernel.devicetree.model import Instance, Resources, System
from zernel.devicetree.tree import Node
from zernel.host import hardware
from zernel.multikernel.changes import same
from zernel.multikernel.wire_v1 import V1
from zernel.topology import locate_devices, pci_numa_node, read

from .conftest import BOTH, Host, write_overlay
from .test_hardware import Machine

GB = 1 << 30


class Server:
    """A server (see `Machine`) whose instances are simulated.

    Cores (0, 8) to (3, 11) are on node 0, (4, 12) to (7, 15) on node 1; each node is a socket. The host
    keeps core (0, 8). The pool is 24 GB of node 0 and 24 GB of node 1. eth0 is on node 1, gpu0 on node 0.
    """

    def __init__(self, machine: Machine, host: Host, directory: Path) -> None:
        self.machine, self.host = machine, host
        machine.pci("0000:81:00.0", "0x020000", numa_node=1, sriov_totalvfs=4, **{"net/eth0/mtu": 1500})
        machine.pci("0000:01:00.0", "0x030200", numa_node=0)
        self.resources = hardware.propose(
            hardware.discover(machine.root), pool_base=0x200000000, pool_bytes=48 * GB
        )
        self.baseline = directory / "server.dts"
        self.init()

    def init(self, **changes: object) -> None:
        system = System(self.resources.but(**changes))
        self.baseline.write_text(render.source(render.system_tree(system)))
        self.host.ok("init", f"--input={self.baseline}", "--apply")

    def words(self, name: str, *words: str) -> tuple[str, ...]:
        memory = () if any(word.startswith("--memory=") for word in words) else ("--memory=1GB",)
        return ("create", name, f"--root={self.machine.root}", *memory, *words)

    def create(self, name: str, *words: str) -> Instance:
        """Create the instance and return it, checking that a dry run says the same."""
        planned = self.host.json(*self.words(name, *words), "--dry-run")
        made = self.host.json(*self.words(name, *words))
        assert made["warnings"] == planned["warnings"]
        found = made["instance"]
        assert found | {"status": None} == planned["instance"]
        self.warnings = {warning["code"]: warning for warning in made["warnings"]}
        return Instance(name, found["id"], tuple(found["cpus"]), found["memory_base"], found["memory_bytes"])


@pytest.fixture
def server(tmp_path: Path, empty: Host) -> Server:
    return Server(Machine(tmp_path / "server"), empty, tmp_path)


def test_what_is_proposed_for_the_server_knows_where_its_devices_are(server: Server) -> None:
    assert {device.name: device.numa_node for device in server.resources.devices} == {"eth0": 1, "gpu0": 0}
    shown = server.host.ok("init", f"--input={server.baseline}", "--report", "--verbose")
    assert "eth0: ethernet, 0000:81:00.0, VFs 1-3 of 4, NUMA node 1" in shown
    data = server.host.json("init", f"--input={server.baseline}")
    assert data["hardware"]["devices"]["eth0"]["numa_node"] == 1


def test_whole_cores_on_one_node_are_the_default(server: Server) -> None:
    assert server.create("a", "--cpu-count=4").cpus == (1, 2, 9, 10)
    assert server.create("b", "--cpu-count=4", "--cpu-affinity=compact").cpus == (4, 5, 12, 13)
    assert server.create("c", "--cpu-count=2").cpus == (3, 11)
    assert server.warnings == {}


def test_spread_takes_a_thread_of_each_core_on_each_node(server: Server) -> None:
    assert server.create("a", "--cpu-count=4", "--cpu-affinity=spread").cpus == (1, 2, 4, 5)
    assert server.warnings == {}


def test_local_follows_the_devices_and_memory_follows_the_cpus(server: Server) -> None:
    near = server.create("near", "--cpu-count=2", "--cpu-affinity=local", "--devices=eth0:vf1")
    assert near.cpus == (4, 12)
    assert near.memory_base == 0x800000000
    gpu = server.create("gpu", "--cpu-count=2", "--cpu-affinity=local", "--devices=gpu0")
    assert (gpu.cpus, gpu.memory_base) == ((1, 9), 0x200000000)
    # Without devices: the node with the most free CPUs.
    assert server.create("most", "--cpu-count=2", "--cpu-affinity=local").cpus == (5, 13)
    assert server.warnings == {}
    far = server.create("far", "--cpu-count=6", "--cpu-affinity=local", "--devices=eth0:vf2")
    assert set(far.cpus) >= {6, 7, 14, 15}
    assert server.warnings["cpu-not-local"]["instance"] == "far"


def test_the_place_of_a_device_comes_from_pci_when_the_baseline_does_not_know_it(server: Server) -> None:
    server.init(devices=tuple(device.but(numa_node=None) for device in server.resources.devices))
    words = ("--cpu-count=2", "--cpu-affinity=local", "--devices=eth0:vf1")
    assert server.create("near", *words).cpus == (4, 12)


def test_memory_is_near_the_cpus_unless_a_person_puts_it_elsewhere_which_is_said(server: Server) -> None:
    near = server.create("near", "--cpus=4,12")
    assert (near.memory_base, server.warnings) == (0x800000000, {})
    server.create("far", "--cpus=5,13", "--memory-base=0x200000000")
    said = server.warnings["memory-not-local"]
    assert said["message"].startswith("Memory is not local to NUMA node 1: ")
    assert said["suggestion"] == "Change memory-base to 0x840000000"
    server.create("much", "--cpus=1,9", "--memory=22GB")
    server.create("more", "--cpus=3,11", "--memory=2GB")
    assert [*server.warnings] == ["memory-not-local"]
    # CPUs of both nodes have no memory that is not near.
    server.create("both", "--cpus=2,6")
    assert server.warnings == {}


def test_named_nodes_are_kept_to(server: Server) -> None:
    found = server.create("a", "--cpu-count=2", "--numa-nodes=1")
    assert (found.cpus, found.memory_base) == ((4, 12), 0x800000000)
    shown = server.host.refused(*server.words("b", "--cpu-count=7", "--numa-nodes=1"))
    assert "ERROR: b: 7 CPUs cannot be given on NUMA node 1\n" in shown
    assert "Free CPUs on NUMA node 1: 5-7,13-15 (6)\n  Free CPUs on other nodes: 6\n" in shown
    assert "Suggestion: Use --cpu-count=6 or less" in shown
    assert "CPUs 1,9 are not on NUMA node 1" in server.host.refused(
        *server.words("b", "--cpus=1,9", "--numa-nodes=1")
    )
    shown = server.host.refused(*server.words("b", "--cpu-count=1", "--numa-nodes=5"))
    assert shown.count("ERROR: ") == 1
    assert "NUMA node 5 does not exist" in shown


def test_a_core_is_split_only_when_no_whole_one_is_left_and_its_owner_is_named(server: Server) -> None:
    assert server.create("a", "--cpus=1-3").cpus == (1, 2, 3)
    assert server.create("b", "--cpu-count=8").cpus == (4, 5, 6, 7, 12, 13, 14, 15)
    assert server.warnings == {}
    shown = server.host.ok(*server.words("c", "--cpu-count=2"))
    assert "WARNING: c: Shares cores with a\n" in shown
    assert "CPU 9 has a core with CPU 1 of a\n" in shown
    assert "Free whole cores: make a smaller" in shown


def test_a_core_that_a_person_splits_is_told_with_better_cpus(server: Server) -> None:
    server.create("a", "--cpus=1")
    shown = server.host.ok(*server.words("b", "--cpus=9", "--dry-run"))
    assert "WARNING: b: Shares cores with a\n  CPU 9 has a core with CPU 1 of a\n" in shown
    assert "Suggestion: Use --cpus=2: nobody has a part of these cores" in shown


def test_memory_that_must_be_near_or_should_be(server: Server) -> None:
    server.create("full", "--cpu-count=2", "--numa-nodes=0", "--memory=20GB", "--memory-policy=bind")
    bind = ("--cpu-count=2", "--numa-nodes=0", "--memory=6GB", "--memory-policy=bind")
    shown = server.host.refused(*server.words("b", *bind))
    assert "ERROR: b: 6GB of memory cannot be given in one piece on NUMA node 0\n" in shown
    assert "Memory pool: 48GB, 28GB free\n" in shown
    assert "Largest free block on NUMA node 0: 4GB at 0x700000000\n" in shown
    assert "Largest free block of the pool: 28GB at 0x700000000\n" in shown
    assert "Alternative: Let memory come from other nodes where it must: --memory-policy=local" in shown
    local = (*bind[:3], "--memory-policy=local")
    assert server.create("b", *local).memory_base == 0x700000000
    assert server.warnings["memory-not-local"]["suggestion"].startswith("Use 4GB or less")


def test_an_interleave_is_a_range_across_the_border_and_says_that_it_is_no_more(server: Server) -> None:
    words = ("--cpu-count=4", "--numa-nodes=0,1", "--memory=8GB", "--memory-policy=interleave")
    found = server.create("wide", *words, "--cpu-affinity=spread")
    assert found.memory_base == 0x700000000
    (warning,) = server.warnings.values()
    assert warning["code"] == "memory-not-interleaved"
    assert "4GB on NUMA node 0, 4GB on NUMA node 1" in warning["message"]


def test_an_interleave_that_another_instance_is_in_the_way_of_names_it(server: Server) -> None:
    server.create("first", "--cpu-count=2", "--numa-nodes=1")
    words = ("--cpu-count=2", "--numa-nodes=0,1", "--memory=40GB", "--memory-policy=interleave")
    assert "40GB of memory cannot be given" in server.host.refused(*server.words("wide", *words))
    words = (*words[:2], "--memory=8GB", words[3])
    assert server.create("wide", *words).memory_base == 0x200000000
    (warning,) = server.warnings.values()
    assert warning["suggestion"].startswith("Move first away from the nodes' border")


def test_what_was_asked_for_is_shown_and_compared(server: Server) -> None:
    words = ("--cpu-count=2", "--numa-nodes=1", "--cpu-affinity=compact", "--memory-policy=bind")
    server.create("web", *words)
    shown = server.host.ok("show", "web")
    for line in ("  NUMA nodes: 1", "  CPU affinity: compact", "  Memory policy: bind"):
        assert line in shown.split("\n")
    found = server.host.instances()["web"]
    assert (found["numa_nodes"], found["cpu_affinity"], found["memory_policy"]) == ([1], "compact", "bind")
    assert not server.host.json(*server.words("web", *words, "--ensure"))["changed"]
    assert not server.host.json(*server.words("web", "--cpu-count=2", "--ensure"))["changed"]
    other = ("--cpu-count=2", "--numa-nodes=0", "--cpu-affinity=spread", "--memory-policy=local")
    shown = server.host.refused(*server.words("web", *other, "--ensure"))
    assert "NUMA nodes: has 1, asked 0" in shown
    assert "CPU affinity: has compact, asked spread" in shown
    assert "Memory policy: has bind, asked local" in shown


def test_the_overlay_says_what_was_asked_for_as_kerf_writes_it(server: Server) -> None:
    server.create("web", "--cpu-count=2", "--numa-nodes=0,1", "--cpu-affinity=spread")
    blob = (server.host.root / "overlays/tx_2/dtbo").read_bytes()
    stack: list[Node] = [fdt.read(blob, "tx_2").root]
    while (node := stack.pop()).name != "resources":
        stack += node.children
    numa, affinity = node.get("numa-nodes"), node.get("cpu-affinity")
    assert numa is not None
    assert affinity is not None
    assert numa.values == (fdt.u32(0, 1),)
    assert affinity.text() == "spread"
    assert node.get("memory-policy") is None


def test_a_kernel_that_does_not_show_the_wishes_is_believed_and_one_that_shows_others_is_not() -> None:
    asked = Instance("web", 1, (4,), GB, GB, (), (0,), "compact", "bind")
    bare = asked.but(numa_nodes=(), cpu_affinity=None, memory_policy=None)
    assert same(asked, asked)
    assert same(bare, asked)
    assert not same(asked.but(cpu_affinity="spread"), asked)
    assert not same(bare.but(cpus=(5,)), asked)
    assert not same(None, asked)


def test_an_update_takes_the_rest_of_its_cores_then_whole_ones_where_it_is(server: Server) -> None:
    server.create("web", "--cpus=4")
    server.create("other", "--cpus=5")
    root = f"--root={server.machine.root}"
    grown = server.host.json("update", "web", "--cpu-count=4", root)
    assert (grown["after"]["cpus"], grown["warnings"]) == ([4, 6, 12, 14], [])
    shared = server.host.json("update", "web", "--add-cpus=13", root)
    assert [warning["code"] for warning in shared["warnings"]] == ["cpu-core-shared"]


def test_an_update_stays_on_the_named_nodes(server: Server) -> None:
    server.create("web", "--cpu-count=2", "--numa-nodes=0", "--cpu-affinity=compact")
    words = ("update", "web", f"--root={server.machine.root}")
    assert server.host.json(*words, "--cpu-count=6")["after"]["cpus"] == [1, 2, 3, 9, 10, 11]
    assert "2 CPUs cannot be given on NUMA node 0" in server.host.refused(*words, "--cpu-count=8")


def test_declared_instances_are_placed_by_their_wishes_and_report_them(
    server: Server, tmp_path: Path
) -> None:
    directory = tmp_path / "instances.d"
    directory.mkdir()
    file = directory / "web.yaml"
    text = (
        "name: web\ncpu_count: 2\nmemory: 1GB\nnuma_nodes: [1]\ncpu_affinity: spread\nmemory_policy: bind\n"
    )
    file.write_text(text)
    words = ("apply", f"--directory={directory}", f"--root={server.machine.root}")
    assert server.host.json(*words)["changed"]
    found = server.host.instances()["web"]
    assert (found["cpus"], found["memory_base"]) == ([4, 5], 0x800000000)
    assert (found["numa_nodes"], found["cpu_affinity"], found["memory_policy"]) == ([1], "spread", "bind")
    assert not server.host.json(*words)["changed"]
    shown = server.host.ok("show", "--report")
    assert "  NUMA nodes: 1\n  CPU affinity: spread\n  Memory policy: bind\n" in shown
    (directory / "db.yaml").write_text("name: db\ncpus: 12\nmemory: 1GB\n")
    shared = server.host.json(*words)["warnings"]
    assert [(one["code"], one["instance"], one["line"]) for one in shared] == [("cpu-core-shared", "db", 1)]
    file.write_text(text.replace("spread", "spraed"))
    shown = server.host.refused(*words)
    assert "CPU affinity 'spraed' is unknown" in shown
    assert "Line 5: cpu_affinity: spraed" in shown


def test_warnings_about_other_instances_are_not_repeated(server: Server) -> None:
    server.create("odd", "--cpus=4", "--memory-policy=local", "--memory-base=0x200000000")
    assert set(server.warnings) == {"memory-not-local"}
    server.create("web", "--cpu-count=2")
    assert server.warnings == {}


@pytest.mark.parametrize("text", ["", "x", "-1", "1-0", "0,0", "1024", "0-99999999", "0x1", "0;1"])
def test_node_lists_that_are_none_are_refused(host: Host, text: str) -> None:
    shown = host.refused("create", "web", "--cpus=4", "--memory=1GB", f"--numa-nodes={text}")
    assert "is no list of NUMA nodes" in shown


@pytest.mark.parametrize("option", ["--cpu-affinity", "--memory-policy"])
def test_policies_that_do_not_exist_are_wrong_usage(host: Host, option: str) -> None:
    done = host.run("create", "web", "--cpus=4", "--memory=1GB", f"{option}=tight")
    assert done.returncode == 2
    assert "tight" in done.stderr


def test_a_baseline_of_another_machine_has_no_cores_and_that_is_said_when_they_matter(host: Host) -> None:
    words = ("create", "web", "--cpu-count=2", "--memory=1GB")
    assert host.json(*words, "--dry-run")["warnings"] == []
    shown = host.ok(*words, "--cpu-affinity=compact", "--root=/nonexistent")
    assert "WARNING: web: SMT siblings are not known: each CPU counts as a core of its own\n" in shown
    assert "/nonexistent/sys/devices/system/cpu/present cannot be read" in shown


@pytest.fixture
def forgetful(bare: Host) -> Host:
    """A host whose kernel does not show the NUMA nodes and policies of its instances."""
    bare.start("--fault=policies-hidden")
    bare.init()
    return bare


PLACED = ("create", "web", "--cpu-count=2", "--memory=1GB", "--cpu-affinity=spread", "--memory-policy=local")


@BOTH
def test_what_a_kernel_does_not_show_of_the_wishes_is_known_all_the_same(forgetful: Host) -> None:
    created = forgetful.json(*PLACED)["after"]
    assert (created["cpu_affinity"], created["memory_policy"]) == ("spread", "local")
    assert forgetful.instances()["web"] == created
    assert not forgetful.json(*PLACED, "--ensure")["changed"]
    refused = forgetful.refused(*PLACED, "--cpu-affinity=compact", "--ensure")
    assert "CPU affinity: has spread, asked compact" in refused
    ensure = ("ensure", "web", "--state=present", "--cpu-affinity=spread")
    assert forgetful.json(*ensure)["before"] == created
    # An instance that has none is not given those of an older one with its name.
    forgetful.ok("delete", "web")
    forgetful.ok("create", "web", "--cpu-count=2", "--memory=1GB")
    assert forgetful.instances()["web"]["cpu_affinity"] is None


@BOTH
def test_what_can_be_changed_in_place_is_also_where_a_kernel_does_not_show_the_wishes(
    forgetful: Host, tmp_path: Path
) -> None:
    directory = tmp_path / "instances.d"
    directory.mkdir()
    words = ("apply", f"--directory={directory}")
    for count in (2, 4):
        (directory / "web.yaml").write_text(
            f"name: web\ncpu_count: {count}\nmemory: 1GB\ncpu_affinity: spread\n"
        )
        assert forgetful.json(*words)["changed"]
        assert not forgetful.json(*words)["changed"]
    undone = forgetful.json("rollback")
    assert [operation["operation"] for step in undone["steps"] for operation in step["operations"]] == [
        "cpu-remove"
    ]
    before = forgetful.instances()["web"]
    forgetful.ok("delete", "web")
    forgetful.ok("rollback")
    after = forgetful.instances()["web"]
    assert after | {"memory_base": 0} == before | {"memory_base": 0}


# -- what the kernel says of the host -----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def resources(machine: Machine) -> Resources:
    return hardware.propose(hardware.discover(machine.root))


def test_sockets_and_siblings_are_read(machine: Machine) -> None:
    found = read(resources(machine), machine.root)
    assert (found.unknown, found.foreign) == (None, False)
    assert (found.siblings[1], found.siblings[9]) == ((1, 9), (1, 9))
    assert (found.sockets[3], found.sockets[11], found.sockets[4]) == (0, 0, 1)


def test_cpus_that_are_offline_are_cores_of_their_own_and_named(machine: Machine) -> None:
    known = resources(machine)
    for cpu in (6, 7, 14):
        for name in ("physical_package_id", "core_id", "core_cpus_list"):
            (machine.root / f"sys/devices/system/cpu/cpu{cpu}/topology/{name}").unlink()
    machine.file("sys/devices/system/cpu/cpu15/topology/core_cpus_list", "15")
    found = read(known, machine.root)
    assert found.unknown is not None
    assert "CPUs 6-7,14:" in found.unknown
    assert found.siblings.keys() == set(range(16)) - {6, 7, 14}
    assert found.siblings[15] == (15,)


@pytest.mark.parametrize("control", ["notsupported", "on", "off", "forceoff", "notimplemented"])
def test_cpus_that_are_offline_are_known_cores_only_where_no_processor_has_smt(
    machine: Machine, control: str
) -> None:
    known = resources(machine)
    machine.file("sys/devices/system/cpu/smt/control", control)
    for cpu in range(16):
        machine.file(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
    for cpu in (6, 14):
        for name in ("physical_package_id", "core_id", "core_cpus_list"):
            (machine.root / f"sys/devices/system/cpu/cpu{cpu}/topology/{name}").unlink()
    found = read(known, machine.root)
    if control == "notsupported":
        assert found.unknown is None
        assert (found.siblings[6], found.siblings[14]) == ((6,), (14,))
    else:
        assert "CPUs 6,14:" in (found.unknown or "")
        assert {6, 14}.isdisjoint(found.siblings)
    assert {6, 14}.isdisjoint(found.sockets)


@pytest.mark.parametrize("text", ["", "garbage", "9-1", "-", "99999999999999999999", "1" * 5000, "\0"])
def test_what_is_no_list_says_nothing(machine: Machine, text: str) -> None:
    known = resources(machine)
    machine.file("sys/devices/system/cpu/cpu1/topology/core_cpus_list", text)
    found = read(known, machine.root)
    assert found.siblings[9] == (1, 9)  # as its sibling says


def test_another_machines_baseline_takes_nothing_from_this_one(machine: Machine) -> None:
    known = resources(machine)
    machine.file("sys/devices/system/cpu/present", "0-1")
    found = read(known, machine.root)
    assert (found.siblings, found.foreign) == ({}, True)
    assert found.unknown == "the baseline has 16 CPUs and this host 2: it is another machine's"


def test_numbers_may_be_missing(machine: Machine) -> None:
    machine.file("sys/devices/system/cpu/present", "0-3,8-15")
    machine.file("sys/devices/system/cpu/online", "0-3,8-15")
    found = read(resources(machine), machine.root)
    assert found.unknown is None
    assert found.siblings[3] == (3, 11)


@pytest.mark.parametrize(("text", "node"), [("1", 1), ("-1", None), ("x", None), ("", None)])
def test_the_node_of_a_pci_device(machine: Machine, text: str, node: int | None) -> None:
    machine.pci("0000:81:00.0", "0x020000", numa_node=text)
    assert pci_numa_node(machine.root, "0000:81:00.0") == node
    assert pci_numa_node(machine.root, "../../../../proc") is None
    known = resources(machine)
    bare = known.but(devices=tuple(device.but(numa_node=None) for device in known.devices))
    assert [device.numa_node for device in locate_devices(bare, machine.root).devices] == [node]
    assert locate_devices(bare.but(numa_nodes=()), machine.root).devices[0].numa_node is None


def test_wishes_of_another_form_are_not_taken_for_ours(host: Host) -> None:
    blob = V1().create(Instance("kerf", 1, (4,), 0x80000000, GB, (), (0,), "compact", "bind"))
    write_overlay(host, blob.replace(b"compact\0", b"comp\xffct\0").replace(b"bind\0", b"b\xffnd\0"))
    found = json.loads(host.ok("show", "--format=json"))["instances"]["kerf"]
    assert (found["numa_nodes"], found["cpu_affinity"], found["memory_policy"]) == ([0], None, None)
