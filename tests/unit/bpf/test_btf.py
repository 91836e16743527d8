# SPDX-License-Identifier: GPL-3.0-or-later
"""The BTF reader: values, members, functions, and data that is damaged."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import btf_blob
from btf_blob import BtfBlob
from zernel.bpf.btf import DATASEC, ENUM, ENUM64, FUNC, STRUCT, VMLINUX, Btf, malformed_kfuncs
from zernel.errors import ZernelError


def test_enumerators_of_32_and_64_bits_signed_and_not_are_found_by_name() -> None:
    blob = BtfBlob()
    blob.enum("small", ("SMALL", 7), ("SAME", 1))
    blob.enum("negative", ("MINUS", -3), signed=True)
    blob.enum("unsigned", ("HIGH", 0xFFFFFFFF))
    blob.enum64("wide", ("WIDE", 1 << 63 | 2), ("SAME", 2))
    blob.enum64("wide_negative", ("WIDE_MINUS", -5), signed=True)
    btf = Btf(blob.bytes())
    assert btf.enum_value("SMALL") == 7
    assert btf.enum_value("MINUS") == -3
    assert btf.enum_value("HIGH") == 0xFFFFFFFF
    assert btf.enum_value("WIDE") == 1 << 63 | 2
    assert btf.enum_value("WIDE_MINUS") == -5
    assert btf.enum_value("SAME", "wide") == 2
    assert btf.enum_value("SAME", "small") == 1
    assert btf.enum_value("SMALL", "wide") is None
    assert btf.enum_value("ABSENT") is None
    # A part of a name is not the name.
    assert btf.enum_value("MALL") is None
    assert btf.enum_value("SMAL") is None


def test_members_have_offsets_also_inside_anonymous_unions_and_as_bit_fields() -> None:
    blob = BtfBlob()
    number = blob.integer()
    union = blob.struct("", 4, ("left", number, 0), ("right", number, 0), kind=btf_blob.UNION)
    blob.struct("thing", 16, ("first", number, 0), ("", union, 64))
    blob.struct("packed", 4, ("flag", number, 1 << 24 | 3), ("count", number, 5 << 24 | 8), bits=True)
    btf = Btf(blob.bytes())
    thing = btf.members(btf.find("thing", STRUCT) or 0)
    assert {name: member.offset for name, member in thing.items()} == {"first": 0, "left": 8, "right": 8}
    packed = btf.members(btf.find("packed", STRUCT) or 0)
    assert (packed["flag"].offset, packed["flag"].bits) == (0, 1)
    assert (packed["count"].offset, packed["count"].bits) == (1, 5)
    assert btf.has_member("thing", "right")
    assert not btf.has_member("thing", "middle")
    assert not btf.has_member("absent", "first")


def test_sizes_follow_typedefs_and_arrays() -> None:
    blob = BtfBlob()
    number = blob.integer("u16", 2)
    alias = blob.add(btf_blob.TYPEDEF, "alias", blob.add(btf_blob.CONST, last=number))
    grid = blob.array(blob.array(alias, 3), 5)
    btf = Btf(blob.bytes())
    assert btf.size(alias) == 2
    assert btf.size(grid) == 30
    assert btf.size(btf.find("absent", STRUCT) or number) == 2


def test_variables_of_a_section_are_listed_with_their_places() -> None:
    blob = BtfBlob()
    number = blob.integer()
    blob.section(".rodata", ("one", number, 0, 4), ("two", number, 8, 4))
    btf = Btf(blob.bytes())
    assert btf.variables(".rodata") == {"one": (0, 4), "two": (8, 4)}
    assert btf.variables(".data") == {}


def test_functions_are_found_by_their_whole_name() -> None:
    blob = BtfBlob()
    number = blob.integer()
    blob.function("add", ("a", number), ("b", number))
    btf = Btf(blob.bytes())
    assert btf.has_function("add")
    assert not btf.has_function("ad")


def test_a_kernel_whose_kfuncs_show_the_implicit_argument_is_malformed() -> None:
    assert Btf(btf_blob.kernel(malformed=True)).malformed_kfuncs() == ["scx_bpf_kick_cpu"]
    assert Btf(btf_blob.kernel(malformed=False)).malformed_kfuncs() == []


def test_a_kernel_without_btf_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ZernelError) as caught:
        malformed_kfuncs(tmp_path / "vmlinux")
    problem = caught.value.problems[0]
    assert problem.code == "no-btf"
    assert "CONFIG_DEBUG_INFO_BTF" in (problem.suggestion or "")


def test_this_kernel_is_read_and_quickly() -> None:
    started = time.process_time()
    btf = Btf.of_kernel()
    assert btf.malformed_kfuncs() == []
    assert btf.has_member("task_struct", "pid")
    assert btf.enum_value("BPF_MAP_TYPE_RINGBUF") == 27
    seconds = time.process_time() - started
    # 60 ms on an idle machine: a reader that decoded every type would take more than a second.
    assert seconds < 0.5, f"reading {VMLINUX} took {seconds:.2f} s"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "shorter than a header"),
        (b"\0" * 64, "is not BTF"),
        (btf_blob.kernel(False)[:40], "outside the data"),
        (btf_blob.kernel(False)[:-1], "outside the data"),
    ],
)
def test_data_that_is_no_btf_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(ZernelError) as caught:
        Btf(content)
    assert why in caught.value.problems[0].render()


def test_types_that_refer_to_themselves_end_in_an_error() -> None:
    blob = BtfBlob()
    loop = blob.add(btf_blob.TYPEDEF, "loop", 1)
    endless = blob.array(2, 2)
    inside = blob.struct("inside", 4, ("", 3, 0))
    btf = Btf(blob.bytes())
    for read in (lambda: btf.size(loop), lambda: btf.size(endless), lambda: btf.members(inside)):
        with pytest.raises(ZernelError):
            read()


@given(st.data())
def test_damage_anywhere_gives_values_or_an_error_never_a_crash(data: st.DataObject) -> None:
    blob = BtfBlob()
    number = blob.integer()
    blob.struct("s", 8, ("a", number, 0), ("b", blob.array(number, 2), 32))
    blob.enum64("e", ("E", 1 << 40))
    blob.section(".rodata", ("v", number, 0, 4))
    whole = bytearray(blob.bytes() + btf_blob.kernel(True)[24:])
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ZernelError):
        btf = Btf(bytes(whole))
        for kind in (STRUCT, ENUM, ENUM64, FUNC, DATASEC):
            btf.find("s", kind)
        for type_id in range(len(btf)):
            with contextlib.suppress(ZernelError):
                btf.name(type_id)
            with contextlib.suppress(ZernelError):
                btf.size(type_id)
            with contextlib.suppress(ZernelError):
                btf.kind(btf.resolve(type_id))
        for read in (btf.malformed_kfuncs, lambda: btf.variables(".rodata"), lambda: btf.enum_value("E")):
            with contextlib.suppress(ZernelError):
                read()
