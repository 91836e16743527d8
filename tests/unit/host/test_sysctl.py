# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning and applying settings on a host of plain files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zernel.cli.main import main
from zernel.errors import ZernelError
from zernel.host import sysctl
from zernel.host.sysctl import KnobReport, apply, plan
from zernel.host.sysctl_input import parse
from zernel.host.sysctl_live import LiveSettings

from .conftest import MIB, FakeHost

SYSCTL = "etc/sysctl.d/99-zernel.conf"
RECORD = "var/lib/zernel/tuning-before.json"


def wanted(**values: Any) -> list[Any]:
    return parse(json.dumps({key.replace("__", "."): value for key, value in values.items()}), "wanted")


def only(knobs: list[KnobReport]) -> KnobReport:
    (knob,) = knobs
    return knob


def codes(host: FakeHost, **values: Any) -> list[str]:
    before = host.snapshot()
    with pytest.raises(ZernelError) as caught:
        apply(wanted(**values), host.root)
    assert host.snapshot() == before
    assert all(problem.suggestion for problem in caught.value.problems)
    return [problem.code for problem in caught.value.problems]


def test_a_plan_changes_nothing(host: FakeHost) -> None:
    before = host.snapshot()
    result = plan(wanted(vm__swappiness=1), host.root)
    assert result.changed
    assert result.as_dict()["status"] == "planned"
    assert host.snapshot() == before


def test_applying_sets_records_and_writes_a_file_that_lasts(host: FakeHost) -> None:
    result = apply(wanted(vm__overcommit_memory=1), host.root)
    assert host.get("vm.overcommit_memory") == "1"
    assert only(result.knobs).effective == "1"
    assert "\nvm.overcommit_memory = 1\n" in host.read(SYSCTL)
    assert json.loads(host.read(RECORD))["values"] == {"vm.overcommit_memory": "0"}


def test_a_comment_never_shares_a_line_with_a_value(host: FakeHost) -> None:
    host.write("proc/swaps", "Filename\n/dev/vda2 partition 1 0 -2\n")
    apply(wanted(vm__swappiness=0, net__core__rmem_max=134217728), host.root)
    lines = [line for line in host.read(SYSCTL).splitlines() if line and not line.startswith("#")]
    assert lines == ["vm.swappiness = 1", "net.core.rmem_max = 134217728"]


def test_the_second_run_changes_nothing(host: FakeHost) -> None:
    asked = wanted(
        vm__swappiness=0,
        vm__dirty_ratio=40,
        vm__nr_hugepages=100000,
        net__ipv4__tcp_rmem="4096 87380 134217728",
        net__ipv4__tcp_congestion_control="bbr",
        vm__min_free_kbytes={"value": 5, "optional": True},
        transparent_hugepage__enabled="always",
    )
    assert apply(asked, host.root).changed
    before = host.snapshot()
    again = apply(asked, host.root)
    assert not again.changed
    assert again.as_dict()["status"] == "unchanged"
    assert host.snapshot() == before


def test_limits_are_raised_and_never_lowered_field_by_field(host: FakeHost) -> None:
    asked = parse('{"net.ipv4.tcp_rmem": "4096 87380 134217728", "fs.file-max": 2097152}', "wanted")
    rmem, file_max = apply(asked, host.root).knobs
    assert (rmem.verdict, rmem.accepted) == ("adapted", "4096 131072 134217728")
    assert "never lowered" in rmem.why
    assert (file_max.verdict, file_max.effective) == ("kept", "9223372036854775807")
    assert "fs.file-max" not in host.read(SYSCTL)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_raising_follows_the_last_wish_but_stays_above_the_hosts_own(
    host: FakeHost, own: int, first: int, second: int
) -> None:
    for path in (SYSCTL, RECORD):
        (host.root / path).unlink(missing_ok=True)
    host.set("net.core.rmem_max", str(own))
    for wish in (first, second, second):
        apply(wanted(net__core__rmem_max=wish), host.root)
        assert host.get("net.core.rmem_max") == str(max(own, wish))
    apply([], host.root)
    assert host.get("net.core.rmem_max") == str(own)
    assert not (host.root / SYSCTL).exists()


def test_no_swap_takes_the_documents_zero(host: FakeHost) -> None:
    assert only(apply(wanted(vm__swappiness=0), host.root).knobs).accepted == "0"


def test_huge_pages_leave_the_floor_and_say_why(host: FakeHost) -> None:
    host.memory(4096 * MIB)
    knob = only(apply(wanted(vm__nr_hugepages=524288), host.root).knobs)
    assert knob.verdict == "adapted"
    assert int(host.get("vm.nr_hugepages")) * 2048 == 2048 * MIB  # of 4 GiB, 2 GiB stay
    assert "1 TiB" in knob.why


