# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of NVML's answers, its errors and its absence. The library is a fake of pynvml."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.scheduler.gpu import MAX_GPUS, Nvml, sysfs_address


class NotFound(Exception):
    """Stands for NVMLError_NotFound."""


class NotSupported(Exception):
    """Stands for NVMLError_NotSupported."""


class Success(Exception):
    """Stands for NVMLError(NVML_SUCCESS)."""

    value = 0


class Fake:
    """NVML with some GPUs: index → (pids, samples (pid, time, percent), device's percent)."""

    NVMLError_NotFound = NotFound

    def __init__(self) -> None:
        self.pids: dict[int, list[int]] = {}
        self.samples: dict[int, list[tuple[int, int, int]]] = {}
        self.rates: dict[int, int] = {}
        self.buses: dict[int, Any] = {}
        self.fails: set[str] = set()
        self.nothing: Exception = NotFound()
        self.started = 0

    def nvmlInit(self) -> None:
        self._may_fail("init")
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._may_fail("count")
        return len(self.pids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._may_fail(f"handle {index}")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=self.buses.get(handle, "00000000:3B:00.0"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids[handle]]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        raise NotSupported

    def nvmlDeviceGetProcessUtilization(self, handle: int, since: int) -> list[Any]:
        self._may_fail("utilization")
        found = [sample for sample in self.samples.get(handle, []) if sample[1] > since]
        if not found:
            raise self.nothing
        return [SimpleNamespace(pid=pid, timeStamp=at, smUtil=percent) for pid, at, percent in found]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self.rates[handle])

    def _may_fail(self, what: str) -> None:
        if what in self.fails:
            raise NotSupported(what)


class Host:
    def __init__(self, root: Path) -> None:
        self.library = Fake()
        self.now = 100.0
        self.nvml = Nvml(self.library, root, lambda: self.now)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_gpus_have_the_node_of_their_pci_device(host: Host, tmp_path: Path) -> None:
    for address, node in (("0000:3b:00.0", "1"), ("0000:af:00.0", "-1")):
        directory = tmp_path / "sys/bus/pci/devices" / address
        directory.mkdir(parents=True)
        (directory / "numa_node").write_text(f"{node}\n")
    host.library.pids = {0: [], 1: [], 2: []}
    host.library.buses = {0: b"00000000:3B:00.0", 1: "00000000:AF:00.0", 2: "junk"}
    gpus = host.nvml.read().gpus
    assert [(gpu.pci, gpu.node) for gpu in gpus] == [
        ("0000:3b:00.0", 1),
        ("0000:af:00.0", None),
        (None, None),
    ]
    assert gpus[0].uuid == "GPU-0"


def test_utilisation_is_per_process_the_mean_of_new_samples_on_the_busiest_gpu(host: Host) -> None:
    host.library.pids = {0: [7, 8], 1: [7]}
    host.library.samples = {0: [(7, 1, 10), (7, 2, 30)], 1: [(7, 5, 90)]}
    reading = host.nvml.read()
    assert reading.holders == {7: {0, 1}, 8: {0}}
    assert reading.utilization == {7: 90.0, 8: 0.0}
    host.library.samples[0].append((7, 3, 99))
    assert host.nvml.read().utilization[7] == 99.0


def test_between_nvmls_samples_the_last_one_counts_and_then_no_more(host: Host) -> None:
    host.library.pids = {0: [7]}
    host.library.samples = {0: [(7, 1, 80)]}
    seen = []
    for _ in range(4):
        seen.append(host.nvml.read().utilization[7])
        host.now += 0.75
    assert seen == [80.0, 80.0, 80.0, 0.0]


def test_a_pid_that_came_back_does_not_inherit(host: Host) -> None:
    host.library.pids = {0: [7]}
    host.library.samples = {0: [(7, 1, 80)]}
    host.nvml.read()
    host.library.pids = {0: []}
    host.nvml.read()
    host.library.pids = {0: [7]}
    assert host.nvml.read().utilization == {7: 0.0}


def test_success_without_a_sample_which_pynvml_raises_means_that_nobody_used_the_gpu(host: Host) -> None:
    host.library.pids = {0: [7]}
    host.library.nothing = Success()
    assert host.nvml.read().utilization == {7: 0.0}


def test_without_figures_per_process_only_a_lone_process_has_the_gpus(host: Host) -> None:
    host.library.pids = {0: [7], 1: [8, 9]}
    host.library.rates = {0: 55, 1: 99}
    host.library.fails = {"utilization"}
    reading = host.nvml.read()
    assert reading.utilization == {7: 55.0}
    assert set(reading.holders) == {7, 8, 9}


def test_a_gpu_that_is_lost_hides_no_other(host: Host) -> None:
    host.library.pids = {0: [7], 1: [8]}
    host.library.fails = {"handle 0"}
    assert [gpu.index for gpu in host.nvml.read().gpus] == [1]


@pytest.mark.parametrize("what", ["init", "count"])
def test_a_driver_that_fails_says_why_and_is_asked_again(host: Host, what: str) -> None:
    host.library.pids = {0: []}
    host.library.fails = {what}
    assert host.nvml.read().unavailable == f"NVML: {what}"
    assert host.library.started == 0
    host.library.fails = set()
    assert host.nvml.read().unavailable is None
    host.nvml.close()
    assert host.library.started == 0


def test_without_pynvml_there_is_nothing_and_it_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    assert Nvml(root=tmp_path).read().unavailable == "this host has no NVIDIA GPU"
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    reading = Nvml(root=tmp_path).read()
    assert reading.unavailable == "the package python3-pynvml is not installed"
    assert not reading.gpus
    assert not reading.utilization


@given(st.text(max_size=40))
def test_no_address_is_answered_with_an_error(bus: str) -> None:
    address = sysfs_address(bus)
    assert address is None or ":" in address


def test_garbage_from_the_driver_is_not_believed(host: Host) -> None:
    host.library.pids = {0: [7]}
    host.library.samples = {0: [(7, 1, 101), (7, 2, -1)]}
    assert host.nvml.read().utilization == {7: 0.0}
    host.library.pids = {index: [] for index in range(1000)}
    assert len(host.nvml.read().gpus) == MAX_GPUS
