# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the kerf document: each has a state that breaks it, and the document's words for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from zernel.devicetree.dts import parse
from zernel.devicetree.interpret import interpret
from zernel.devicetree.load import read_file
from zernel.devicetree.model import DeviceUse, Instance, System
from zernel.devicetree.validate import is_valid, validate, validate_interpretation
from zernel.errors import Problem

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
GB = 1 << 30


@pytest.fixture
def system() -> System:
    """The document's complete example."""
    found = read_file(EXAMPLES / "system.dts").system
    assert found is not None
    return found


def change(system: System, index: int, **values: object) -> System:
    instances = list(system.instances)
    instances[index] = instances[index].but(**values)  # type: ignore[arg-type]
    return system.but(instances=tuple(instances))


def only(problems: list[Problem], code: str) -> str:
    assert [problem.code for problem in problems] == [code]
    return problems[0].render()


def test_the_documents_example_is_valid(system: System) -> None:
    assert validate(system) == []


def test_cpu_overlap_in_the_documents_words(system: System) -> None:
    system = system.but(instances=system.instances[:2])
    system = change(system, 0, cpus=tuple(range(4, 12)))
    assert only(validate(system), "cpu-overlap") == (
        "ERROR: database: CPU allocation conflict with web-server\n"
        "  Instance web-server uses CPUs: 4-11\n"
        "  Instance database requested CPUs: 8-15\n"
        "  Overlapping CPUs: 8, 9, 10, 11\n"
        "\n"
        "  Suggestion: Change database to use CPUs 12-19\n"
        "  Alternative: Reduce web-server allocation to CPUs 4-7"
    )


def test_memory_overflow_in_the_documents_words(system: System) -> None:
    shown = only(validate(change(system, 2, memory_base=0x400000000)), "memory-outside-pool")
    assert shown == (
        "ERROR: compute: Memory allocation exceeds memory pool\n"
        "  Memory pool range: 0x80000000 - 0x400000000 (14GB available)\n"
        "  Instance compute requested: 0x400000000 - 0x500000000 (4GB)\n"
        "  Overflow: Exceeds pool end by 4GB (0x100000000 bytes)\n"
        "\n"
        "  Suggestion: Change memory-base to 0x300000000\n"
        "  Note: This would place memory at end of memory pool\n"
        "\n"
        "  Context:\n"
        "    Memory pool ends at: 0x400000000\n"
        "    Requested start: 0x400000000 (exactly at pool end)\n"
        "    Requested size: 0x100000000\n"
        "    Would end at: 0x500000000 (outside pool)"
    )


def test_memory_overlap_in_the_documents_words(system: System) -> None:
    system = change(system, 2, memory_base=0x280000000)
    assert only(validate(system), "memory-overlap") == (
        "ERROR: database and compute: Memory region overlap detected\n"
        "  database memory: 0x100000000 - 0x300000000 (8GB)\n"
        "  compute memory:  0x280000000 - 0x380000000 (4GB)\n"
        "  Overlapping region: 0x280000000 - 0x300000000 (2GB overlap)\n"
        "\n"
        "  Suggestion: Move compute memory to 0x300000000\n"
        "  Alternative: Reduce database memory size to 6GB (end at 0x280000000)"
    )


def test_unknown_device_in_the_documents_words(system: System) -> None:
    shown = only(validate(change(system, 1, devices=(DeviceUse("nvme1", namespace=1),))), "device-not-found")
    for line in (
        "ERROR: database: Invalid device reference",
        "  Requested device: nvme1:ns1",
        "  Available storage devices: nvme0",
        "  Available namespaces on nvme0: ns2, ns3, ns4",
        "  Note: Namespace ns1 is reserved for host kernel",
        "  Suggestion: Change device reference to nvme0:ns2",
        "    - nvme0:ns2 (available)",
        "    - nvme0:ns4 (available)",
    ):
        assert line in shown.split("\n")


