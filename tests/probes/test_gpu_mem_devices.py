# SPDX-License-Identifier: GPL-3.0-or-later
"""On which GPU memory is counted: it follows the contexts, and is "unknown" rather than guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_stub import SUCCESS, Workload
from zerneld_run import Zerneld

Start = Callable[..., Workload]
KIB = 1024


def do(workload: Workload, *commands: str) -> None:
    for command in commands:
        assert workload.do(command) == SUCCESS, command


def used(zerneld: Zerneld, workload: Workload) -> dict[str, int]:
    return {gpu: now for gpu, (now, _) in zerneld.memory(workload.pid).items()}


@pytest.mark.parametrize("version", [2, 3, 4])
def test_each_version_of_context_creation_tells_the_gpu(zerneld: Zerneld, start: Start, version: int) -> None:
    workload = start(devices=8)
    do(workload, "init", "count", f"create 5 {version}", "alloc 1024 3")
    assert used(zerneld, workload) == {"5": 3 * KIB}


def test_the_primary_context_tells_the_gpu_once_it_is_current(zerneld: Zerneld, start: Start) -> None:
    """What the CUDA runtime does: retain, then set."""
    workload = start(devices=4)
    do(workload, "init", "count", "retain 2", "set 0", "alloc 1024 3")
    assert used(zerneld, workload) == {"2": 3 * KIB}


def test_memory_follows_the_threads_stack_of_contexts(zerneld: Zerneld, start: Start) -> None:
    workload = start(devices=4)
    do(workload, "init", "count", "create 0", "create 1", "alloc 1 1")  # stack: 0 1
    do(workload, "pop", "alloc 10 1")  # 0
    do(workload, "push 1", "alloc 100 1")  # 0 1
    do(workload, "set 0", "alloc 1000 1")  # 0 0
    do(workload, "unset", "alloc 10000 1")  # 0
    assert used(zerneld, workload) == {"0": 11010, "1": 101}


def test_each_thread_has_a_context_of_its_own(zerneld: Zerneld, start: Start) -> None:
    workload = start(devices=4)
    do(workload, "init", "count", "create 3", "create 1", "storm 4 0 10")
    assert used(zerneld, workload) == {"3": 256 + 512 + 768 + 1024}
    do(workload, "alloc 64 1")
    assert used(zerneld, workload) == {"3": 2560, "1": 64}


def test_a_stack_deeper_than_the_probe_remembers_is_unknown_there_and_known_again(
    zerneld: Zerneld, start: Start
) -> None:
    workload = start(devices=2)
    do(workload, "init", "count", "create 1", *["push 0"] * 11, "alloc 1024 1")
    assert used(zerneld, workload) == {"unknown": KIB}
    do(workload, *["pop"] * 11, "alloc 2048 1")
    assert used(zerneld, workload) == {"unknown": KIB, "1": 2 * KIB}


def test_a_free_is_taken_from_the_gpu_that_the_memory_is_on(zerneld: Zerneld, start: Start) -> None:
    workload = start(devices=2)
    do(workload, "init", "count", "create 0", "alloc 1024 1", "create 1", "free 1")
    assert used(zerneld, workload) == {"0": 0}


def test_a_destroyed_context_takes_its_memory_along(zerneld: Zerneld, start: Start) -> None:
    workload = start(devices=2)
    do(workload, "init", "count", "create 0", "alloc 1024 50", "create 0", "alloc 1024 3", "destroy 0")
    assert used(zerneld, workload) == {"0": 3 * KIB}
    do(workload, "destroy 1")
    assert used(zerneld, workload) == {"0": 0}
    # The addresses are in use again, and counted once.
    do(workload, "create 1", "alloc 512 50")
    assert used(zerneld, workload) == {"0": 0, "1": 25 * KIB}


def test_the_reset_of_a_primary_context_takes_its_memory_along(zerneld: Zerneld, start: Start) -> None:
    workload = start(devices=2)
    do(workload, "init", "count", "retain 0", "retain 1", "set 0", "alloc 1024 5", "set 1", "alloc 1024 7")
    do(workload, "create 1", "alloc 1024 9")  # another context of the same GPU: it stays
    assert used(zerneld, workload) == {"0": 5 * KIB, "1": 16 * KIB}
    do(workload, "reset 1")
    assert used(zerneld, workload) == {"0": 5 * KIB, "1": 9 * KIB}
    do(workload, "reset 0")
    assert used(zerneld, workload) == {"0": 0, "1": 9 * KIB}


def test_with_several_gpus_an_unseen_context_is_unknown(tmp_path: Path, library: Path, start: Start) -> None:
    workload = start(devices=2)
    do(workload, "init", "create 1")  # before the probe is there
    with Zerneld(tmp_path) as zerneld:
        zerneld.wait_attached(library)
        do(workload, "alloc 1024 1")
        assert used(zerneld, workload) == {"unknown": KIB}
        do(workload, "count", "alloc 1024 1")
        assert used(zerneld, workload) == {"unknown": 2 * KIB}
        do(workload, "create 1", "alloc 1024 1")  # a context that was seen
        assert used(zerneld, workload) == {"unknown": 2 * KIB, "1": KIB}


def test_with_one_gpu_it_is_that_one(tmp_path: Path, library: Path, start: Start) -> None:
    workload = start(devices=1)
    do(workload, "init", "create 0")
    with Zerneld(tmp_path) as zerneld:
        zerneld.wait_attached(library)
        do(workload, "count", "alloc 1024 1")
        assert used(zerneld, workload) == {"0": KIB}


def test_memory_of_before_the_probe_is_not_invented(tmp_path: Path, library: Path, start: Start) -> None:
    workload = start().ready()
    do(workload, "alloc 1024 10")
    with Zerneld(tmp_path) as zerneld:
        zerneld.wait_attached(library)
        assert zerneld.memory(workload.pid) == {}
        do(workload, "free 10", "alloc 2048 1")
        assert used(zerneld, workload) == {"unknown": 2 * KIB}
        assert zerneld.value("zernel_gpu_memory_unknown_frees_total") == 10