def test_huge_pages_of_other_sizes_count_as_taken(host: FakeHost) -> None:
    host.memory(64 * 1024 * MIB)
    free = only(plan(wanted(vm__nr_hugepages=10**6), host.root).knobs)
    host.write("proc/meminfo", host.read("proc/meminfo") + f"Hugetlb: {16 * 1024 * MIB} kB\n")
    taken = only(plan(wanted(vm__nr_hugepages=10**6), host.root).knobs)
    assert int(free.accepted or 0) - int(taken.accepted or 0) == 16 * 1024 // 2


def test_huge_pages_are_refused_when_too_little_is_free_now(host: FakeHost) -> None:
    host.memory(64 * 1024 * MIB, available_kb=1024 * MIB)
    assert codes(host, vm__nr_hugepages=1024) == ["sysctl-no-memory"]


def test_a_zero_of_ours_does_not_take_another_programs_huge_pages(host: FakeHost) -> None:
    host.set("vm.nr_hugepages", "64")
    assert only(apply(wanted(vm__nr_hugepages=0), host.root).knobs).verdict == "kept"
    assert host.get("vm.nr_hugepages") == "64"


def test_a_dirty_ratio_of_a_large_host_becomes_bytes_with_a_ceiling(host: FakeHost) -> None:
    host.memory(2048 * 1024 * MIB)
    knob = only(apply(wanted(vm__dirty_ratio=40), host.root).knobs)
    assert (knob.written, knob.verdict, host.get("vm.dirty_bytes")) == (
        "vm.dirty_bytes",
        "adapted",
        str(16 << 30),
    )
    host.set("vm.dirty_ratio", "0")  # as the kernel does
    assert not plan(wanted(vm__dirty_ratio=40), host.root).changed
    apply([], host.root)
    assert host.get("vm.dirty_ratio") == "20"


def test_two_keys_of_which_the_kernel_keeps_one_are_refused(host: FakeHost) -> None:
    assert codes(host, vm__dirty_ratio=40, vm__dirty_bytes=8192) == ["sysctl-conflict"]


def test_bbr_gets_its_module_at_boot_and_a_built_in_needs_none(host: FakeHost) -> None:
    apply(wanted(net__ipv4__tcp_congestion_control="bbr", net__core__default_qdisc="fq"), host.root)
    listed = host.read("etc/modules-load.d/zernel.conf").splitlines()
    assert [line for line in listed if not line.startswith("#")] == ["tcp_bbr"]


def test_a_module_that_the_kernel_lacks_is_refused_unless_optional(host: FakeHost) -> None:
    assert codes(host, net__ipv4__tcp_congestion_control="hybla") == ["sysctl-no-module"]
    knob = only(
        apply(wanted(net__ipv4__tcp_congestion_control={"value": "hybla", "optional": True}), host.root).knobs
    )
    assert (knob.verdict, knob.accepted) == ("unavailable", None)


def test_an_unknown_key_is_refused_with_the_key_that_was_meant(host: FakeHost) -> None:
    with pytest.raises(ZernelError) as caught:
        apply(wanted(vm__swapiness=1), host.root)
    (problem,) = caught.value.problems
    assert problem.code == "sysctl-unknown"
    assert "vm.swappiness" in (problem.suggestion or "")
    assert problem.locations[0].line == 1


def test_an_optional_key_that_the_kernel_lacks_is_reported(host: FakeHost) -> None:
    knob = only(apply(wanted(kernel__numa_balancing={"value": 1, "optional": True}), host.root).knobs)
    assert knob.verdict == "unavailable"
    assert "numa_balancing" in knob.why