@pytest.mark.parametrize(
    ("index", "values", "code", "headline"),
    [
        (1, {"cpus": (8, 35)}, "cpu-not-found", "database: CPU 35 does not exist (hardware has 0-31)"),
        (0, {"cpus": (2, 4)}, "cpu-reserved", "web-server: CPU 2 is reserved for host kernel"),
        (0, {"cpus": (4, 4)}, "cpu-duplicate", "web-server: CPUs listed twice: 4"),
        (0, {"cpus": ()}, "cpu-none", "web-server: Instance has no CPU"),
        (
            0,
            {"memory_base": 0x50000000, "memory_bytes": 0x10000000},
            "memory-outside-pool",
            "web-server: Memory [0x50000000-0x60000000] outside memory pool",
        ),
        (0, {"memory_bytes": 0}, "memory-zero", "web-server: Instance has no memory"),
        (0, {"memory_bytes": 5000}, "memory-size-not-aligned", "web-server: Memory size is not a multiple"),
        (
            0,
            {"devices": (DeviceUse("eth0", vf=10),)},
            "device-part-range",
            "web-server: VF ID 10 exceeds available VFs (1-7)",
        ),
        (
            0,
            {"devices": (DeviceUse("eth0", vf=0),)},
            "device-part-reserved",
            "web-server: VF 0 is reserved for host kernel",
        ),
        (
            0,
            {"devices": (DeviceUse("nvme0", namespace=1),)},
            "device-part-reserved",
            "web-server: Namespace 1 is reserved for host kernel",
        ),
        (
            0,
            {"devices": (DeviceUse("nvme0", vf=1),)},
            "device-part-range",
            "web-server: Device nvme0 has no VFs",
        ),
        (
            0,
            {"devices": (DeviceUse("eth0", vf=2),)},
            "device-shared",
            "web-server and database: Both allocated eth0:vf2",
        ),
        (
            0,
            {"devices": (DeviceUse("eth0", vf=1),) * 2},
            "device-duplicate",
            "web-server: Device eth0:vf1 is listed twice",
        ),
        (0, {"name": "database"}, "duplicate-name", 'Duplicate instance name: "database"'),
        (0, {"name": "../../evil"}, "bad-name", "Invalid instance name: '../../evil'"),
        (0, {"id": 2}, "duplicate-id", "Duplicate instance ID: 2 assigned to both web-server and database"),
        (0, {"id": 0}, "id-out-of-range", "web-server: Instance id 0 is out of range"),
        (0, {"id": 2048}, "id-out-of-range", "web-server: Instance id 2048 is out of range"),
        (0, {"numa_nodes": (3,)}, "numa-not-found", "web-server: NUMA node 3 does not exist"),
    ],
)
def test_every_rule_for_instances(
    system: System, index: int, values: dict[str, object], code: str, headline: str
) -> None:
    problems = validate(change(system, index, **values))
    shown = only(problems, code)
    assert shown.startswith(f"ERROR: {headline}")
    assert problems[0].suggestion
    assert not is_valid(problems)


def test_misaligned_memory_is_a_warning_with_the_documents_advice(system: System) -> None:
    system = change(system, 0, memory_base=0x80000001, memory_bytes=0x1000)
    problems = validate(system)
    shown = only(problems, "memory-not-aligned")
    assert shown.startswith("WARNING: web-server: Memory base address not page-aligned\n")
    assert "Suggestion: Use base address 0x80000000 (already aligned)" in shown
    assert is_valid(problems)


def test_a_device_given_whole_takes_its_parts(system: System) -> None:
    devices = tuple(device.but(host_reserved_vf=()) for device in system.resources.devices)
    system = system.but(resources=system.resources.but(devices=devices))
    whole = system.instances[2].but(devices=(DeviceUse("eth0"),))
    system = system.but(instances=(system.instances[0], whole))
    shown = only(validate(system), "device-shared")
    assert "Instance web-server uses eth0:vf1" in shown
    assert "Instance compute requested eth0" in shown

    assert "Suggestion: Change device reference to eth0:vf2" in shown


def test_a_device_that_the_host_shares_is_suggested_in_parts(system: System) -> None:
    problems = validate(change(system, 2, devices=(DeviceUse("eth0"),)))
    found = next(problem for problem in problems if problem.code == "device-host-reserved")
    assert found.suggestion == "Change device reference to eth0:vf3"


