# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs and normalised source against dtc and libfdt, in both directions."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.devicetree import fdt, render
from zernel.devicetree.interpret import interpret
from zernel.devicetree.load import read_file
from zernel.devicetree.model import System
from zernel.errors import ZernelError
from zernel.multikernel.wire_v1 import V1

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


def example(name: str) -> System:
    found = read_file(EXAMPLES / name).system
    assert found is not None
    return found


def dtc(data: bytes, source: str, target: str, *options: str) -> bytes:
    done = subprocess.run(
        ["dtc", "-q", "-I", source, "-O", target, *options], input=data, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


NAMES = ["minimal.dts", "baseline.dts", "system.dts"]


@pytest.mark.parametrize("name", NAMES)
def test_dtc_compiles_normalised_source_to_the_same_tree(name: str) -> None:
    system = example(name)
    source = render.source(render.system_tree(system))
    compiled = interpret(fdt.read(dtc(source.encode(), "dts", "dtb", "-@"), "dtc"))
    assert not compiled.problems
    assert compiled.system == system


@pytest.mark.parametrize("name", NAMES)
def test_dtc_reads_our_blobs(name: str, tmp_path: Path) -> None:
    system = example(name)
    blob = fdt.write(render.system_tree(system))
    again = tmp_path / "again.dtb"
    again.write_bytes(dtc(dtc(blob, "dtb", "dts"), "dts", "dtb"))
    assert read_file(again).system == system


def test_libfdt_reads_our_blobs() -> None:
    blob = V1().create(example("system.dts").instances[1])
    code = (
        "import sys, libfdt; t = libfdt.Fdt(sys.stdin.buffer.read());"
        "n = t.path_offset('/fragment@0/__overlay__/instance-create');"
        "r = t.subnode_offset(n, 'resources');"
        "print(t.totalsize(), t.getprop(n, 'instance-name').as_str(), bytes(t.getprop(r, 'cpus')).hex(),"
        "bytes(t.getprop(r, 'device-names')))"
    )
    # Debian's interpreter, where Debian's python3-libfdt is.
    done = subprocess.run(["/usr/bin/python3", "-c", code], input=blob, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    cpus = struct.pack(">8Q", *range(8, 16)).hex()
    assert done.stdout.decode().split() == [str(len(blob)), "database", cpus, r"b'eth0_vf2\x00nvme0_ns2\x00'"]


def test_every_blob_of_the_wire_format_is_read_by_dtc() -> None:
    system, wire = example("system.dts"), V1()
    for blob in (
        wire.baseline(system.resources),
        wire.remove("web-server"),
        *(wire.create(instance) for instance in system.instances),
    ):
        dtc(blob, "dtb", "dts")


def test_the_wire_format_keeps_what_it_carries() -> None:
    system, wire = example("system.dts"), V1()
    assert wire.read_baseline(wire.baseline(system.resources)) == system.resources
    for instance in system.instances:
        assert wire.read_instance(instance.name, instance.id or 0, wire.create(instance)) == instance


def test_a_baseline_of_another_program_gives_the_pool_only() -> None:
    source = """/dts-v1/; / { resources { cpus = /bits/ 64 <2 3>; memory-base = /bits/ 64 <0x100000>;
        memory-bytes = /bits/ 64 <0x200000>; devices { eth0 { device-type = "pci"; }; }; }; };"""
    resources = V1().read_baseline(dtc(source.encode(), "dts", "dtb"))
    assert not resources.complete
    assert resources.cpus.available == (2, 3)
    assert (resources.memory.pool_base, resources.memory.pool_bytes) == (0x100000, 0x200000)
    assert [device.name for device in resources.devices] == ["eth0"]


def test_a_baseline_with_impossible_cpus_is_refused_at_once() -> None:
    source = """/dts-v1/; / { resources { cpus = /bits/ 64 <0x100000000000>;
        memory-base = /bits/ 64 <0x100000>; memory-bytes = /bits/ 64 <0x200000>; }; };"""
    with pytest.raises(ZernelError, match="format that is not understood"):
        V1().read_baseline(dtc(source.encode(), "dts", "dtb"))


@given(st.binary(max_size=400))
def test_garbage_is_refused_as_malformed(data: bytes) -> None:
    with pytest.raises(ZernelError):
        fdt.read(data, "garbage")


@given(st.data())
def test_damaged_blobs_never_give_a_traceback(data: st.DataObject) -> None:
    blob = bytearray(fdt.write(render.system_tree(example("baseline.dts"))))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(4, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        interpret(fdt.read(bytes(blob), "damaged"))
        V1().read_baseline(bytes(blob))
    except ZernelError:
        pass
