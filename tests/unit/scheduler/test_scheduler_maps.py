# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading structs by their type information. What the maps hold is tested on real kernels (tests/guest)."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.maps import Hint, HintTable, Layout
from zernel.scheduler.policy import Phase


class FakeBtf:
    """One struct: member → offset and size."""

    def __init__(self, places: dict[str, tuple[int, int]]) -> None:
        self._places = places

    def find(self, name: str, kind: object) -> int:
        return 1

    def members(self, type_id: int) -> dict[str, Any]:
        places = self._places.items()
        return {name: SimpleNamespace(offset=offset, type_id=size) for name, (offset, size) in places}

    def size(self, type_id: int) -> int:
        return type_id


@st.composite
def structs(draw: st.DrawFn) -> tuple[Layout, bytes]:
    """A struct with gaps, its members in any order, and bytes for it."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=20))
    places, end = [], 0
    for size in sizes:
        offset = end + draw(st.integers(0, 9))
        places.append((offset, size))
        end = offset + size
    shuffled = draw(st.permutations(places))
    named = {f"m{number}": place for number, place in enumerate(shuffled)}
    return Layout(FakeBtf(named), "any"), draw(st.binary(min_size=end, max_size=end + 8))  # type: ignore[arg-type]


@given(structs(), st.data())
def test_members_read_at_once_are_those_read_one_by_one(
    made: tuple[Layout, bytes], data: st.DataObject
) -> None:
    layout, raw = made
    names = data.draw(st.lists(st.sampled_from(sorted(layout.places)), min_size=2, unique=True))
    assert layout.reader(*names)(raw) == tuple(layout.integer(raw, name) for name in names)


class FakeMap:
    """A map of hints, as the BPF side sees it."""

    value_size = 24

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int, int, int]] = {}
        self.writes = 0

    def update(self, key: bytes, value: bytes) -> None:
        self.entries[int.from_bytes(key, "little")] = struct.unpack("<QQIi", value)
        self.writes += 1

    def delete(self, key: bytes) -> None:
        del self.entries[int.from_bytes(key, "little")]


PHASES = {phase: number for number, phase in enumerate(Phase)}
LIFETIME = 1000
HINT = st.builds(Hint, st.integers(1, 2), st.sampled_from(Phase), st.none() | st.integers(0, 1))
WRITES = st.lists(st.tuples(st.integers(0, 700), st.dictionaries(st.integers(1, 4), HINT)), max_size=20)


def hint_table() -> tuple[HintTable, FakeMap]:
    places = {"start_ticks": (0, 8), "written_at": (8, 8), "phase": (16, 4), "node": (20, 4)}
    fake = FakeMap()
    return HintTable(fake, Layout(FakeBtf(places), "hint"), PHASES), fake  # type: ignore[arg-type]


@given(WRITES)
def test_the_map_holds_the_hints_that_were_written_last_and_none_is_old(
    writes: list[tuple[int, dict[int, Hint]]],
) -> None:
    table, fake = hint_table()
    now = 5
    for passed, hints in writes:
        now += passed
        before = dict(fake.entries)
        changed = table.write(hints, now, LIFETIME)
        assert changed == (before != fake.entries)
        wanted = {
            pid: (hint.start_ticks, PHASES[hint.phase], -1 if hint.node is None else hint.node)
            for pid, hint in hints.items()
        }
        assert {pid: (ticks, phase, node) for pid, (ticks, _, phase, node) in fake.entries.items()} == wanted
        assert all(now - written < LIFETIME // 4 for _, written, _, _ in fake.entries.values())


def test_hints_that_stay_are_written_a_few_times_in_their_life() -> None:
    table, fake = hint_table()
    hints = {pid: Hint(1, Phase.DATA_LOADING) for pid in range(100)}
    for now in range(0, LIFETIME, 10):
        table.write(hints, now, LIFETIME)
    assert fake.writes == 4 * 100
