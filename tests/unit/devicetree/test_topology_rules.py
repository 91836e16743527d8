# SPDX-License-Identifier: GPL-3.0-or-later
"""numa-nodes, cpu-affinity and memory-policy in a file: what cannot be, and what is slow, with its line."""

from __future__ import annotations

import pytest

from zernel.devicetree import fdt, render
from zernel.devicetree.dts import parse
from zernel.devicetree.interpret import interpret
from zernel.devicetree.validate import is_valid, validate_interpretation
from zernel.errors import Problem

# The kerf document's example of a NUMA configuration, with devices, and with what the instance has left open.
SOURCE = """/dts-v1/;
/ {
resources {
cpus { total = <32>; host-reserved = <0 1 2 3>;
available = <4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31>; };
memory { total-bytes = <0x10 0x0>; host-reserved-bytes = <0x80000000>;
memory-pool-base = <0x80000000>; memory-pool-bytes = <0xf 0x80000000>; };
devices { eth0: ethernet@0 { numa-node = <1>; }; gpu0: gpu@0 { numa-node = <0>; }; gpu1: gpu@1 { }; };
topology { numa-nodes {
node@0 { node-id = <0>; memory-base = <0x0 0x0>; memory-size = <0x8 0x0>;
cpus = <0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15>; };
node@1 { node-id = <1>; memory-base = <0x8 0x0>; memory-size = <0x8 0x0>;
cpus = <16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31>; };
}; };
};
instances { web-server { resources {
cpus = <CPUS>;
memory-base = <MEMORY>;
memory-bytes = <0x2 0x0>;
numa-nodes = <NODES>;
cpu-affinity = "AFFINITY";
memory-policy = "POLICY";
devices = <DEVICES>;
}; }; };
};
"""


def problems_of(**values: str) -> list[Problem]:
    given = {"CPUS": "4 5 6 7", "MEMORY": "0x1 0x0"} | values
    lines = []
    for line in SOURCE.split("\n"):
        word = next((word for word in given if word in line), None)
        if word is not None:
            lines.append(line.replace(word, given[word]))
        elif not any(word in line for word in ("NODES", "AFFINITY", "POLICY", "DEVICES")):
            lines.append(line)
        else:
            lines.append("")
    return problems_in("\n".join(lines))


def problems_in(text: str) -> list[Problem]:
    found = validate_interpretation(interpret(parse(text, "numa.dts")), baseline=False)
    return [problem for problem in found if problem.code != "cpu-unallocated"]  # here are always some


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"NODES": "0", "AFFINITY": "compact", "POLICY": "local"},
        {"NODES": "0 1", "AFFINITY": "spread", "CPUS": "4 5 16 17"},
        {"NODES": "0 1", "AFFINITY": "spread", "CPUS": "4 5 16"},
        {"AFFINITY": "local", "POLICY": "bind", "DEVICES": "&gpu0"},
        {"AFFINITY": "local", "CPUS": "4 16", "DEVICES": "&gpu0>, <&eth0"},
        {"POLICY": "bind", "CPUS": "4 16", "MEMORY": "0x7 0x0"},  # across the nodes' border
    ],
)
def test_what_is_where_it_wants_to_be_is_valid(values: dict[str, str]) -> None:
    assert problems_of(**values) == []


