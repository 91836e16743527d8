# SPDX-License-Identifier: GPL-3.0-or-later
"""Each key of scheduler.toml acts: where a test flips it and shows what follows.

What the BPF side reads is shown in a guest, what user space alone reads by its public interface. A key that
is added without a test of its effect fails here.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from zernel.scheduler.config import Config
from zernel.scheduler.tables import Policies

TESTS = Path(__file__).resolve().parents[2]
UNIT, GUEST = "unit/scheduler/test_scheduler_", "guest/test_scheduler"

SHARES = f"{GUEST}_service::test_tenants_of_the_settings_share_by_weight_and_class"
ROLES = f"{GUEST}_processes::test_threads_that_work_with_a_gpu_are_known_by_what_the_probes_see"
STALL = f"{GUEST}_safety::test_a_scheduler_that_forgets_tasks_is_ejected_tried_again_and_given_up"
WEIGHTS = f"{UNIT}tenants::test_a_fixed_weight_and_the_class_count"
PAUSES = f"{UNIT}policy::test_a_pause_is_given_exactly_below_the_limit"
THRESHOLDS = f"{UNIT}phases::test_each_threshold_of_the_file_counts"
AFFINITIES = f"{UNIT}classifier::test_each_affinity_can_be_switched_off"

EFFECTS: dict[str, tuple[str, ...]] = {
    "general.phase_eval_interval_ms": (
        f"{UNIT}engine::test_processes_are_classified_as_often_as_the_settings_say",
    ),
    "general.gpu_poll_interval_ms": (
        f"{UNIT}engine::test_nvml_is_asked_as_often_as_the_settings_say",
        f"{UNIT}engine::test_tenants_follow_as_often_as_the_settings_say",
    ),
    "general.max_tracked_tasks": (
        f"{UNIT}classifier::test_one_process_too_many_is_counted_and_runs_as_unknown",
        f"{GUEST}_safety::test_a_fork_storm_starves_nobody_and_is_counted",
    ),
    "scheduler.slice_us": (f"{GUEST}_settings::test_longer_slices_mean_fewer_switches",),
    "scheduler.watchdog_timeout_ms": (STALL,),
    "scheduler.priority_step_us": (f"{GUEST}_settings::test_a_step_of_priority_is_worth_what_it_says",),
    "scheduler.latency_budget_percent": (
        f"{GUEST}_settings::test_the_latency_budget_bounds_what_urgent_threads_take",
    ),
    "scheduler.preemptions_per_ms": (f"{GUEST}_settings::test_the_rate_of_preemptions_holds",),
    "scheduler.short_burst_us": (
        f"{GUEST}_settings::test_what_counts_as_short_decides_the_role",
        f"{UNIT}classifier::test_what_is_short_for_a_launch_is_a_setting",
        ROLES,
    ),
    "phase_detection.io_wait_threshold": (ROLES, THRESHOLDS),
    "phase_detection.optimizer_burst_max_ns": (ROLES, THRESHOLDS),
    "phase_detection.nccl_detection_enabled": (
        ROLES,
        f"{UNIT}classifier::test_nccl_is_told_apart_where_it_is_switched_on",
    ),
    "phase_detection.gpu_idle_threshold": (THRESHOLDS,),
    "phase_detection.gpu_active_threshold": (THRESHOLDS,),
    "phase_detection.phase_stability_count": (
        f"{UNIT}phases::test_a_phase_changes_exactly_after_so_many_in_a_row",
        f"{UNIT}classifier::test_new_thresholds_count_at_once_and_phases_stay",
    ),
    # One test goes through all rows, and one through all classes.
    **{
        f"policy.{row.name}.{key}": (f"{GUEST}_settings::test_each_key_of_each_row_of_the_policy_table_acts",)
        for row in dataclasses.fields(Policies)
        for key in ("priority", "preemption", "latency_target_us")
    },
    "numa.enabled": (f"{GUEST}::test_without_numa_all_cpus_share_a_queue", AFFINITIES),
    "numa.gpu_affinity": (AFFINITIES,),
    "numa.memory_affinity": (AFFINITIES,),
    "multi_tenant.enabled": (SHARES, f"{UNIT}tenants::test_switched_off_there_is_the_default_tenant_alone"),
    "multi_tenant.default_priority_class": (WEIGHTS,),
    "multi_tenant.weight_per_gpu": (WEIGHTS,),
    "multi_tenant.cpu_only_weight": (WEIGHTS,),
    "multi_tenant.default_floor_percent": (f"{UNIT}tenants::test_the_default_tenant_has_a_floor",),
    **{
        f"priority_class.{name}": (f"{UNIT}tenants::test_what_each_class_is_worth_is_a_setting",)
        for name in ("training", "inference", "interactive", "normal", "background")
    },
    "tenant.NAME.cgroup": (SHARES, f"{UNIT}tenants::test_the_nearest_ancestor_decides"),
    "tenant.NAME.class": (SHARES, WEIGHTS),
    "tenant.NAME.weight": (SHARES, WEIGHTS),
    "safety.starvation_bound_ms": (
        f"{GUEST}_tenants::test_the_lightest_tenant_is_served_within_the_starvation_bound",
    ),
    "safety.max_ejections": (STALL, PAUSES),
    "safety.hint_lifetime_ms": (
        f"{GUEST}_processes::test_it_tells_what_processes_do_and_takes_hints_only_while_they_hold",
        f"{UNIT}classifier::test_a_process_that_sleeps_keeps_its_phase_and_is_then_forgotten",
    ),
    "safety.ejection_window_s": (PAUSES,),
    "safety.backoff_s": (STALL, PAUSES),
    "telemetry.metrics_port": (
        f"{GUEST}::test_reload_takes_over_good_settings_and_refuses_bad_ones",
        f"{UNIT}daemon::test_reload_takes_over_a_new_watchdog_and_a_new_port",
    ),
    "telemetry.push_interval_ms": (f"{UNIT}engine::test_figures_are_as_old_as_the_settings_say",),
}
"""Key → the tests that flip it."""


def keys(schema: Any, path: str = "") -> set[str]:
    """Return the paths of all keys; tables of any name are called NAME."""
    found: set[str] = set()
    for field in dataclasses.fields(schema):
        name = path + field.name.removesuffix("_")
        if "table" in field.metadata:
            found |= keys(field.metadata["table"], f"{name}.")
        elif "tables" in field.metadata:
            found |= keys(field.metadata["tables"], f"{name}.NAME.")
        else:
            found.add(name)
    return found


def test_each_key_has_a_test_of_its_effect() -> None:
    assert EFFECTS.keys() == keys(Config)


@pytest.mark.parametrize("test", sorted({test for tests in EFFECTS.values() for test in tests}))
def test_the_tests_of_effects_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    parsed = ast.parse((TESTS / f"{file}.py").read_text())
    assert name in {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
