# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel doctor`` on hosts that are made up of files, on this machine, and as a plain user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cuda_stub import build_library
from zernel.host.doctor import CHECKS, REQUIRED

from .images import btf

STATES = {"ok", "missing", "not-needed", "unknown"}


class Files:
    """A root directory; a good Debian 13 host with a sched_ext kernel to begin with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(
            "etc/os-release", 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n'
        )
        self.write("proc/sys/kernel/osrelease", "7.3.4-test\n")
        self.write("proc/sys/kernel/unprivileged_bpf_disabled", "2\n")
        self.write("proc/cmdline", "root=/dev/vda quiet\n")
        self.write("proc/filesystems", "nodev\tsysfs\n\text4\n")
        self.write("proc/mounts", "bpf /sys/fs/bpf bpf rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n")
        self.write("sys/kernel/sched_ext/state", "disabled\n")
        self.write("sys/bus/event_source/devices/uprobe/type", "8\n")
        self.write("sys/kernel/btf/vmlinux", btf(malformed=False))

    def write(self, path: str, content: str | bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def doctor(self, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Return the exit status and the capabilities by name."""
        done = doctor("--root", str(self.root), "--format=json", *arguments)
        data = json.loads(done.stdout)
        return done.returncode, {one["name"]: one for one in data["capabilities"]}