@pytest.mark.parametrize(
    ("values", "code", "line", "severity", "headline", "suggestion"),
    [
        (
            {"NODES": "0 2"},
            "numa-not-found",
            20,
            "ERROR",
            "NUMA node 2 does not exist",
            "Use one of the nodes",
        ),
        (
            {"NODES": "0", "CPUS": "14 15 16"},
            "numa-cpu-outside",
            20,
            "ERROR",
            "CPU 16 is not on NUMA node 0",
            "Change web-server to use CPUs 4,14-15",
        ),
        (
            {"AFFINITY": "kompact"},
            "cpu-affinity-unknown",
            21,
            "ERROR",
            "CPU affinity 'kompact' is unknown",
            'Use "compact"',
        ),
        (
            {"POLICY": "bound"},
            "memory-policy-unknown",
            22,
            "ERROR",
            "Memory policy 'bound' is unknown",
            'Use "',
        ),
        (
            {"AFFINITY": "compact", "CPUS": "4 16"},
            "cpu-not-compact",
            21,
            "WARNING",
            "CPUs are on 2 NUMA nodes, 1 would be enough",
            "Create web-server anew with --cpu-count=2 --cpu-affinity=compact",
        ),
        (
            {"AFFINITY": "spread"},
            "cpu-not-spread",
            21,
            "WARNING",
            "CPUs are not spread evenly",
            "Use more CPUs of NUMA node 1: 16-31 are free",
        ),
        (
            {"AFFINITY": "local", "DEVICES": "&eth0"},
            "cpu-not-local",
            21,
            "WARNING",
            "CPUs are not local to the devices",
            "Use CPUs near the devices: 16-31 are free",
        ),
        (
            {"AFFINITY": "local", "DEVICES": "&gpu1"},
            "device-node-unknown",
            21,
            "WARNING",
            "The NUMA node of gpu1 is not known",
            "Give the device its 'numa-node'",
        ),
        ({"AFFINITY": "local", "CPUS": "4 16"}, "cpu-not-local", 21, "WARNING", "CPUs are on 2", "Use fewer"),
        (
            {"NODES": "0", "POLICY": "local", "MEMORY": "0x8 0x0"},  # as the document has it
            "memory-not-local",
            22,
            "WARNING",
            "Memory is not local to NUMA node 0",
            "Change memory-base to 0x80000000",
        ),
        (
            {"POLICY": "bind", "MEMORY": "0x7 0x0"},
            "memory-outside-nodes",
            22,
            "ERROR",
            "Memory is bound to NUMA node 0 and lies outside of it",
            "Change memory-base to 0x80000000",
        ),
        (
            {"NODES": "0 1", "POLICY": "interleave", "MEMORY": "0x7 0x0"},
            "memory-not-interleaved",
            22,
            "WARNING",
            "Memory is divided between NUMA nodes, not interleaved",
            "Interleave in the instance",
        ),
        (
            {"NODES": "0 1", "POLICY": "interleave"},
            "memory-not-interleaved",
            22,
            "WARNING",
            "Memory is not interleaved",
            "Change memory-base to 0x700000000, which has a part of each node",
        ),
        (
            {"NODES": "0", "POLICY": "interleave"},
            "memory-not-interleaved",
            22,
            "WARNING",
            "Memory is not interleaved",
            "Name nodes whose memory has neighbouring addresses, or use memory-policy local or bind",
        ),
    ],
)
def test_every_rule_with_its_line(
    values: dict[str, str], code: str, line: int, severity: str, headline: str, suggestion: str
) -> None:
    (problem,) = problems_of(**values)
    assert (problem.code, problem.severity, problem.subject) == (code, severity, "web-server")
    assert problem.category.startswith(headline)
    assert (problem.suggestion or "").startswith(suggestion)
    assert (problem.locations[0].file, problem.locations[0].line) == ("numa.dts", line)
    assert is_valid([problem]) == (severity == "WARNING")


def test_memory_on_several_nodes_is_told_with_its_shares() -> None:
    (problem,) = problems_of(POLICY="local", MEMORY="0x7 0x0")
    assert "web-server memory: 0x700000000 - 0x900000000: 4GB on NUMA node 0, 4GB on NUMA node 1" in (
        problem.explanation
    )


def test_all_of_them_are_told_at_once() -> None:
    found = problems_of(NODES="0", CPUS="16 17", AFFINITY="x", POLICY="bind", MEMORY="0x8 0x0")
    assert {problem.code for problem in found} == {
        "numa-cpu-outside",
        "cpu-affinity-unknown",
        "memory-outside-nodes",
    }


@pytest.mark.parametrize(
    ("words", "code", "severity"),
    [
        ('memory-policy = "bind";', "memory-policy-without-nodes", "ERROR"),
        ('memory-policy = "local";', "memory-policy-without-nodes", "WARNING"),
        ("numa-nodes = <0>;", "numa-not-found", "ERROR"),
    ],
)
def test_without_nodes_in_the_baseline_a_policy_is_no_more_than_a_word(
    words: str, code: str, severity: str
) -> None:
    lines = SOURCE.split("\n")
    start, end = lines.index("topology { numa-nodes {"), lines.index("}; };")
    text = "\n".join([*lines[:start], *lines[end + 1 :]]).replace("numa-node = <1>;", "")
    text = text.replace("numa-node = <0>;", "").replace("numa-nodes = <NODES>;", words)
    text = text.replace('cpu-affinity = "AFFINITY";', 'cpu-affinity = "compact";')
    text = text.replace('memory-policy = "POLICY";', "").replace("devices = <DEVICES>;", "")
    text = text.replace("CPUS", "4").replace("MEMORY", "0x1 0x0")
    (problem,) = problems_in(text)
    assert (problem.code, problem.severity) == (code, severity)
    assert problem.suggestion


def test_a_device_on_a_node_that_is_not_there() -> None:
    text = SOURCE[: SOURCE.index("instances {")].replace("numa-node = <1>", "numa-node = <7>") + "};\n"
    (problem,) = validate_interpretation(interpret(parse(text, "numa.dts")), baseline=True)
    assert (problem.code, problem.subject, problem.locations[0].line) == ("numa-not-found", "eth0", 8)


def test_where_devices_are_is_written_and_read_back() -> None:
    text = SOURCE[: SOURCE.index("instances {")] + "};\n"
    system = interpret(parse(text, "numa.dts")).system
    assert system is not None
    assert [device.numa_node for device in system.resources.devices] == [1, 0, None]
    tree = render.system_tree(system)
    assert interpret(parse(render.source(tree), "printed")).system == system
    assert interpret(fdt.read(fdt.write(tree), "blob")).system == system
