# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler's BPF object and its Python side agree on names, as far as can be told without loading it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from zernel.bpf import BpfObject, object_path
from zernel.scheduler.config import Config
from zernel.scheduler.maps import Activity, Hint, Layout, Settings, Task, Tenant
from zernel.scheduler.policy import DEFAULTS, Phase, Preemption, Role

# What SchedulerMaps itself counts up, or sets with the tenants.
OWN = {"generation", "hint_generation", "epoch", "tenants"}


@pytest.fixture(scope="module")
def obj() -> Iterator[BpfObject]:
    with BpfObject.open(object_path("sched")) as opened:
        yield opened


def names(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def test_every_setting_has_its_place_and_no_place_is_left_out(obj: BpfObject) -> None:
    places = Layout(obj.btf, "settings").places
    assert names(Settings) | OWN == set(places)
    settings = Settings.of(Config())
    for name in names(Settings) - {"policies"}:
        assert 0 <= int(getattr(settings, name)) < 1 << (8 * places[name][1])


def test_rows_roles_phases_and_preemptions_are_those_of_the_object(obj: BpfObject) -> None:
    rows = [obj.btf.enum_value(row) for row in DEFAULTS]
    roles = [obj.btf.enum_value(f"ROLE_{role.name}") for role in Role]
    assert sorted(row for row in rows if row is not None) == list(range(len(DEFAULTS)))
    assert sorted(role for role in roles if role is not None) == list(range(len(Role)))
    assert obj.btf.enum_value("NR_ROLES") == len(Role)
    assert {f"POLICY_{phase.name}" for phase in Phase} < set(DEFAULTS)
    assert None not in {obj.btf.enum_value(f"PREEMPT_{kind.name}") for kind in Preemption}


@pytest.mark.parametrize(
    ("record", "struct", "other"),
    [
        (Activity, "activity", set[str]()),
        (Hint, "hint", {"written_at"}),
        (Tenant, "tenant_settings", set[str]()),
    ],
)
def test_records_have_the_members_of_their_structs(
    obj: BpfObject, record: type, struct: str, other: set[str]
) -> None:
    assert names(record) | other == set(Layout(obj.btf, struct).places)


def test_what_is_told_of_a_thread_is_remembered(obj: BpfObject) -> None:
    assert names(Task) <= set(Layout(obj.btf, "task").places)


def test_the_document_s_policy_table_is_the_default() -> None:
    table = {row: (policy.priority, policy.latency_target_us) for row, policy in DEFAULTS.items()}
    assert table["POLICY_DATA_LOADING"] == (10, 100)
    assert table["POLICY_GPU_COMPUTE"] == (-5, 0)
    assert table["POLICY_NCCL_COLLECTIVE"] == (10, 50)
    assert table["POLICY_OPTIMIZER_STEP"] == (10, 100)
    assert table["POLICY_UNKNOWN"] == (0, 0)
