# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays validated against what they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from zernel.devicetree import fdt
from zernel.devicetree.dts import parse
from zernel.devicetree.interpret import interpret
from zernel.devicetree.load import read_file
from zernel.devicetree.model import DeviceUse, System
from zernel.devicetree.overlays import overlaid
from zernel.devicetree.validate import validate_interpretation
from zernel.errors import Problem
from zernel.multikernel.wire_v1 import V1

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


@pytest.fixture
def base() -> System:
    found = read_file(EXAMPLES / "system.dts").system
    assert found is not None
    return found


def outcome(text: str, base: System) -> tuple[System, list[Problem]]:
    found = overlaid(parse(f"/dts-v1/; /plugin/;\n/ {{ {text} }};", "test.dtso"), base)
    assert found.system is not None
    problems = validate_interpretation(found, baseline=False)
    return found.system, [problem for problem in problems if problem.severity != "WARNING"]


def v1(operations: str) -> str:
    return f'fragment@0 {{ target-path = "/"; __overlay__ {{ {operations} }}; }};'


NEW = """instance-create { instance-name = "new"; id = <9>; resources { cpus = /bits/ 64 <24 25>;
memory-base = <0x0 BASE>; memory-bytes = <0x0 0x1000>; device-names = "eth0_vf3"; }; };"""


def test_our_own_overlays_give_the_instance_that_they_carry(base: System) -> None:
    database = base.instances[1]
    empty = base.but(instances=())
    found = overlaid(fdt.read(V1().create(database), "overlay"), empty)
    assert found.system == base.but(instances=(database,))
    assert overlaid(fdt.read(V1().remove("database"), "overlay"), found.system).system == empty


def test_memory_that_the_kernel_places_must_fit_somewhere(base: System) -> None:
    text = """fragment@0 { target-path = "/instances"; __overlay__ { instance-create { instance-name = "new";
        resources { cpus = /bits/ 64 <24 25>; memory-bytes = <0x0 SIZE>; }; }; }; };
        fragment@1 { target-path = "/instances/new"; __overlay__ {
        cpu-add { cpu@0 { reg = <26>; }; }; }; };"""
    empty = base.but(instances=())
    system, problems = outcome(text.replace("SIZE", "0x1000"), empty)
    assert problems == []
    assert [one.name for one in system.instances] == ["new"]
    assert system.instances[0].cpus == (24, 25, 26)
    free = base.resources.memory.pool_bytes
    _, problems = outcome(
        text.replace("0x0 SIZE", f"{(free + 4096) >> 32} {(free + 4096) & 0xFFFFFFFF}"), empty
    )
    assert "not-enough-memory" in {problem.code for problem in problems}


def test_an_instance_that_takes_what_others_have_is_refused(base: System) -> None:
    system, problems = outcome(v1(NEW.replace("BASE", "0x80000000").replace("24 25", "7 25")), base)
    assert system.instances[-1].name == "new"
    assert {problem.code for problem in problems} == {"cpu-overlap", "memory-overlap", "memory-sum"}


def test_what_is_removed_in_the_same_overlay_is_free_after_it(base: System) -> None:
    operations = v1(NEW.replace("BASE", "0x80000000") + 'instance-remove { instance-name = "web-server"; };')
    system, problems = outcome(operations, base)
    assert problems == []
    assert [instance.name for instance in system.instances] == ["database", "compute", "new"]


def test_cpus_and_devices_move_in_both_formats(base: System) -> None:
    devices = (
        *base.resources.devices,
        base.resources.devices[1].but(
            name="gpu0",
            kind="gpu",
            pci_id="0000:03:00.0",
            namespaces=None,
            host_reserved_ns=(),
            available_ns=(),
        ),
    )
    base = base.but(resources=base.resources.but(devices=devices))
    changes = """cpu-add { mk,instance = "compute"; cpu@24 { reg = <0x0 24>; }; };
    cpu-remove { mk,instance = "compute"; cpu@16 { reg = <0x0 16>; }; };
    device-add { mk,instance = "compute"; pci@0 { pci-id = "0000:03:00.0"; }; };"""
    second = changes.replace('mk,instance = "compute";', "")
    for text in (
        v1(changes),
        f'fragment@0 {{ target-path = "/instances/compute"; __overlay__ {{ {second} }}; }};',
    ):
        system, problems = outcome(text, base)
        assert problems == []
        assert system.instances[2].cpus == tuple(range(17, 25))
        assert system.instances[2].devices == (DeviceUse("gpu0"),)


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ("", "overlay-empty"),
        ('memory-add { mk,instance = "compute"; region@0 { reg = <0 0 0 0x1000>; }; };', "overlay-operation"),
        ("frobnicate { };", "overlay-operation"),
        ('instance-remove { instance-name = "nobody"; };', "instance-not-found"),
        ("instance-remove { };", "instance-not-found"),
        ("instance-create { };", "missing-property"),
        ('instance-create { instance-name = "x"; };', "no-resources"),
        ('instance-create { instance-name = "../../evil"; resources { }; };', "missing-property"),
        ('cpu-remove { mk,instance = "compute"; cpu@4 { reg = <4>; }; };', "cpu-not-owned"),
        ('cpu-add { mk,instance = "compute"; cpu@4 { reg = <4>; }; };', "cpu-overlap"),
        ('cpu-add { mk,instance = "compute"; cpu@16 { reg = <16>; }; };', "cpu-duplicate"),
        ('device-add { mk,instance = "compute"; pci@0 { pci-id = "0000:09:00.0"; }; };', "device-not-found"),
        (
            'device-remove { mk,instance = "compute"; pci@0 { pci-id = "0000:01:00.0"; }; };',
            "device-not-found",
        ),
    ],
)
def test_what_an_overlay_cannot_do(base: System, operations: str, code: str) -> None:
    _, problems = outcome(v1(operations), base)
    assert code in {problem.code for problem in problems}
    assert all(problem.suggestion for problem in problems)


def test_an_overlay_alone_is_refused_with_words() -> None:
    found = interpret(parse(f"/dts-v1/; / {{ {v1('')} }};", "test.dtso"))
    (problem,) = validate_interpretation(found, baseline=False)
    assert problem.code == "is-overlay"
    assert problem.suggestion == "Validate it with its baseline: zernel validate --baseline=FILE OVERLAY"
