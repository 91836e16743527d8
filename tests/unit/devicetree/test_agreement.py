# SPDX-License-Identifier: GPL-3.0-or-later
"""What dtc takes and what we take of the same source is the same tree, value for value."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zernel.devicetree import fdt
from zernel.devicetree.dts import parse
from zernel.devicetree.tree import Node

SPACE = st.sampled_from([" ", "\n", "\t", " /* } ; */ ", " // x }\n", " /* a * b **/ "])
PROPERTY_NAMES = ["a", "b-c", "p,q", "#cells", "1x", "x+y", "a.b", "_", "?", "reg", "A*", "x" * 31]
NODE_NAMES = ["n", "n@1", "x,y@1,2", "N", "9", "n.o", "n_1", "n+o", "foo@0x1", "cpu-map"]
PIECES = [
    "",
    "a",
    " ",
    "\\n",
    "\\x41",
    "\\101",
    '\\"',
    "\\\\",
    "é",
    "/*x*/",
    "//",
    "\\q",
    "'",
    "{",
    ";",
    "\\t",
]


LABEL = "§"
"""Stands for a label until the source is whole: each is there once."""


@st.composite
def cells(draw: st.DrawFn) -> str:
    bits = draw(st.sampled_from([8, 16, 32, 64, None]))
    form = st.sampled_from(["{:d}", "{:#x}", "{:#X}", "0{:o}", "{:d}U", "{:d}UL", "{:#x}ULL", "{:d}L"])
    numbers = draw(
        st.lists(st.tuples(form, st.integers(0, (1 << (bits or 32)) - 1) | st.integers(0, 9)), max_size=4)
    )
    inside = draw(SPACE).join(how.format(number) for how, number in numbers)
    return f"{f'/bits/ {bits}' if bits else ''} <{draw(st.sampled_from(['', ' ']))}{inside}>"


STRINGS = st.lists(st.sampled_from(PIECES), max_size=4).map(lambda pieces: '"' + "".join(pieces) + '"')
BYTES = st.binary(max_size=4).flatmap(
    lambda data: st.sampled_from([data.hex(), data.hex(" "), data.hex().upper()]).map(
        lambda text: f"[{text}]"
    )
)
VALUES = cells() | STRINGS | BYTES


@st.composite
def bodies(draw: st.DrawFn, depth: int = 0) -> str:
    def labelled() -> str:
        return LABEL if draw(st.integers(0, 5)) == 0 else ""

    text = draw(SPACE)
    for name in draw(st.lists(st.sampled_from(PROPERTY_NAMES), max_size=3, unique=True)):
        values = [f"{labelled()}{value} {labelled()}" for value in draw(st.lists(VALUES, max_size=3))]
        text += f"{labelled()}{name}{draw(SPACE)}"
        text += f"={draw(SPACE)}{f',{draw(SPACE)}'.join(values)}" if values else ""
        text += f";{draw(SPACE)}"
    if depth < 3:
        for name in draw(st.lists(st.sampled_from(NODE_NAMES), max_size=2, unique=True)):
            text += f"{labelled()}{name}{draw(SPACE)}{{{draw(bodies(depth + 1))}}};{draw(SPACE)}"
    return text


def content(node: Node) -> tuple[object, ...]:
    """Return a node as values that compare, without the table of labels that blobs may carry."""
    below = [content(child) for child in node.children if child.name != "__symbols__"]
    return node.name, [(found.name, found.values) for found in node.properties], below


@settings(max_examples=60)
@given(bodies())
def test_source_is_read_as_dtc_reads_it(body: str) -> None:
    first, *rest = body.split(LABEL)
    body = "".join([first, *(f"l{number}: {part}" for number, part in enumerate(rest))])
    source = f"/dts-v1/;\n/ {{{body}}};\n"
    done = subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb"], input=source.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    ours = fdt.write(parse(source, "test.dts"))
    assert content(fdt.read(ours, "ours").root) == content(fdt.read(done.stdout, "dtc").root)


@pytest.mark.parametrize("value", ["&late", "&{/late}", "<&late>, &late", "&early, <&early>"])
def test_references_point_where_those_of_dtc_point(value: str) -> None:
    source = f"/dts-v1/; / {{ early: early {{ }}; user {{ a = {value}; }}; late: late {{ }}; }};"
    done = subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb"], input=source.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    ours = fdt.write(parse(source, "test.dts"))
    assert content(fdt.read(ours, "ours").root) == content(fdt.read(done.stdout, "dtc").root)
