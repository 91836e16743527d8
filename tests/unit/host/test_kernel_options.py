# SPDX-License-Identifier: GPL-3.0-or-later
"""The report on a kernel: running, installed, or only a configuration."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from zernel.cli.main import main
from zernel.errors import ZernelError
from zernel.host.kernel_options import KernelReport, OptionReport, Source, report
from zernel.host.kernel_wants import DOCUMENT, WANTS

from . import images

RELEASE = "7.3.4-test"
EVERYTHING = "".join(f"{want.option}={want.asked}\n" for want in WANTS if want.implied_by is None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host whose running kernel has everything."""
    put(tmp_path, "proc/sys/kernel/osrelease", RELEASE + "\n")
    put(tmp_path, f"boot/config-{RELEASE}", EVERYTHING)
    put(tmp_path, "sys/kernel/btf/vmlinux", images.btf(malformed=False))
    return tmp_path


def put(root: Path, path: str, content: str | bytes) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def config(root: Path, old: str, new: str) -> None:
    put(root, f"boot/config-{RELEASE}", EVERYTHING.replace(old + "\n", new + "\n"))


def line(result: KernelReport, option: str) -> OptionReport:
    return next(entry for entry in result.options if entry.want.option == option)


def codes(result: KernelReport) -> list[str]:
    assert all(problem.suggestion for problem in result.unmet)
    return [problem.code for problem in result.unmet]


OPTIONS = """
SCHED_CLASS_EXT BPF BPF_SYSCALL BPF_JIT BPF_JIT_ALWAYS_ON
TRANSPARENT_HUGEPAGE TRANSPARENT_HUGEPAGE_ALWAYS HUGETLB_PAGE HUGETLBFS HZ_1000 HZ HIGH_RES_TIMERS
NUMA NUMA_BALANCING NUMA_BALANCING_DEFAULT_ENABLED MEMPOLICY
INFINIBAND INFINIBAND_USER_ACCESS RDMA_RXE TCP_CONG_BBR
IO_URING BLK_DEV_NVME NVME_MULTIPATH
NAMESPACES CGROUPS CGROUP_SCHED OVERLAY_FS
"""
"""The options of the kernel document, in its order."""


def test_every_option_of_the_document_is_reported_with_its_reason(root: Path) -> None:
    assert [want.option for want in DOCUMENT] == [f"CONFIG_{name}" for name in OPTIONS.split()]
    assert all(want.rationale for want in WANTS)
    result = report(Source(root), strict=True)
    assert {entry.verdict for entry in result.options} == {"ok"}
    assert codes(result) == []


def test_an_option_that_is_off_is_missing_and_one_that_is_required_is_refused(root: Path) -> None:
    config(root, "CONFIG_SCHED_CLASS_EXT=y", "# CONFIG_SCHED_CLASS_EXT is not set")
    result = report(Source(root))
    assert (line(result, "CONFIG_SCHED_CLASS_EXT").found, line(result, "CONFIG_SCHED_CLASS_EXT").verdict) == (
        "n",
        "missing",
    )
    assert codes(result) == []
    for name in ("SCHED_CLASS_EXT", "CONFIG_SCHED_CLASS_EXT", "sched_ext"):
        assert codes(report(Source(root), [name])) == ["kernel-option-missing"]
    assert codes(report(Source(root), ["memory", "BPF_JIT"])) == []


def test_a_module_serves_where_that_is_sensible_and_nowhere_else(root: Path) -> None:
    config(root, "CONFIG_TCP_CONG_BBR=y", "CONFIG_TCP_CONG_BBR=m")
    assert line(report(Source(root)), "CONFIG_TCP_CONG_BBR").verdict == "module"
    assert codes(report(Source(root), strict=True)) == []
    config(root, "CONFIG_NUMA=y", "CONFIG_NUMA=m")
    assert line(report(Source(root)), "CONFIG_NUMA").verdict == "missing"


def test_another_number_is_missing(root: Path) -> None:
    config(root, "CONFIG_HZ=1000", "CONFIG_HZ=250")
    entry = line(report(Source(root)), "CONFIG_HZ")
    assert (entry.found, entry.verdict) == ("250", "missing")
    assert "Debian" in entry.why


def test_memory_policies_come_with_numa(root: Path) -> None:
    assert line(report(Source(root)), "CONFIG_MEMPOLICY").verdict == "ok"
    config(root, "CONFIG_NUMA=y", "# CONFIG_NUMA is not set")
    assert line(report(Source(root)), "CONFIG_MEMPOLICY").verdict == "missing"


@pytest.mark.parametrize(
    "place",
    [
        "proc/config.gz",
        f"boot/config-{RELEASE}",
        f"lib/modules/{RELEASE}/config",
        f"usr/lib/modules/{RELEASE}/build/.config",
    ],
)
def test_the_configuration_is_found_wherever_it_lies(root: Path, place: str) -> None:
    (root / f"boot/config-{RELEASE}").unlink()
    put(root, place, gzip.compress(EVERYTHING.encode()) if place.endswith("gz") else EVERYTHING)
    result = report(Source(root))
    assert result.config_source == str(root / place)
    assert line(result, "CONFIG_HZ").verdict == "ok"


