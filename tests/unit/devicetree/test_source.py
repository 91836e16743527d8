# SPDX-License-Identifier: GPL-3.0-or-later
"""Device tree source: what is read, and what is refused at which place."""

from __future__ import annotations

import time

import pytest

from zernel.devicetree.dts import MAX_DEPTH, parse
from zernel.devicetree.tree import Cells, Reference, Tree, WrongType
from zernel.errors import ZernelError


def tree(body: str, head: str = "/dts-v1/;") -> Tree:
    return parse(f"{head}\n/ {{ {body} }};\n", "test.dts")


def refusal(text: str) -> str:
    with pytest.raises(ZernelError) as caught:
        parse(text, "test.dts")
    (problem,) = caught.value.problems
    assert problem.suggestion
    return problem.render()


@pytest.mark.parametrize(
    "head", ["/dts-v1/;", "/multikernel-v1/;", "/multikernel-v1/;\n/dts-v1/;", "/dts-v1/; /plugin/;"]
)
def test_every_version_mark_is_taken(head: str) -> None:
    assert tree("a;", head).root.get("a") is not None


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("<7>", 7),
        ("<0x1F>", 31),
        ("<010>", 8),
        ("<0>", 0),
        ("<0x100000000>", 1 << 32),
        ("<0x0 0x80000000>", 1 << 31),
        ("<0x0 0x400000000>", 1 << 34),
        ("<0x1 0x80000000>", (1 << 32) + (1 << 31)),
        ("<18446744073709551615>", (1 << 64) - 1),
        ("<0x8000ULL>", 0x8000),
        ("/bits/ 64 <0x123456789>", 0x123456789),
    ],
)
def test_one_cell_and_two_cells_mean_one_number(written: str, number: int) -> None:
    found = tree(f"a = {written};").root.get("a")
    assert found is not None
    assert found.number() == number


def test_decimal_cells_are_decimal() -> None:
    found = tree("cpus = <8 9 10 11>;").root.get("cpus")
    assert found is not None
    assert found.numbers() == (8, 9, 10, 11)


def test_two_cells_that_are_no_64_bit_number_are_refused() -> None:
    found = tree("a = <0x1 0x100000000>;").root.get("a")
    assert found is not None
    with pytest.raises(WrongType):
        found.number()


def test_lists_keep_every_item() -> None:
    found = tree('d = <&a>, <&b &c>, "x,y", [00 ff0A], &e;').root.get("d")
    assert found is not None
    assert found.values == (
        Cells((Reference("a", 2),)),
        Cells((Reference("b", 2), Reference("c", 2))),
        "x,y",
        b"\x00\xff\x0a",
        Reference("e", 2),
    )


def test_comments_may_stand_anywhere_and_hold_anything() -> None:
    found = tree('/* } ; */ a /* " */ = // } {\n <1 /* 2 */ 3>; // b = <9>;\n').root
    assert [item.name for item in found.properties] == ["a"]
    assert found.properties[0].numbers() == (1, 3)


def test_equal_names_and_labels() -> None:
    found = tree("x: ethernet@0 { }; y: ethernet@0 { z: w: deep { }; };")
    assert len(found.root.children) == 2
    assert found.labels["w"] is found.labels["z"]
    assert found.labels["x"] is not found.labels["y"]


def test_string_escapes() -> None:
    found = tree(r'a = "q\"\\\n\x41\101";').root.get("a")
    assert found is not None
    assert found.text() == 'q"\\\nAA'


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("/dts-v1/;\n/ {\n  a = <1>\n};", 4, 1, "expected ';'"),
        ("/dts-v1/;\n/ {\n  a { };\n", 4, 1, "opened on line 2 is never closed"),
        ("/dts-v1/;\n/ { a = <1 -2>; };", 2, 12, "'-2' is no number"),
        ("/dts-v1/;\n/ { a = <08>; };", 2, 10, "'08' is no number"),
        ("/dts-v1/;\n/ { a = <0x10000000000000000>; };", 2, 10, "does not fit in 64 bits"),
        ("/dts-v1/;\n/ { a = /bits/ 8 <256>; };", 2, 19, "does not fit in 8 bits"),
        ("/dts-v1/;\n/ { a = (1); };", 2, 9, "expected a value"),
        ("/dts-v1/;\n/ { a = <(1 + 2)>; };", 2, 10, "expressions are not supported"),
        ('/dts-v1/;\n/ { a = "x\n; };', 2, 9, "not closed on its line"),
        ("/dts-v1/;\n/ { /* a\n };", 2, 5, "never closed"),
        ('/dts-v1/;\n/include/ "x.dtsi"\n/ { };', 2, 1, "includes are not supported"),
        ("/dts-v1/;\n#include <x.h>\n/ { };", 2, 1, "includes are not supported"),
        ("/dts-v1/;\n/ { #define A 1\n };", 2, 5, "preprocessor is not supported"),
        ("/dts-v1/;\n/ { /delete-node/ x; };", 2, 5, "'/delete-node/' is not supported"),
        ("/dts-v1/;\n/ { };\n/ { };", 3, 1, "the tree ended above"),
        ("/dts-v1/;\n/ { x: a { }; x: b { }; };", 2, 15, "label 'x' is used twice"),
        ("/ { };", 1, 1, "must begin with a version mark"),
        ("", 1, 1, "must begin with a version mark"),
        ("/dts-v1/;\n/ { a = <1>; } ;\n\x00", 3, 1, "unexpected character"),
    ],
)
def test_mistakes_are_shown_where_they_are(text: str, line: int, column: int, says: str) -> None:
    shown = refusal(text)
    assert f"Line {line}, column {column}: " in shown
    assert says in shown


def test_a_property_given_twice_names_both_lines() -> None:
    shown = refusal("/dts-v1/;\n/ {\n a = <1>;\n b;\n a = <2>;\n};")
    assert "Line 5: property 'a' is given twice, first on line 3" in shown


def test_depth_is_bounded() -> None:
    tree("a { " * (MAX_DEPTH - 1) + "}; " * (MAX_DEPTH - 1))
    assert "deeper than" in refusal("/dts-v1/;\n/ { " + "a { " * 100_000)


@pytest.mark.parametrize(
    "unit", ["{", "}", "a{", "a;", "a=<", "<", "/*", "//", '"', "&a", "x:", "a=<1>;", "((", "/ "]
)
def test_a_megabyte_of_anything_ends_soon(unit: str) -> None:
    began = time.monotonic()
    with pytest.raises(ZernelError):
        parse("/dts-v1/;\n/ { " + unit * (1_000_000 // len(unit)), "test.dts")
    assert time.monotonic() - began < 10
