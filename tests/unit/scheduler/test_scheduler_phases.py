# SPDX-License-Identifier: GPL-3.0-or-later
"""The document's phase table: each threshold on both sides, absent signals, stability."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.phases import Rules, Signals, Stability
from zernel.scheduler.policy import Phase
from zernel.scheduler.tables import PhaseDetection

MS = 1_000_000
RULES = Rules(PhaseDetection(), short_burst_ns=MS)

LOADING = Signals(io_wait_fraction=0.31, gpu_utilization=9.9)
COMPUTING = Signals(gpu_utilization=80.1, cpu_burst_ns=0)
COLLECTIVE = Signals(nccl_active=True, futex_waits=1)
OPTIMIZING = Signals(cpu_burst_ns=5 * MS - 1, since_gpu_sync_s=0.0)
EXAMPLES = {
    Phase.DATA_LOADING: LOADING,
    Phase.GPU_COMPUTE: COMPUTING,
    Phase.NCCL_COLLECTIVE: COLLECTIVE,
    Phase.OPTIMIZER_STEP: OPTIMIZING,
}

SIGNALS = st.builds(
    Signals,
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 1 << 40),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 1e6),
    st.none() | st.booleans(),
    st.none() | st.integers(0, 1000),
)


@pytest.mark.parametrize("phase", EXAMPLES)
def test_the_documents_signals_give_the_documents_phase(phase: Phase) -> None:
    assert RULES.classify(EXAMPLES[phase]) is phase


@pytest.mark.parametrize(
    ("signals", "change"),
    [
        (LOADING, {"io_wait_fraction": 0.3}),
        (LOADING, {"gpu_utilization": 10.0}),
        (COMPUTING, {"gpu_utilization": 80.0}),
        (COMPUTING, {"cpu_burst_ns": MS + 1}),
        (COLLECTIVE, {"nccl_active": False}),
        (COLLECTIVE, {"futex_waits": 0}),
        (OPTIMIZING, {"cpu_burst_ns": 5 * MS}),
        (OPTIMIZING, {"cpu_burst_ns": 0}),
        (OPTIMIZING, {"since_gpu_sync_s": 1.1}),
    ],
)
def test_at_its_threshold_a_signal_says_nothing(signals: Signals, change: dict[str, float]) -> None:
    assert RULES.classify(dataclasses.replace(signals, **change)) is Phase.UNKNOWN  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "signals"),
    [
        ("io_wait_threshold", 0.5, LOADING),
        ("gpu_idle_threshold", 5, LOADING),
        ("gpu_active_threshold", 90, COMPUTING),
        ("optimizer_burst_max_ns", 4 * MS, OPTIMIZING),
    ],
)
def test_each_threshold_of_the_file_counts(key: str, value: float, signals: Signals) -> None:
    other = Rules(dataclasses.replace(PhaseDetection(), **{key: value}), short_burst_ns=MS)  # type: ignore[arg-type]
    assert RULES.classify(signals) is not Phase.UNKNOWN
    assert other.classify(signals) is Phase.UNKNOWN


@pytest.mark.parametrize("phase", EXAMPLES)
def test_each_signal_of_a_phase_is_needed(phase: Phase) -> None:
    for field in dataclasses.fields(Signals):
        if getattr(EXAMPLES[phase], field.name) is not None:
            without = dataclasses.replace(EXAMPLES[phase], **{field.name: None})  # type: ignore[arg-type]
            assert RULES.classify(without) is Phase.UNKNOWN


@given(SIGNALS)
def test_a_verdict_is_what_its_evidence_says(signals: Signals) -> None:
    evidence = RULES.evidence(signals)
    assert all(one.value is not None for one in evidence if one.holds)
    by_phase = itertools.groupby(evidence, key=lambda one: one.phase)
    held = [phase for phase, group in by_phase if all(one.holds for one in group)]
    assert RULES.classify(signals) is (held[0] if held else Phase.UNKNOWN)


@given(SIGNALS, st.sampled_from([field.name for field in dataclasses.fields(Signals)]))
def test_a_signal_that_goes_away_never_adds_a_verdict(signals: Signals, name: str) -> None:
    less = RULES.evidence(dataclasses.replace(signals, **{name: None}))  # type: ignore[arg-type]
    more = RULES.evidence(signals)
    assert all(not one.holds or two.holds for one, two in zip(less, more, strict=True))


PHASES = st.sampled_from(list(Phase))


@given(st.lists(PHASES), st.integers(1, 10))
def test_a_phase_changes_exactly_after_so_many_in_a_row(seen: list[Phase], count: int) -> None:
    stability = Stability()
    before = stability.phase
    for index, phase in enumerate(seen, start=1):
        changed = stability.observe(phase, count)
        assert changed == (stability.phase is not before)
        if changed:
            assert seen[index - count : index] == [stability.phase] * count
        before = stability.phase
    if len(seen) >= count and len(set(seen[-count:])) == 1:
        assert stability.phase is seen[-1]


@given(PHASES, st.integers(2, 10))
def test_phases_that_take_turns_change_nothing(phase: Phase, count: int) -> None:
    stability = Stability()
    for _ in range(3 * count):
        assert not stability.observe(phase, count) or phase is Phase.UNKNOWN
        stability.observe(Phase.UNKNOWN, count)
    assert stability.phase is Phase.UNKNOWN