def doctor(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "zernel", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(autouse=True)
def no_root_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests has exported is no part of the hosts that are looked at."""
    monkeypatch.delenv("ZERNEL_MULTIKERNEL_ROOT", raising=False)


@pytest.fixture
def host(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_good_host_can_run_what_is_required(host: Files) -> None:
    status, found = host.doctor()
    assert status == 0
    assert {name for name in REQUIRED if found[name]["state"] != "ok"} == set()
    assert found["bpffs"]["state"] == found["tracefs"]["state"] == "ok"
    assert found["nvml"]["state"] == found["libcuda"]["state"] == "not-needed"


def test_the_json_form_is_the_documented_one(host: Files) -> None:
    done = doctor("--root", str(host.root), "--format=json")
    data = json.loads(done.stdout)
    assert set(data) == {"status", "required", "simulated", "capabilities"}
    assert data["status"] == "ok"
    assert data["required"] == list(REQUIRED)
    assert data["simulated"] is False
    assert [one["name"] for one in data["capabilities"]] == list(CHECKS)
    for one in data["capabilities"]:
        assert set(one) == {"name", "title", "state", "required", "reason", "suggestion", "details"}
        assert one["state"] in STATES
        assert one["required"] is (one["name"] in REQUIRED)
        assert isinstance(one["reason"], str)
        assert one["reason"]
        assert one["suggestion"] is None or isinstance(one["suggestion"], str)
        assert isinstance(one["details"], dict)
        # What is missing always comes with what to do.
        assert one["state"] != "missing" or one["suggestion"]


def test_text_names_what_is_not_there(host: Files) -> None:
    host.remove("sys/kernel/sched_ext/state")
    done = doctor("--root", str(host.root))
    assert done.returncode == 1
    assert "MISSING    sched_ext    *" in done.stdout
    assert "* required; not there: sched_ext" in done.stdout
    assert "\x1b" not in done.stdout


def test_what_is_required_can_be_chosen(host: Files) -> None:
    host.remove("sys/kernel/sched_ext/state")
    assert host.doctor()[0] == 1
    assert host.doctor("--require", "bpf,uprobes")[0] == 0
    assert host.doctor("--require", "")[0] == 0
    assert host.doctor("--require", "bpf,iommu")[0] == 1


def test_an_unknown_requirement_is_refused(host: Files) -> None:
    done = doctor("--root", str(host.root), "--require", "sched_exd")
    assert done.returncode == 1
    assert "There is no capability 'sched_exd'" in done.stderr
    assert "Did you mean 'sched_ext'?" in done.stderr


@pytest.mark.parametrize(
    ("release", "state", "words"),
    [
        (
            'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"',
            "ok",
            "not the scheduler",
        ),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"', "missing", "too old"),
        ('ID=debian\nPRETTY_NAME="Debian GNU/Linux forky/sid"', "ok", "not tried"),
        (
            'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04"',
            "missing",
            "is not Debian",
        ),
        ("NAME=Mystery", "missing", "is not Debian"),
    ],
)
def test_debian_releases(host: Files, release: str, state: str, words: str) -> None:
    host.write("etc/os-release", release)
    found = host.doctor()[1]["debian"]
    assert (found["state"], words in found["reason"]) == (state, True), found


def test_no_type_information_means_neither_probes_nor_schedulers(host: Files) -> None:
    host.remove("sys/kernel/btf/vmlinux")
    status, found = host.doctor()
    assert status == 1
    assert {name for name in REQUIRED if found[name]["state"] == "missing"} == {
        "btf",
        "tracepoints",
        "sched_ext",
    }
    assert "CONFIG_DEBUG_INFO_BTF" in found["btf"]["suggestion"]


def test_damaged_type_information_is_unknown_not_a_crash(host: Files) -> None:
    host.write("sys/kernel/btf/vmlinux", b"\x9f\xeb\x01\x00 nonsense")
    status, found = host.doctor()
    assert status == 1
    assert found["btf"]["state"] in ("unknown", "missing")


def test_malformed_kernel_functions_stop_schedulers_not_probes(host: Files) -> None:
    host.write("sys/kernel/btf/vmlinux", btf(malformed=True))
    status, found = host.doctor()
    assert status == 1
    assert found["sched_ext"]["state"] == "missing"
    assert "scx_bpf_other" in found["sched_ext"]["reason"]
    assert "scx_bpf_good" not in found["sched_ext"]["reason"]
    assert found["sched_ext"]["details"]["malformed_kfuncs"] == ["scx_bpf_other"]
    assert found["btf"]["state"] == "ok"
    assert host.doctor("--require", "bpf,uprobes,btf")[0] == 0


@pytest.mark.parametrize(
    ("ops", "state", "word"), [("zernel", "ok", "zernel is enabled"), ("scx_lavd_1", "missing", "scx_lavd_1")]
)
def test_who_schedules_now(host: Files, ops: str, state: str, word: str) -> None:
    host.write("sys/kernel/sched_ext/state", "enabled\n")
    host.write("sys/kernel/sched_ext/root/ops", f"{ops}\n")
    found = host.doctor()[1]["sched_ext"]
    assert (found["state"], word in found["reason"]) == (state, True), found


def test_isolated_cpus_stop_schedulers(host: Files) -> None:
    host.write("proc/cmdline", "quiet isolcpus=2-3\n")
    found = host.doctor()[1]["sched_ext"]
    assert found["state"] == "missing"
    assert "isolcpus=2-3" in found["reason"]


def test_a_kernel_without_uprobes(host: Files) -> None:
    host.remove("sys/bus/event_source/devices/uprobe/type")
    status, found = host.doctor()
    assert (status, found["uprobes"]["state"]) == (1, "missing")


def test_mounts_that_are_not_there(host: Files) -> None:
    host.write("proc/mounts", "proc /proc proc rw 0 0\n")
    found = host.doctor()[1]
    assert found["bpffs"]["state"] == "missing"
    assert "mount -t bpf" in found["bpffs"]["suggestion"]
    assert found["tracefs"]["state"] == "not-needed"


def add_gpu(host: Files) -> None:
    host.write("sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de\n")
    host.write("sys/bus/pci/devices/0000:41:00.0/class", "0x030200\n")
    # Its audio function is no GPU.
    host.write("sys/bus/pci/devices/0000:41:00.1/vendor", "0x10de\n")
    host.write("sys/bus/pci/devices/0000:41:00.1/class", "0x040300\n")


def test_a_gpu_without_its_driver(host: Files) -> None:
    add_gpu(host)
    found = host.doctor()[1]
    assert found["nvml"]["details"]["gpus"] == ["0000:41:00.0"]
    assert found["nvml"]["state"] == "unknown"
    assert "1 NVIDIA GPU" in found["nvml"]["reason"]
    assert found["libcuda"]["state"] == "missing"
    assert "libcuda1" in found["libcuda"]["suggestion"]


@pytest.mark.parametrize("plain", [False, True])
def test_libcuda_is_found_with_the_cost_of_its_probes(host: Files, plain: bool) -> None:
    add_gpu(host)
    build_library(host.root / "usr/lib/x86_64-linux-gnu", plain=plain)
    found = host.doctor()[1]["libcuda"]
    assert found["state"] == "ok"
    (library,) = found["details"]["libraries"]
    assert library["path"] == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert library["functions"] == 12
    assert len(library["slow_functions"]) == (12 if plain else 0)
    assert ("slow probes" if plain else "probes are cheap") in found["reason"]


def test_a_libcuda_that_is_none(host: Files) -> None:
    host.write("usr/lib64/libcuda.so.1", b"\x7fELF nonsense")
    found = host.doctor()[1]["libcuda"]
    assert found["state"] == "missing"
    assert "cannot be probed" in found["reason"]


def test_multikernel_is_told_by_what_the_kernel_has(host: Files) -> None:
    assert "no multikernel support" in host.doctor()[1]["multikernel"]["reason"]
    host.write("proc/filesystems", "nodev\tmultikernel\n")
    found = host.doctor()[1]["multikernel"]
    assert (found["state"], "not mounted" in found["reason"]) == ("missing", True)
    # A simulation is never taken beside a kernel that only lacks its mount.
    simulation = "zernel-simulated /run/zernel/multikernel fuse.zernel-simulated rw 0 0\n"
    host.write("proc/mounts", simulation)
    assert host.doctor()[1]["multikernel"]["state"] == "missing"
    host.write("proc/filesystems", "nodev\tfuse\n")
    found = host.doctor()[1]["multikernel"]
    assert (found["state"], found["details"]["simulated"]) == ("ok", True)
    assert found["reason"].startswith("SIMULATED: /run/zernel/multikernel")
    host.write("proc/mounts", f"none /sys/fs/multikernel multikernel rw 0 0\n{simulation}")
    found = host.doctor()[1]["multikernel"]
    assert (found["state"], found["details"]["simulated"]) == ("ok", False)


def in_namespace(code: str) -> Any:
    """Run Python with mounts of its own and an empty /run; return the JSON that it prints."""
    prepared = 'mount -t tmpfs none /run && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", prepared, "sh", sys.executable, "-c", _IN_NAMESPACE + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_IN_NAMESPACE = """
import json, os, subprocess, sys
from pathlib import Path
from zernel.multikernel import mounts

def zernel(*words):
    command = [sys.executable, "-m", "zernel", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)

def doctor():
    found = json.loads(zernel("doctor", "--format=json", "--require=").stdout)["capabilities"]
    return next(one for one in found if one["name"] == "multikernel")

place = "/run/zernel/multikernel"
"""


@pytest.mark.root
def test_the_simulation_in_its_own_place_is_what_show_uses() -> None:
    """No environment variable names it: the place of zernel-multikernel-simulated.service."""
    found, shown, after = in_namespace(
        "zernel('simulate', 'multikernel', place, '--background')\n"
        "found, shown = doctor(), zernel('show').stderr\n"
        "subprocess.run(['umount', place], check=True)\n"
        "print(json.dumps([found, shown, doctor()]))\n"
    )
    assert "No baseline is applied" in shown
    assert found["reason"] in shown
    assert found["state"] == "ok"
    # A tree without a baseline does not tell which wire format the kernel has.
    assert found["details"] == {"mount": "/run/zernel/multikernel", "simulated": True, "wire": None}
    assert found["reason"].startswith("SIMULATED: /run/zernel/multikernel is served by")
    assert (after["state"], after["details"]["simulated"]) == ("missing", False)
    assert "mount -t multikernel" in after["suggestion"]


@pytest.mark.root
def test_another_fuse_mount_is_no_simulation_and_is_not_touched() -> None:
    """Nobody answers for this one: a call into it would hang."""
    found, refused = in_namespace(
        "os.makedirs(place)\n"
        "device = os.open('/dev/fuse', os.O_RDWR)\n"
        "options = f'fd={device},rootmode=40000,user_id=0,group_id=0'\n"
        "mounts.mount('other', Path(place), 'fuse.other', 0, options)\n"
        "os.environ['ZERNEL_MULTIKERNEL_ROOT'] = place\n"
        "print(json.dumps([doctor(), zernel('show').stderr]))\n"
    )
    assert (found["state"], found["details"]["simulated"]) == ("missing", False)
    assert "What is mounted there is of type 'fuse.other'" in found["reason"]
    assert "What is mounted there is of type 'fuse.other'" in refused


@pytest.mark.root
def test_a_simulation_that_died_is_said() -> None:
    found = in_namespace(
        "started = zernel('simulate', 'multikernel', place, '--background', '--format=json')\n"
        "os.kill(json.loads(started.stdout)['pid'], 9)\n"
        "print(json.dumps(doctor()))\n"
    )
    assert found["state"] == "missing"
    assert "died and left its mount behind" in found["reason"]
    assert "umount -l /run/zernel/multikernel" in found["suggestion"]


def test_iommu(host: Files) -> None:
    found = host.doctor()[1]["iommu"]
    assert (found["state"], "firmware" in found["suggestion"]) == ("missing", True)
    host.write("proc/cmdline", "intel_iommu=off\n")
    found = host.doctor()[1]["iommu"]
    assert "switched off" in found["reason"]
    (host.root / "sys/class/iommu/dmar0").mkdir(parents=True)
    (host.root / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    host.write("proc/cmdline", "intel_iommu=on iommu=pt\n")
    found = host.doctor()[1]["iommu"]
    assert found["state"] == "ok"
    assert found["details"] == {"units": ["dmar0"], "groups": 1, "cmdline": ["intel_iommu=on", "iommu=pt"]}


def test_huge_pages_of_each_node(host: Files) -> None:
    assert host.doctor()[1]["hugepages"]["state"] == "missing"
    for node, total in (("node0", 512), ("node1", 0)):
        for size, pages in (("2048kB", total), ("1048576kB", 2)):
            pool = f"sys/devices/system/node/{node}/hugepages/hugepages-{size}"
            host.write(f"{pool}/nr_hugepages", f"{pages}\n")
            host.write(f"{pool}/free_hugepages", "1\n")
    found = host.doctor()[1]["hugepages"]
    assert found["reason"] == "reserved 2 MiB: node0 512, node1 0; 1 GiB: node0 2, node1 2"
    assert found["details"]["nodes"]["node0"] == {
        "1073741824": {"total": 2, "free": 1},
        "2097152": {"total": 512, "free": 1},
    }


def test_an_empty_root_is_a_host_about_which_nothing_is_known(tmp_path: Path) -> None:
    done = doctor("--root", str(tmp_path), "--format=json")
    assert done.returncode == 1
    assert done.stderr == ""
    found = {one["name"]: one["state"] for one in json.loads(done.stdout)["capabilities"]}
    assert found["debian"] == "unknown"
    assert found["bpf"] == "unknown"
    assert found["sched_ext"] == "missing"


@pytest.mark.root
def test_a_plain_user_is_told_what_was_not_tried() -> None:
    done = doctor("--format=json", prefix=("setpriv", "--reuid=65534", "--clear-groups"))
    data = json.loads(done.stdout)
    found = {one["name"]: one for one in data["capabilities"]}
    assert done.stderr == ""
    assert found["root"]["state"] == "missing"
    assert "sudo zernel doctor" in found["root"]["suggestion"]
    for name in ("bpf", "uprobes"):
        assert found[name]["state"] == "ok"
        assert "not tried (needs root)" in found[name]["reason"]


def test_a_dead_mount_point_is_no_reason_to_hang_or_crash(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zernel", "doctor", "--format=json"],
        env={"ZERNEL_MULTIKERNEL_ROOT": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = {one["name"]: one for one in json.loads(done.stdout)["capabilities"]}
    assert found["multikernel"]["state"] == "missing"
    assert found["multikernel"]["details"]["mount"] == str(tmp_path / "none")
