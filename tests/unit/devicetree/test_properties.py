# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every input: no traceback, and what is printed means what was printed."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from zernel.devicetree import fdt, render
from zernel.devicetree.allocations import check_name
from zernel.devicetree.dts import parse
from zernel.devicetree.interpret import interpret
from zernel.devicetree.model import Cpus, Device, DeviceUse, Instance, Memory, NumaNode, Resources, System
from zernel.devicetree.units import format_cpus, parse_cpus, parse_size
from zernel.devicetree.validate import validate, validate_interpretation
from zernel.errors import ZernelError

WIDE = st.integers(0, (1 << 64) - 1)
NUMBERS = st.lists(st.integers(0, 8191), max_size=6, unique=True).map(lambda found: tuple(sorted(found)))
# Names that are no labels, and that become the same label, are likely.
DEVICE_NAMES = st.from_regex(r"[a-z0-9][a-b._-]{0,4}", fullmatch=True)
NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def devices(draw: st.DrawFn, name: str) -> Device:
    return Device(
        name,
        draw(st.sampled_from(["ethernet", "storage", "gpu"])),
        draw(st.none() | TEXT),
        draw(st.none() | TEXT),
        draw(st.none() | st.integers(0, 300)),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(st.none() | st.integers(0, 300)),
        draw(NUMBERS),
        draw(NUMBERS),
    )


@st.composite
def systems(draw: st.DrawFn) -> System:
    names = draw(st.lists(DEVICE_NAMES, max_size=3, unique=True))
    found = tuple(draw(devices(name)) for name in names)
    uses = st.sampled_from(names or ["none"]).flatmap(
        lambda name: st.one_of(
            st.just(DeviceUse(name)),
            st.integers(0, 64).map(lambda number: DeviceUse(name, vf=number)),
            st.integers(0, 64).map(lambda number: DeviceUse(name, namespace=number)),
        )
    )
    instances = tuple(
        Instance(
            name,
            draw(st.none() | st.integers(1, 2047)),
            draw(NUMBERS),
            draw(WIDE),
            draw(WIDE),
            tuple(draw(st.lists(uses, max_size=3))) if names else (),
            draw(NUMBERS),
            draw(st.none() | TEXT),
            draw(st.none() | TEXT),
        )
        for name in draw(
            st.lists(st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True), max_size=3, unique=True)
        )
    )
    nodes = tuple(
        NumaNode(number, draw(WIDE), draw(WIDE), draw(NUMBERS)) for number in range(draw(st.integers(0, 3)))
    )
    resources = Resources(
        Cpus(draw(st.integers(0, 8192)), draw(NUMBERS), draw(NUMBERS)),
        Memory(draw(WIDE), draw(WIDE), draw(WIDE), draw(WIDE)),
        found,
        nodes,
    )
    return System(resources, instances)


def named(*names: str) -> System:
    """Return a system of devices with these names, and of nothing else."""
    devices = tuple(Device(name, "ethernet") for name in names)
    return System(Resources(Cpus(0, (), ()), Memory(0, 0, 0, 0), devices))


@given(systems())
@example(named("0_", "0."))
@example(named("a.", "a_", "a-", "a__2"))
@settings(deadline=None)
def test_reading_what_was_printed_gives_the_same_model(system: System) -> None:
    again = interpret(parse(render.source(render.system_tree(system)), "printed"))
    assert not [problem for problem in again.problems if problem.code not in ("id-out-of-range",)]
    assert again.system == system


@given(systems())
@settings(deadline=None)
def test_reading_a_written_blob_gives_the_same_model(system: System) -> None:
    again = interpret(fdt.read(fdt.write(render.system_tree(system)), "blob"))
    assert again.system == system


@given(systems())
@settings(deadline=None)
def test_every_error_has_a_suggestion_and_can_be_shown(system: System) -> None:
    for problem in validate(system):
        assert problem.render()
        assert problem.suggestion or problem.alternative, problem


# Text made of the language's own pieces reaches further into the parser than random characters do.
WORDS = """/dts-v1/; / { }; } { ; = < > , &x x: a a@0 0x1 99 "t" [ ] resources cpus memory devices instances
total available /bits/ 64 // /* */ /include/ &{/a} topology numa-nodes parent vf-id"""
PIECES = st.sampled_from([*WORDS.split(), "\n", "/ {"])


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map(" ".join)))
def test_no_text_gives_a_traceback(text: str) -> None:
    for head in ("", "/dts-v1/; / { "):
        try:
            found = interpret(parse(head + text, "garbage"))
        except ZernelError:
            continue
        for problem in validate_interpretation(found, baseline=True):
            problem.render()


VALUES = st.sampled_from(
    [
        "",
        "= <1>",
        "= <1 2>",
        "= <0x1 0x2 0x3>",
        '= "x"',
        "= <&eth0>",
        "= [00]",
        "= <&nope>",
        '= "a", <1>',
        "= &eth0",
    ]
)
NAMED = """total host-reserved available total-bytes memory-pool-base memory-pool-bytes cpus pci-id
memory-base memory-bytes devices id parent vf-id sriov-vfs namespaces node-id label"""
PROPERTIES = st.sampled_from(NAMED.split())


@given(st.data())
def test_no_kind_of_value_at_any_place_gives_a_traceback(data: st.DataObject) -> None:
    def body(indent: int) -> str:
        names = data.draw(st.lists(PROPERTIES, max_size=3, unique=True))
        return " ".join(f"{name} {data.draw(VALUES)};" for name in names)

    text = f"""/dts-v1/; / {{ {body(1)} resources {{ {body(2)} cpus {{ {body(3)} }}; memory {{ {body(3)} }};
    devices {{ eth0: ethernet@0 {{ {body(4)} }}; }};
    topology {{ numa-nodes {{ node@0 {{ {body(5)} }}; }}; }}; }};
    instances {{ a {{ {body(3)} resources {{ {body(4)} }}; }}; }}; vf: v@1 {{ {body(2)} }}; }};"""
    for problem in validate_interpretation(interpret(parse(text, "odd")), baseline=False):
        problem.render()


@given(st.text(max_size=30))
def test_options_are_read_or_refused(text: str) -> None:
    for read in (parse_size, parse_cpus):
        refusal = None
        try:
            read(text, "--option")
        except ZernelError as error:
            refusal = error
        assert refusal is None or refusal.problems[0].suggestion
    check_name(text)


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=40))
def test_cpu_lists_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus), "--cpus") == tuple(sorted(cpus))
