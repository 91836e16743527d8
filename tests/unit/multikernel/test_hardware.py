# SPDX-License-Identifier: GPL-3.0-or-later
"""The hardware that is read from /sys and /proc, and the baseline that is proposed for it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from zernel.devicetree.model import Resources, System
from zernel.devicetree.validate import validate
from zernel.errors import ZernelError
from zernel.host import hardware

from .conftest import ZERNEL

GB = 1 << 30
ZONE = """Node {0}, zone {1:>8}
  pages free     1
        spanned  {3}
        present  {3}
        managed  {3}
  start_pfn:           {2}"""


class Machine:
    """A server's /sys and /proc as plain files: 2 sockets, 8 cores of 2 threads, a hole below 4 GiB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("sys/devices/system/cpu/online", "0-15")
        self.file("sys/devices/system/cpu/present", "0-15")
        for cpu in range(16):
            topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
            core = cpu % 8
            self.file(f"{topology}/physical_package_id", core // 4)
            self.file(f"{topology}/core_id", core % 4)
            self.file(f"{topology}/core_cpus_list", f"{core},{core + 8}")
        self.file("proc/meminfo", "MemTotal:       66060288 kB\nMemFree: 1 kB")
        self.file(
            "proc/iomem",
            "00001000-7fffffff : System RAM\n  01000000-02209987 : Kernel code\n"
            "80000000-ffffffff : PCI Bus 0000:00\n100000000-107fffffff : System RAM",
        )
        zones = (
            (0, "DMA32", 1, 524287),
            (0, "Normal", 1048576, 7340032),
            (0, "Movable", 0, 0),
            (1, "Normal", 8388608, 8912896),
        )
        self.file("proc/zoneinfo", "\n".join(ZONE.format(*zone) for zone in zones))
        self.file("sys/devices/system/node/node0/cpulist", "0-3,8-11")
        self.file("sys/devices/system/node/node1/cpulist", "4-7,12-15")
        self.file("proc/cmdline", "root=/dev/nvme0n1p1 quiet")
        self.file("proc/filesystems", "nodev\tproc\n\text4")
        self.file("proc/mounts", "/dev/nvme0n1p1 / ext4 rw 0 0")

    def file(self, path: str, content: object) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{content}\n")

    def pci(self, address: str, pci_class: str, **files: object) -> Path:
        directory = self.root / "sys/bus/pci/devices" / address
        self.file(f"sys/bus/pci/devices/{address}/class", pci_class)
        for name, content in files.items():
            self.file(f"sys/bus/pci/devices/{address}/{name}", content)
        return directory

    def nvme(self, number: int, address: str, *namespaces: int) -> None:
        device = self.pci(address, "0x010802", numa_node=0)
        controller = self.root / f"sys/class/nvme/nvme{number}"
        for namespace in namespaces:
            (controller / f"nvme{number}c0n{namespace}").mkdir(parents=True)
        (controller / "device").symlink_to(device)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def proposed(machine: Machine, **wishes: object) -> Resources:
    found = hardware.propose(hardware.discover(machine.root), **wishes)  # type: ignore[arg-type]
    assert validate(System(found)) == []
    return found


def test_the_host_keeps_whole_cores_and_half_of_the_memory(machine: Machine) -> None:
    found = proposed(machine)
    assert found.cpus.host_reserved == (0, 8)
    assert found.cpus.available == (*range(1, 8), *range(9, 16))
    assert found.memory.total_bytes == 64 * GB - 0x1000
    assert found.memory.pool_bytes == 32 * GB - (2 << 20)
    assert found.memory.pool_end <= 0x1080000000
    assert found.memory.pool_base % (2 << 20) == 0
    assert [(node.node_id, node.memory_base) for node in found.numa_nodes] == [(0, 0x1000), (1, 0x800000000)]
    assert found.numa_nodes[0].cpus == (0, 1, 2, 3, 8, 9, 10, 11)


def test_wishes_are_followed(machine: Machine) -> None:
    found = proposed(machine, host_cpus=(0, 1, 2, 3), pool_bytes=8 * GB, pool_base=0x200000000)
    assert found.cpus.host_reserved == (0, 1, 2, 3)
    assert (found.memory.pool_base, found.memory.pool_bytes) == (0x200000000, 8 * GB)


def test_the_kernels_own_reservation_is_the_pool(machine: Machine) -> None:
    machine.file("proc/cmdline", "quiet mkkernel_pool=4G@0x400000000 root=x")
    found = proposed(machine)
    assert (found.memory.pool_base, found.memory.pool_bytes) == (0x400000000, 4 * GB)


@pytest.mark.parametrize(
    "wishes",
    [
        {"host_cpus": tuple(range(16))},
        {"host_cpus": ()},
        {"host_cpus": (99,)},
        {"pool_bytes": 64 * GB},
        {"pool_bytes": 63 * GB},
        {"pool_base": 0x1000000000, "pool_bytes": 60 * GB},
    ],
)
def test_wishes_that_leave_nobody_anything_are_refused(machine: Machine, wishes: dict[str, object]) -> None:
    with pytest.raises(ZernelError) as caught:
        proposed(machine, **wishes)
    assert caught.value.problems[0].suggestion


@pytest.mark.parametrize(("online", "kept"), [("0-1", (0,)), ("0,8", (0,)), ("0", None)])
def test_small_hosts(machine: Machine, online: str, kept: tuple[int, ...] | None) -> None:
    machine.file("sys/devices/system/cpu/online", online)
    found = hardware.discover(machine.root)
    if kept is None:
        with pytest.raises(ZernelError):
            hardware.propose(found)
    else:
        assert hardware.propose(found).cpus.host_reserved == kept


def test_devices(machine: Machine) -> None:
    machine.pci(
        "0000:01:00.0", "0x020000", vendor="0x8086", sriov_totalvfs=8, **{"net/ens1f0/operstate": "up"}
    )
    machine.pci("0000:01:00.1", "0x020000", vendor="0x8086", **{"net/ens1f1/operstate": "up"})
    machine.pci("0000:01:00.2", "0x020000", **{"net/ens1f2/operstate": "down"})
    machine.pci("0000:01:10.0", "0x020000", physfn="")
    machine.pci("0000:02:00.0", "0x030200", vendor="0x10de", numa_node=1)
    machine.pci("0000:03:00.0", "0x030000", boot_vga=1)
    machine.pci("0000:04:00.0", "0x060400")
    machine.nvme(0, "0000:05:00.0", 1, 2, 3)
    machine.nvme(1, "0000:06:00.0", 1)
    (machine.root / "sys/class/block/nvme1n1p2/holders/dm-0").mkdir(parents=True)
    found = {device.name: device for device in proposed(machine).devices}
    assert set(found) == {"ens1f0", "ens1f2", "gpu0", "nvme0"}
    assert (found["ens1f0"].sriov_vfs, found["ens1f0"].host_reserved_vf) == (8, (0,))
    assert found["ens1f0"].available_vfs == tuple(range(1, 8))
    assert found["gpu0"].pci_id == "0000:02:00.0"
    # The root file system is on namespace 1.
    assert (found["nvme0"].namespaces, found["nvme0"].host_reserved_ns, found["nvme0"].available_ns) == (
        3,
        (1,),
        (2, 3),
    )


def test_what_only_root_may_read_is_asked_for(machine: Machine) -> None:
    machine.file("proc/iomem", "00000000-00000000 : System RAM")
    found = hardware.discover(machine.root)
    assert found.ram == ()
    assert found.memory_bytes == 66060288 << 10
    with pytest.raises(ZernelError) as caught:
        hardware.propose(found)
    assert "Run as root" in (caught.value.problems[0].suggestion or "")
    assert hardware.propose(found, pool_base=0x100000000, pool_bytes=GB).memory.pool_bytes == GB


def test_garbage_in_sysfs_is_absent(machine: Machine) -> None:
    for cpu in range(16):
        machine.file(f"sys/devices/system/cpu/cpu{cpu}/topology/core_id", "?")
        machine.file(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", "")
    machine.pci("0000:01:00.0", "0x020000", sriov_totalvfs="many", numa_node=-1)
    machine.file("proc/cmdline", "mkkernel_pool=x@y")
    found = hardware.discover(machine.root)
    assert found.cpus[3] == hardware.HostCpu(3, 0, None, (3,))
    assert (found.devices[0].sriov_vfs, found.devices[0].numa_node) == (None, None)
    assert found.reserved_pool is None
    assert hardware.propose(replace(found, devices=())).cpus.host_reserved == (0, 1)


def test_the_command_shows_both(machine: Machine) -> None:
    command = [ZERNEL, "show", "--hardware", f"--root={machine.root}"]
    data = json.loads(subprocess.run([*command, "--format=json"], capture_output=True, check=True).stdout)
    assert data["hardware"]["multikernel"] is False
    assert data["baseline"]["cpus"]["host_reserved"] == [0, 8]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "16 total" in text
    assert "A baseline for it:" in text
    machine.file("sys/devices/system/cpu/online", "0")
    data = json.loads(subprocess.run([*command, "--format=json"], capture_output=True, check=True).stdout)
    assert data["baseline"] is None
    assert data["errors"][0]["code"] == "host-cpus"


def test_what_is_proposed_is_a_baseline_that_init_takes(machine: Machine, tmp_path: Path) -> None:
    command = [ZERNEL, "show", "--hardware", f"--root={machine.root}"]
    shown = subprocess.run([*command, "--dts", "--host-cpus=0-1"], capture_output=True, check=True).stdout
    (tmp_path / "baseline.dts").write_bytes(shown)
    init = [ZERNEL, "init", f"--input={tmp_path}/baseline.dts", "--format=json"]
    found = json.loads(subprocess.run(init, capture_output=True, check=True).stdout)["hardware"]
    data = subprocess.run([*command, "--format=json", "--host-cpus=0-1"], capture_output=True, check=True)
    proposed = json.loads(data.stdout)["baseline"]
    for part in ("cpus", "memory", "devices", "topology"):
        assert found[part] == proposed[part]
    for wrong in (
        [*command[:2], "--dts"],
        [*command, "--dts", "--format=json"],
        [*command, "web"],
        [*command[:2], "--pool-size=1GB"],
    ):
        assert subprocess.run(wrong, capture_output=True).returncode == 2
    machine.file("sys/devices/system/cpu/online", "0")
    refused = subprocess.run([*command, "--dts"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("ERROR: ")


def test_this_very_machine() -> None:
    found = hardware.discover()
    assert {cpu.number for cpu in found.cpus} >= os.sched_getaffinity(0)
    assert found.memory_bytes >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("base", "suggested"),
    [
        ("0xffffffffffffffff", "0x100000000"),
        ("1", "0x100000000"),
        ("0x200000001", "0x200000000"),
    ],
)
def test_a_pool_that_cannot_begin_there_is_refused_with_where_it_can(
    machine: Machine, base: str, suggested: str
) -> None:
    command = [ZERNEL, "show", "--hardware", f"--root={machine.root}"]
    done = subprocess.run([*command, f"--pool-base={base}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Memory: 0x100000000 - " in done.stderr
    assert f"--pool-base={suggested}" in done.stderr
    assert "-0x" not in done.stderr
    assert subprocess.run([*command, f"--pool-base={suggested}"], capture_output=True).returncode == 0
    done = subprocess.run([*command, "--pool-size=63GB"], capture_output=True, text=True)
    assert done.returncode == 1
