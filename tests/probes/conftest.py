# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes run on this machine itself: as root, with a kernel that takes BPF programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuda_stub import Workload, build_library, build_workload
from zerneld_run import CLONE, Zerneld


@pytest.fixture(scope="session", autouse=True)
def bpf_objects() -> None:
    """Build the BPF objects in the clone, as `make bpf` does."""
    assert os.geteuid() == 0, "probe tests need root: run 'make test' as root"
    subprocess.run(["make", "-s", "-C", CLONE / "bpf"], check=True)
    # Not those of a package that this machine may have installed.
    os.environ["ZERNEL_BPF_DIR"] = str(CLONE / "bpf")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workload."""
    return build_workload(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stub libcuda with NVIDIA's thunks, an inode of this module's own."""
    return build_library(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def zerneld(tmp_path_factory: pytest.TempPathFactory, program: Path, library: Path) -> Iterator[Zerneld]:
    """A daemon attached to ``library`` for the module's whole time: an idle process keeps it in use."""
    with Workload(program, library), Zerneld(tmp_path_factory.mktemp("zerneld")) as daemon:
        daemon.wait_attached(library)
        yield daemon


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    directory = tmp_path / "bpf"
    directory.mkdir()
    subprocess.run(["mount", "-t", "bpf", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def start(program: Path, library: Path) -> Iterator[Callable[..., Workload]]:
    """Start workloads on ``library``; they end with the test."""
    running: list[Workload] = []

    def make(of: Path | None = library, **options: object) -> Workload:
        running.append(Workload(program, of, **options))  # type: ignore[arg-type]
        return running[-1]

    yield make
    for workload in running:
        workload.__exit__(None, None, None)


@pytest.fixture(scope="module")
def plain_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stub libcuda whose exports are ordinary functions."""
    return build_library(tmp_path_factory.mktemp("plain"), plain=True)
