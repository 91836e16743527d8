# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms in which trees come: the document's, the kernels' flat ones, and what dtc makes of each."""

from __future__ import annotations

import subprocess

import pytest

from zernel.devicetree import fdt, render
from zernel.devicetree.dts import parse
from zernel.devicetree.interpret import interpret
from zernel.devicetree.model import Cpus, Device, DeviceUse, Memory, Resources
from zernel.devicetree.reading import Interpretation
from zernel.devicetree.validate import is_valid, validate_interpretation

V1 = """/multikernel-v1/;
/ { resources {
  cpus = CPUS;
  memory-base = <0x0 0x80000000>; memory-bytes = <0x100000000>;
  devices { enp9s0 { device-type = "pci"; compatible = "intel,i40e"; pci-id = "0000:09:00.0";
            vendor-id = <0x8086>; device-id = <0x1572>; sriov-vfs = <4>; available-vfs = <1 2 3>; }; };
}; };
"""
V2 = """/dts-v1/;
/ { resources { cpus = /bits/ 64 <4 5 6 7>;
  MEMORY
  devices { pci@0 { pci-id = "0000:09:00.0"; }; }; };
  aliases { nvme1 = "/resources/devices/pci@0"; }; };
"""
POOL = Memory(0x180000000, 0x80000000, 0x80000000, 0x100000000)


def source(text: str) -> Interpretation:
    return interpret(parse(text, "test.dts"))


def compiled(text: str, *options: str) -> Interpretation:
    return interpret(fdt.read(dtc(text.encode(), "dts", "dtb", *options), "test.dtb"))