@pytest.mark.parametrize(
    "values",
    [
        {"net__ipv4__tcp_rmem": "4096 87380"},
        {"vm__swappiness": "1 2"},
        {"vm__swappiness": "low"},
        {"vm__swappiness": "1" * 6000},
        {"vm__nr_hugepages": "1" * 6000},
        {"transparent_hugepage__enabled": "sometimes"},
        {"kernel__core_pattern": {"value": "x", "policy": "raise"}},
    ],
)
def test_a_value_that_does_not_fit_is_refused(host: FakeHost, values: dict[str, Any]) -> None:
    assert codes(host, **values) == ["sysctl-wrong-value"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net.core.rmem_max", "99999999999"),
        ("net.core.wmem_max", "2147483648"),
        ("net.ipv4.tcp_rmem", "4096 0 6291456"),
        ("vm.swappiness", "-1"),
        ("vm.swappiness", "201"),
        ("vm.dirty_ratio", "101"),
        ("vm.overcommit_memory", "3"),
        ("fs.file-max", "9223372036854775808"),
        ("vm.max_map_count", "many"),
    ],
)
@pytest.mark.parametrize("action", ["check", "plan", "apply"])
def test_what_no_kernel_takes_is_refused_before_it_is_written(
    host: FakeHost, capsys: pytest.CaptureFixture[str], key: str, value: str, action: str
) -> None:
    host.write("wanted.yaml", f"{key}: '{value}'\n")
    path = str(host.root / "wanted.yaml")
    assert main(["sysctl", action, "--root", str(host.root), "--input", path]) == 1
    shown = capsys.readouterr().err
    assert f"ERROR: {key}: The value does not fit the setting" in shown
    assert "Suggestion: Write a number from" in shown
    assert "Line 1:" in shown


@pytest.mark.parametrize(
    ("key", "value"),
    [("net.core.rmem_max", "2147483647"), ("vm.swappiness", "200"), ("vm.swappiness", "0")],
)
def test_the_last_value_that_the_kernel_takes_is_no_error(host: FakeHost, key: str, value: str) -> None:
    host.write("wanted.yaml", f"{key}: {value}\n")
    path = str(host.root / "wanted.yaml")
    for action in ("check", "plan"):
        assert main(["sysctl", action, "--root", str(host.root), "--input", path]) == 0


def test_every_problem_is_shown_at_once(host: FakeHost) -> None:
    assert codes(host, vm__swapiness=1, vm__swappiness="low") == ["sysctl-unknown", "sysctl-wrong-value"]


def test_transparent_huge_pages_last_through_tmpfiles(host: FakeHost) -> None:
    knob = only(apply(wanted(transparent_hugepage__enabled="always"), host.root).knobs)
    assert (knob.before, knob.effective) == ("madvise", "always")
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    assert f"\nw /{path} - - - - always\n" in host.read("etc/tmpfiles.d/zernel.conf")
    apply([], host.root)
    assert host.read(path) == "madvise\n"
    assert not (host.root / "etc/tmpfiles.d/zernel.conf").exists()


def test_what_is_no_longer_asked_for_goes_back(host: FakeHost) -> None:
    before = {key: host.get(key) for key in ("vm.swappiness", "vm.overcommit_memory")}
    apply(wanted(vm__swappiness=1, vm__overcommit_memory=1), host.root)
    result = apply(wanted(vm__overcommit_memory=1), host.root)
    assert [knob.key for knob in result.knobs if knob.verdict == "released"] == ["vm.swappiness"]
    assert host.get("vm.swappiness") == before["vm.swappiness"]
    apply([], host.root)
    assert {key: host.get(key) for key in before} == before
    assert not (host.root / RECORD).exists()


def test_a_value_that_another_has_changed_is_not_taken_back(host: FakeHost) -> None:
    apply(wanted(vm__swappiness=1), host.root)
    host.set("vm.swappiness", "7")
    apply([], host.root)
    assert host.get("vm.swappiness") == "7"


def test_the_record_keeps_the_first_value_through_later_runs(host: FakeHost) -> None:
    apply(wanted(vm__swappiness=1), host.root)
    apply(wanted(vm__swappiness=5), host.root)
    assert json.loads(host.read(RECORD))["values"]["vm.swappiness"] == "60"


