# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading structs by their type information. What the maps hold is tested on real kernels (tests/guest)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.maps import Layout


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