def dtc(data: bytes, form: str, to: str, *options: str) -> bytes:
    done = subprocess.run(["dtc", "-q", "-I", form, "-O", to, *options], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def codes(found: Interpretation) -> list[str]:
    return [problem.code for problem in validate_interpretation(found, baseline=True)]


@pytest.mark.parametrize("cpus", ["<4 5 6 7>", "/bits/ 64 <4 5 6 7>", "<0 4 0 5 0 6 0 7>", "<0x7>, <5 4 6>"])
def test_v1_is_read_with_cpus_of_32_or_64_bits_from_source_and_blob(cpus: str) -> None:
    text = V1.replace("CPUS", cpus)
    for found in (
        source(text),
        compiled(
            text.replace("multikernel-v1", "dts-v1").replace("<0x100000000>", "<1 0>"),
        ),
    ):
        assert found.dialect == "v1"
        assert codes(found) == ["pool-only"]
        assert found.system is not None
        assert found.system.resources == Resources(
            Cpus(8, (0, 1, 2, 3), (4, 5, 6, 7)),
            POOL,
            (Device("enp9s0", "pci", "intel,i40e", "0000:09:00.0", 4, (), (1, 2, 3)),),
        )


def test_what_a_flat_form_does_not_say_is_said() -> None:
    (problem,) = source(V1.replace("CPUS", "<4 5 7>")).problems
    assert problem.severity == "WARNING"
    assert "CPUs 0-3,6, and the memory below 0x80000000 (2GB)" in problem.render()


def test_one_cpu_of_64_bits_is_not_cpu_0_and_another() -> None:
    found = source(V1.replace("CPUS", "<0 4>"))
    assert found.system is not None
    assert found.system.resources.cpus.available == (4,)


def test_instances_of_v1_name_their_devices() -> None:
    owned = (
        "cpus = /bits/ 64 <4>; memory-base = <0x80000000>; memory-bytes = <0x1000>;"
        'device-names = "enp9s0_vf2";'
    )
    text = (
        V1.replace("CPUS", "<4 5 6 7>").removesuffix("};\n")
        + f"instances {{ a {{ resources {{ {owned} }}; }}; }}; }};"
    )
    found = source(text)
    assert is_valid(validate_interpretation(found, baseline=False))
    assert found.system is not None
    (instance,) = found.system.instances
    assert (instance.cpus, instance.devices) == ((4,), (DeviceUse("enp9s0", vf=2),))


def test_v2_with_addresses_is_read_and_aliases_name_devices() -> None:
    pieces = (
        "memory@1 { reg = <0x1 0x0 0x0 0x80000000>; numa-node-id = <0>; };"
        "memory@0 { reg = /bits/ 64 <0x80000000 0x80000000>; };"
    )
    for found in (source(V2.replace("MEMORY", pieces)), compiled(V2.replace("MEMORY", pieces))):
        assert found.dialect == "v2"
        assert codes(found) == ["pool-only"]
        assert found.system is not None
        assert found.system.resources.memory == POOL
        assert found.system.resources.devices == (Device("nvme1", "pci", None, "0000:09:00.0"),)


@pytest.mark.parametrize(
    ("memory", "code", "says"),
    [
        (
            "memory@0 { size = <0x1 0x0>; numa-node-id = <0>; };",
            "memory-without-address",
            "4GB are asked for",
        ),
        (
            "memory@0 { reg = <0x0 0x80000000 0x0 0x1000>; }; memory@1 { reg = <0x1 0x0 0x0 0x1000>; };",
            "memory-in-pieces",
            "Memory: 0x80000000 - 0x80001000, 0x100000000 - 0x100001000",
        ),
        ("memory@0 { reg = <1>; };", "wrong-type", "a base and a size"),
        ("memory@0 { };", "missing-property", "Property 'size' is missing"),
    ],
)
def test_what_the_model_cannot_hold_of_v2_is_refused_with_words(memory: str, code: str, says: str) -> None:
    found = source(V2.replace("MEMORY", memory))
    assert found.system is None
    (problem,) = (problem for problem in found.problems if problem.code == code)
    assert says in problem.render()
    assert problem.suggestion
    assert problem.locations[0].line


def test_cpu_numbers_beyond_linux_are_refused_without_counting_to_them() -> None:
    found = source(V1.replace("CPUS", "/bits/ 64 <0xffffffffffffffff>"))
    assert found.system is None
    assert [problem.code for problem in found.problems] == ["cpu-not-found"]


REFERENCES = """/dts-v1/;
/ {
resources {
cpus { total = <4>; host-reserved = <0>; available = <1 2 3>; };
memory { total-bytes = <0x0 0x80000000>; host-reserved-bytes = <0x0 0x40000000>;
memory-pool-base = <0x0 0x40000000>; memory-pool-bytes = <0x0 0x40000000>; };
devices { eth0: ethernet@0 { sriov-vfs = <4>; available-vfs = <1 2 3>; }; gpu0: gpu@0 { }; };
};
instances { a { resources { cpus = <1 2 3>; memory-base = <0x0 0x40000000>; memory-bytes = <0x0 0x1000>;
devices = DEVICES; }; }; };
one: ethernet-vf@1 { parent = <&eth0>; vf-id = <1>; };
};
"""


@pytest.mark.parametrize(
    "devices",
    [
        "<&one>, <&gpu0>",
        "<&one &gpu0>",
        "<&{/ethernet-vf@1}>, <&{/resources/devices/gpu@0}>",
        "&one, &gpu0",
        "&{/ethernet-vf@1}, &gpu0",
    ],
)
def test_references_by_label_and_by_path_in_every_way_dtc_writes_them(devices: str) -> None:
    text = REFERENCES.replace("DEVICES", devices)
    blob = dtc(text.encode(), "dts", "dtb", "-@")
    again = dtc(blob, "dtb", "dts").decode()
    for found in (source(text), compiled(text, "-@"), source(again)):
        assert validate_interpretation(found, baseline=False) == []
        assert found.system is not None
        assert found.system.instances[0].devices == (DeviceUse("eth0", vf=1), DeviceUse("gpu0"))
    # Without -@ there are no labels: devices are called after their nodes, and all else is the same.
    plain = compiled(text)
    assert plain.system is not None
    assert plain.system.instances[0].devices == (DeviceUse("ethernet0", vf=1), DeviceUse("gpu0"))


@pytest.mark.parametrize(
    ("devices", "code"),
    [
        ("<&eth0_vf9>", "dangling-reference"),
        ("<&{/nothing}>", "dangling-reference"),
        ("<99>", "dangling-reference"),
        ("<&cyclic>", "not-a-device"),
        ("<&{/}>", "not-a-device"),
    ],
)
def test_references_to_nothing_and_in_circles(devices: str, code: str) -> None:
    text = REFERENCES.replace("DEVICES", devices).removesuffix("};\n")
    text += "cyclic: vf@2 { parent = <&cyclic>; vf-id = <1>; };\n};\n"
    problems = [problem for problem in source(text).problems if problem.subject == "a"]
    assert [problem.code for problem in problems] == [code]
    assert problems[0].suggestion


def test_names_that_are_no_labels_survive_printing() -> None:
    text = REFERENCES.replace("DEVICES", "<&one>").replace(
        "eth0: ethernet@0 {", 'ethernet@0 { label = "en-p.1";'
    )
    found = source(text.replace("<&eth0>", "<&{/resources/devices/ethernet@0}>")).system
    assert found is not None
    assert found.resources.devices[0].name == "en-p.1"
    printed = render.source(render.system_tree(found))
    assert source(printed).system == compiled(printed, "-@").system == found


@pytest.mark.parametrize("name", ["a b", "eth0_vf1", "-x", "x" * 64, "ä", "a\\nb"])
def test_device_names_that_could_not_be_used_are_refused(name: str) -> None:
    text = REFERENCES.replace("DEVICES", "<&one>").replace(
        "gpu0: gpu@0 { }", f'gpu@0 {{ label = "{name}"; }}'
    )
    problems = validate_interpretation(source(text), baseline=False)
    assert [problem.code for problem in problems] == ["device-name"]