def test_a_value_that_does_not_take_puts_everything_back(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second value is cut by the kernel, as huge pages are when memory is short."""
    write = LiveSettings.write

    def cut(self: LiveSettings, key: str, value: str) -> None:
        write(self, key, "3" if (key, value) == ("vm.nr_hugepages", "8") else value)

    monkeypatch.setattr(LiveSettings, "write", cut)
    apply(wanted(vm__swappiness=10), host.root)
    before = host.snapshot()
    with pytest.raises(ZernelError) as caught:
        apply(wanted(vm__swappiness=1, vm__nr_hugepages=8, vm__overcommit_memory=1), host.root)
    assert host.snapshot() == before
    assert "as it was before" in (caught.value.problems[0].current_state or "")


def test_a_file_that_cannot_be_written_puts_the_values_back(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.snapshot()
    replace = sysctl.files.replace

    def full(path: Path, text: str, mode: int = 0o644) -> None:
        if path.name == "zernel.conf":
            raise OSError(28, "No space left on device", str(path))
        replace(path, text, mode)

    monkeypatch.setattr(sysctl.files, "replace", full)
    with pytest.raises(ZernelError) as caught:
        apply(wanted(vm__swappiness=1, transparent_hugepage__enabled="always"), host.root)
    assert "No space left" in caught.value.problems[0].render()
    after = host.snapshot()
    assert {k: v for k, v in after.items() if "transparent" not in k} == {
        k: v for k, v in before.items() if "transparent" not in k
    }
    assert host.read("sys/kernel/mm/transparent_hugepage/enabled") == "madvise\n"


def test_a_damaged_record_stops_the_run(host: FakeHost) -> None:
    host.write(RECORD, "{")
    assert codes(host, vm__swappiness=1) == ["tuning-record-damaged"]


def test_a_file_that_comes_later_at_boot_is_reported(host: FakeHost) -> None:
    host.write("etc/sysctl.d/zz-local.conf", "vm.swappiness = 60\n")
    (warning,) = plan(wanted(vm__swappiness=1), host.root).warnings
    assert "zz-local.conf" in warning


def test_a_file_that_was_there_keeps_its_mode(host: FakeHost) -> None:
    host.write(SYSCTL, "# mine\n")
    (host.root / SYSCTL).chmod(0o640)
    apply(wanted(vm__swappiness=1), host.root)
    assert (host.root / SYSCTL).stat().st_mode & 0o777 == 0o640
    assert json.loads(host.read(RECORD))["files"] == {f"/{SYSCTL}": "# mine\n"}


def test_the_command_prints_one_stable_object(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.write("wanted.yaml", "vm.swappiness: 1\n")
    arguments = ["sysctl", "apply", "--root", str(host.root), "--input", str(host.root / "wanted.yaml")]
    assert main([*arguments, "--format=json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "planned"
    assert main([*arguments, "--format=json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["changed"], data["knobs"][0]["effective"]) == ("applied", True, "1")
    assert main(arguments) == 0
    assert "Nothing to change." in capsys.readouterr().out


@pytest.mark.parametrize("action", ["plan", "apply"])
@pytest.mark.parametrize("output", ["text", "json", "yaml"])
def test_every_format_can_be_printed(
    host: FakeHost, capsys: pytest.CaptureFixture[str], action: str, output: str
) -> None:
    host.write("wanted.yaml", "vm.swappiness: 1\nnet.core.rmem_max: {value: 9000000, policy: raise}\n")
    path = str(host.root / "wanted.yaml")
    assert main(["sysctl", action, "--root", str(host.root), "--input", path, f"--format={output}"]) == 0
    out = capsys.readouterr().out
    if output != "text":
        assert [knob["policy"] for knob in yaml.safe_load(out)["knobs"]] == ["set", "raise"]


def test_an_input_that_may_never_end_is_refused(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(host.root / "fifo")
    for path in (str(host.root / "fifo"), "/dev/zero"):
        assert main(["sysctl", "plan", "--root", str(host.root), "--input", path]) == 1
        assert "Not a regular file" in capsys.readouterr().err


def test_a_root_without_settings_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for run in (plan, apply):
        with pytest.raises(ZernelError) as caught:
            run([], tmp_path / "none")
        assert caught.value.problems[0].code == "sysctl-no-root"
    assert not (tmp_path / "none").exists()


def test_a_lock_that_stays_taken_names_its_holder(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl.files, "LOCK_SECONDS", 0.1)
    with sysctl.files.locked(host.root / sysctl.LOCK_FILE), pytest.raises(ZernelError) as caught:
        apply(wanted(vm__swappiness=1), host.root)
    (problem,) = caught.value.problems
    assert problem.code == "locked"
    assert f"pid {os.getpid()}" in problem.category
    assert apply(wanted(vm__swappiness=1), host.root).changed


def test_a_rollback_that_fails_keeps_what_the_host_had(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LiveSettings.write

    def once(self: LiveSettings, key: str, value: str) -> None:
        if (key, value) != ("vm.swappiness", "1"):
            raise OSError(5, "Input/output error")
        write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(LiveSettings, "write", once)
        with pytest.raises(ZernelError) as caught:
            apply(wanted(vm__swappiness=1, vm__overcommit_memory=1), host.root)
    assert "Could not be put back" in (caught.value.problems[0].current_state or "")
    apply([], host.root)
    assert host.get("vm.swappiness") == "60"


def test_the_command_refuses_with_status_one(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    missing = os.fspath(host.root / "none.yaml")
    assert main(["sysctl", "plan", "--input", missing]) == 1
    assert "Cannot read the desired settings" in capsys.readouterr().err
