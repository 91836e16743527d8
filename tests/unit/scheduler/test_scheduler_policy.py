# SPDX-License-Identifier: GPL-3.0-or-later
"""The document's policies and classes as numbers, and what follows an ejection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.classes import class_priority, scaled
from zernel.scheduler.ejection import MAX_PAUSE_S, Ejections
from zernel.scheduler.policy import DEFAULTS, Policy, Preemption
from zernel.scheduler.tables import CLASSES, Policies, PriorityClass, Row, Safety


def test_the_documents_policies_are_the_defaults() -> None:
    assert Policies().rows() == DEFAULTS
    assert DEFAULTS["POLICY_DATA_LOADING"] == Policy(10, Preemption.AGGRESSIVE, 100)
    assert DEFAULTS["POLICY_GPU_COMPUTE"] == Policy(-5, Preemption.YIELD)
    assert DEFAULTS["POLICY_NCCL_COLLECTIVE"] == Policy(10, Preemption.LOW_LATENCY, 50)
    assert DEFAULTS["POLICY_OPTIMIZER_STEP"] == Policy(10, Preemption.PREEMPTIVE, 100)
    assert DEFAULTS["POLICY_UNKNOWN"] == Policy(0, Preemption.STANDARD)


def test_a_row_of_the_file_replaces_the_documents() -> None:
    changed = Policies(data_loading=Row(-20, "standard", 7)).rows()
    assert changed.pop("POLICY_DATA_LOADING") == Policy(-20, Preemption.STANDARD, 7)
    assert changed.items() < DEFAULTS.items()


def test_the_documents_classes_are_the_defaults() -> None:
    worth = {name: class_priority(name, "normal", PriorityClass()) for name in CLASSES}
    assert worth == {"training": 5, "inference": 3, "interactive": 1, "normal": 0, "background": -5}
    assert class_priority("default", "inference", PriorityClass()) == 3
    assert class_priority("training", "background", PriorityClass(training=9)) == 9


@given(st.floats(1, 10_000 * 64), st.integers(-20, 19))
def test_a_step_of_priority_is_a_quarter_more(weight: float, priority: int) -> None:
    low, high = scaled(weight, priority), scaled(weight, priority + 1)
    assert 1 <= low <= high < 1 << 32
    assert low < 100 or high == 1 << 30 or high / low == pytest.approx(1.25, rel=0.01)


def test_the_third_ejection_in_ten_minutes_is_the_last() -> None:
    ejections = Ejections(Safety())
    assert [ejections.record(now) for now in (1000, 1200, 1599)] == [5, 10, None]


def test_an_ejection_counts_for_the_window_only() -> None:
    ejections = Ejections(Safety())
    assert [ejections.record(now) for now in (0, 300, 600, 900, 1199)] == [5, 10, 10, 10, None]
    ejections.forgive()
    assert ejections.record(1500) == 5


@given(
    st.integers(1, 20),
    st.integers(1, 600),
    st.integers(60, 2000),
    st.lists(st.floats(0, 10_000), min_size=1),
)
def test_a_pause_is_given_exactly_below_the_limit(
    limit: int, backoff: int, window: int, times: list[float]
) -> None:
    safety = Safety(max_ejections=limit, backoff_s=backoff, ejection_window_s=window)
    ejections = Ejections(safety)
    times.sort()
    for index, now in enumerate(times):
        pause = ejections.record(now)
        recent = sum(now - then < window for then in times[: index + 1])
        assert (pause is None) == (recent >= limit)
        assert pause is None or pause == min(MAX_PAUSE_S, backoff * 2 ** (recent - 1))


def test_a_reload_with_a_higher_limit_allows_more() -> None:
    ejections = Ejections(Safety(max_ejections=1))
    assert ejections.record(0) is None
    ejections.configure(Safety(max_ejections=5))
    assert ejections.record(1) == 10