def test_a_device_listed_whole_and_in_part_is_the_instances_own_mistake(system: System) -> None:
    devices = tuple(device.but(host_reserved_ns=()) for device in system.resources.devices)
    system = system.but(resources=system.resources.but(devices=devices))
    uses = (DeviceUse("nvme0", namespace=3), DeviceUse("nvme0"))
    system = system.but(instances=(system.instances[2].but(devices=uses),))
    shown = only(validate(system), "device-duplicate")
    assert shown.startswith("ERROR: compute: Device nvme0 is listed whole and in part")
    assert "Suggestion: List nvme0:ns3 only" in shown


def test_the_sum_of_memory_is_checked(system: System) -> None:
    big = Instance("big", 9, (31,), 0x80000000, 14 * GB)
    codes = [problem.code for problem in validate(system.but(instances=(*system.instances, big)))]
    assert "memory-sum" in codes
    (problem,) = (
        p for p in validate(System(system.resources, (*system.instances, big))) if p.code == "memory-sum"
    )
    assert problem.category == "Total memory allocation (28GB) exceeds memory pool (14GB)"


BASE = """/multikernel-v1/;
/ {
resources {
cpus { total = <8>; host-reserved = <0 1>; available = <2 3 4 5 6 7>; };
memory { total-bytes = <0x200000000>; host-reserved-bytes = <0x80000000>;
memory-pool-base = <0x80000000>; memory-pool-bytes = <0x180000000>; };
devices { eth0: ethernet@0 {
pci-id = "0000:01:00.0"; sriov-vfs = <4>; host-reserved-vf = <0>; available-vfs = <1 2 3>; }; };
};
};
"""


def problems_of(text: str, *, baseline: bool = True) -> list[Problem]:
    return validate_interpretation(interpret(parse(text, "test.dts")), baseline=baseline)


def test_the_base_of_the_following_tests_is_valid() -> None:
    assert problems_of(BASE) == []


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("total = <8>", "total = <6>", "cpu-not-found", 4),
        ("total = <8>", "total = <0>", "cpu-total", 4),
        ("total = <8>", "total = <9>", "cpu-unlisted", 4),
        ("host-reserved = <0 1>", "host-reserved = <0 1 2>", "cpu-reserved-and-available", 4),
        ("host-reserved = <0 1>", "host-reserved = <0 0 1>", "cpu-duplicate", 4),
        ("available = <2 3 4 5 6 7>", "available = <>", "cpu-none", 4),
        ("total = <8>;", "", "missing-property", 4),
        ("total = <8>", 'total = "8"', "wrong-type", 4),
        ("total-bytes = <0x200000000>", "total-bytes = <0>", "memory-zero", 5),
        ("<0x180000000>", "<0xffffffffffff0000>", "pool-wraps", 6),
        ("<0x180000000>", "<0x190000000>", "memory-exceeds-total", 6),
        ("memory-pool-base = <0x80000000>", "memory-pool-base = <0x80000010>", "pool-not-aligned", 6),
        ("memory-pool-base = <0x80000000>", "memory-pool-base = <0x90000000>", "pool-outside-memory", 6),
        ("host-reserved-bytes = <0x80000000>", "host-reserved-bytes = <0>", "memory-none-reserved", 5),
        ('"0000:01:00.0"', '"01:00.0"', "pci-id-form", 8),
        ("available-vfs = <1 2 3>", "available-vfs = <1 2 4>", "device-part-range", 8),
        ("available-vfs = <1 2 3>", "available-vfs = <0 1>", "device-part-reserved", 8),
        ("available-vfs = <1 2 3>", "available-vfs = <1 1>", "device-part-duplicate", 8),
        ("sriov-vfs = <4>;", "", "device-parts", 8),
        ("sriov-vfs", "sriov-vf", "unknown-property", 8),
        ("memory {", "memori {", "unknown-node", 5),
        ("memory {", "memori {", "no-memory", 3),
        ("memory {", "memory { }; memory {", "duplicate-node", 5),
        ("/ {\n", "/ { chosen { };\n", "unknown-node", 2),
        (
            "eth0: ethernet@0",
            'eth0: ethernet@0 { }; eth1: ethernet@1 { pci-id = "0000:01:00.0"; }; e: gpu@0',
            "pci-id-duplicate",
            7,
        ),
    ],
)
def test_every_rule_for_baselines_with_its_line(old: str, new: str, code: str, line: int) -> None:
    found = {problem.code: problem for problem in problems_of(BASE.replace(old, new))}
    assert code in found
    assert found[code].locations[0].line == line
    assert found[code].suggestion


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = (EXAMPLES / "conflict_example.dts").read_text()
    codes = {problem.code for problem in problems_of(text)}
    assert codes == {
        "unknown-property",
        "dangling-reference",
        "baseline-has-instances",
        "cpu-not-found",
        "cpu-reserved-and-available",
        "pool-not-aligned",
        "memory-exceeds-total",
        "pci-id-form",
        "device-part-range",
        "device-part-reserved",
        "cpu-reserved",
    }