def test_without_a_configuration_the_kernels_own_traces_count_and_the_rest_is_unknown(root: Path) -> None:
    (root / f"boot/config-{RELEASE}").unlink()
    (root / "sys/kernel/sched_ext").mkdir()
    result = report(Source(root), ["SCHED_CLASS_EXT"])
    assert line(result, "CONFIG_SCHED_CLASS_EXT").verdict == "ok"
    assert codes(result) == []
    entry = line(result, "CONFIG_HZ")
    assert (entry.found, entry.verdict) == (None, "unknown")
    assert f"boot/config-{RELEASE}" in entry.why
    assert codes(report(Source(root), ["HZ"])) == ["kernel-option-unknown"]


def test_malformed_kernel_functions_are_refused_by_name(root: Path) -> None:
    put(root, "sys/kernel/btf/vmlinux", images.btf(malformed=True))
    result = report(Source(root), ["kfuncs"])
    assert result.btf.malformed_kfuncs == ("scx_bpf_other",)
    assert codes(result) == ["kernel-malformed-kfuncs"]
    assert "scx_bpf_other" in result.unmet[0].render()
    assert codes(report(Source(root), ["btf"])) == []


def test_a_kernel_without_type_information_is_refused_once(root: Path) -> None:
    (root / "sys/kernel/btf/vmlinux").unlink()
    for names in (["btf"], ["kfuncs"], ["btf", "kfuncs"]):
        assert "kernel-no-btf" in codes(report(Source(root), names))
        assert codes(report(Source(root), names)).count("kernel-no-btf") == 1


def test_damaged_type_information_is_unknown(root: Path) -> None:
    put(root, "sys/kernel/btf/vmlinux", b"\x9f\xeb\x01\x00 nothing that follows makes sense")
    assert report(Source(root)).btf.verdict == "unknown"


@pytest.mark.parametrize("malformed", [False, True])
@pytest.mark.parametrize(
    "place", ["boot/vmlinuz-8.0-next", "usr/lib/modules/8.0-next/vmlinuz.unsigned"], ids=["boot", "unsigned"]
)
def test_a_kernel_that_has_not_been_booted_is_judged_from_its_files(
    root: Path, place: str, malformed: bool
) -> None:
    put(root, "boot/config-8.0-next", EVERYTHING)
    put(root, place, images.bzimage(gzip.compress(images.elf({".BTF": images.btf(malformed=malformed)}))))
    result = report(Source(root, release="8.0-next"), ["sched_ext", "kfuncs"])
    assert not result.running
    assert codes(result) == (["kernel-malformed-kfuncs"] if malformed else [])


def test_a_kernel_that_is_not_installed_is_not_taken_for_the_running_one(root: Path) -> None:
    (root / "sys/kernel/sched_ext").mkdir()
    put(root, "lib/modules/6.1.0-old/config", EVERYTHING)
    for release in ("8.0-next", "../../etc/passwd", ""):
        with pytest.raises(ZernelError) as caught:
            report(Source(root, release=release))
        (problem,) = caught.value.problems
        assert problem.code == "kernel-not-installed"
        assert f"6.1.0-old, {RELEASE}" in (problem.current_state or "")


@pytest.mark.parametrize("content", [None, b"garbage", images.elf({".text": b"any program"})])
def test_a_given_image_that_is_no_kernel_is_an_error(root: Path, content: bytes | None) -> None:
    if content is not None:
        put(root, "given", content)
    for image in (root / "given", root, Path("/dev/zero")):
        with pytest.raises(ZernelError) as caught:
            report(Source(root, image=image))
        assert caught.value.problems[0].code == "kernel-image"


def test_a_release_that_is_no_text_is_unknown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, "proc/sys/kernel/osrelease", b"\xff\xfe\n")
    assert main(["kernel", "report", "--root", str(root), "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernel"] is None


@pytest.mark.parametrize("name", ["", "none", "boot"])
def test_a_root_that_is_no_hosts_is_an_error(
    root: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "boot")
    assert main(["kernel", "report", "--root", str(root / name) if name else ""]) == 1
    assert "No kernel runs there" in capsys.readouterr().err


def test_a_requirement_that_is_none_is_refused_with_what_was_meant(root: Path) -> None:
    with pytest.raises(ZernelError) as caught:
        report(Source(root), ["SCHED_CLAS_EXT"])
    assert "CONFIG_SCHED_CLASS_EXT" in (caught.value.problems[0].suggestion or "")


@pytest.mark.parametrize(
    "content", [None, "no configuration\n", b"\x1f\x8b broken", b"\x1f\x8b\x08\0\0\0\0\0\0\xff????????"]
)
def test_a_file_that_is_no_configuration_is_refused(root: Path, content: str | bytes | None) -> None:
    if content is not None:
        put(root, "given", content)
    with pytest.raises(ZernelError) as caught:
        report(Source(root, config=root / "given"))
    assert caught.value.problems[0].code == "kernel-config"


def test_the_command_reports_with_status_0_and_refuses_with_1(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(root, "CONFIG_HZ=1000", "CONFIG_HZ=250")
    assert main(["kernel", "report", "--root", str(root), "--format=json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["kernel"], data["summary"]["missing"]) == ("ok", RELEASE, 1)
    assert main(["kernel", "report", "--root", str(root), "--format=json", "--require=HZ,btf"]) == 1
    output = capsys.readouterr()
    data = json.loads(output.out)
    assert (data["status"], [error["code"] for error in data["errors"]]) == (
        "refused",
        ["kernel-option-missing"],
    )
    assert f"ERROR: {RELEASE}: The kernel lacks CONFIG_HZ=1000" in output.err
    assert main(["kernel", "report", "--root", str(root), "--strict"]) == 1
    assert "CONFIG_HZ=1000" in capsys.readouterr().out
