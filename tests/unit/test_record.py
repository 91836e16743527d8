# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that cannot change."""

from __future__ import annotations

import pytest

from zernel.record import Record


class Place(Record):
    file: str
    line: int | None = None
    words: tuple[str, ...] = ()


class Other(Record):
    file: str
    line: int | None = None
    words: tuple[str, ...] = ()


def test_fields_by_place_by_name_and_by_default() -> None:
    place = Place("a", words=("x",))
    assert (place.file, place.line, place.words) == ("a", None, ("x",))
    assert repr(place) == "Place(file='a', line=None, words=('x',))"


def test_what_holds_the_same_is_equal_within_a_class() -> None:
    assert Place("a", 1) == Place(line=1, file="a")
    assert len({Place("a", 1), Place(line=1, file="a"), Place("a", 2)}) == 2
    assert Place("a") != Other("a")


def test_it_cannot_change_and_a_copy_can_differ() -> None:
    place = Place("a", 1)
    with pytest.raises(AttributeError, match=r"Place\.line cannot change"):
        place.line = 2  # type: ignore[misc]
    assert place.but(line=2) == Place("a", 2)
    assert place == Place("a", 1)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        (("a", 1, (), 4), {}),
        (("a",), {"file": "b"}),
        (("a",), {"lien": 1}),
        ((), {"lien": 1}),
    ],
)
def test_wrong_fields_are_refused(values: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="Place takes file, line, words"):
        Place(*values, **named)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Place("a").but(lien=1)