def test_a_misspelled_property_gets_the_right_spelling() -> None:
    (problem,) = problems_of(BASE.replace("available-vfs", "availible-vfs"))
    assert problem.suggestion == "Did you mean 'available-vfs'?"


def test_numa_rules() -> None:
    topology = """topology { numa-nodes {
    node@0 { node-id = <0>; memory-base = <0x0>; memory-size = <0x100000000>; cpus = <0 1 2 3>; };
    node@1 { node-id = <NN>; memory-base = <BASE>; memory-size = <0x100000000>; cpus = <CPUS>; };
    }; };"""
    text = BASE.replace("devices {", topology + "devices {")

    def codes(node: str, base: str, cpus: str) -> list[str]:
        filled = text.replace("NN", node).replace("<BASE>", f"<{base}>").replace("CPUS", cpus)
        return [problem.code for problem in problems_of(filled)]

    assert codes("1", "0x100000000", "4 5 6 7") == []
    assert codes("0", "0x100000000", "4 5 6 7") == ["numa-duplicate"]
    assert codes("1", "0x80000000", "4 5 6 7") == ["numa-overlap"]
    assert codes("1", "0x100000000", "3 4") == ["numa-cpu-shared"]
    assert codes("1", "0x100000000", "8") == ["cpu-not-found"]
    assert codes("1", "0xffffffffffffffff", "4") == ["numa-wraps"]


def test_a_pool_above_a_hole_is_valid_where_the_topology_shows_it() -> None:
    text = BASE.replace("memory-pool-base = <0x80000000>", "memory-pool-base = <0x100000000>")
    assert [problem.code for problem in problems_of(text)] == ["pool-outside-memory"]
    node = "node-id = <0>; memory-base = <0>; memory-size = <0x280000000>; cpus = <0>;"
    topology = f"topology {{ numa-nodes {{ node@0 {{ {node} }}; }}; }};"
    found = problems_of(text.replace("devices {", topology + "devices {"))
    assert [problem.code for problem in found] == ["numa-cpu-unlisted"]


def test_dangling_references_say_how_to_define_them() -> None:
    owned = "cpus = <2>; memory-base = <0x80000000>; memory-bytes = <0x1000>; devices = <&eth0_vf3>;"
    instances = f"instances {{ a {{ resources {{ {owned} }}; }}; }};"
    text = BASE.removesuffix("};\n") + instances + "\n};\n"
    (problem,) = problems_of(text, baseline=False)
    assert problem.category == "Dangling phandle reference: eth0_vf3 not defined"
    assert problem.suggestion == "Define it: eth0_vf3: ethernet-vf@3 { parent = <&eth0>; vf-id = <3>; };"
    defined = text.removesuffix("};\n") + problem.suggestion.removeprefix("Define it: ") + "\n};\n"
    (unallocated,) = problems_of(defined, baseline=False)
    assert unallocated.category == "5 CPUs (83% of memory pool) are unallocated"
    assert is_valid([unallocated])
