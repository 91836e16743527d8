# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel's answers to the two system calls, and its own robustness."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from host import images
from hypothesis import given, settings
from hypothesis import strategies as st

from zernel.multikernel.kexec import (
    BOOT,
    CONTROL,
    HALT,
    MAGIC1,
    MAGIC2,
    SimulatedPort,
    numbers_of,
)
from zernel.multikernel.simulate import simulated
from zernel.multikernel.wire_v1 import V1

from .conftest import Host, write_overlay
from .lives import calls, status


def number_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
        call()
    return caught.value.errno


@pytest.fixture
def vmlinux(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "vmlinux"
    path.write_bytes(images.kernel())
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_the_simulated_calls_answer_as_the_kernel_does(web: Host, vmlinux: int, tmp_path: Path) -> None:
    made = calls(web)
    assert number_of(lambda: made.load(2, vmlinux, None, b"")) == errno.ENOENT
    assert number_of(lambda: made.boot(2)) == errno.ENOENT
    assert number_of(lambda: made.boot(1)) == errno.EINVAL
    assert number_of(lambda: made.unload(1)) == errno.EINVAL
    assert number_of(lambda: made.halt(1, force=True)) == errno.EINVAL
    assert number_of(lambda: made.load(1, 999, None, b"")) == errno.EBADF
    assert number_of(lambda: made.load(1, vmlinux, 999, b"")) == errno.EBADF
    assert number_of(lambda: made.load(1, vmlinux, None, b"a\0b")) == errno.EINVAL
    assert number_of(lambda: made.load(1, vmlinux, None, b"x" * 2048)) == errno.EINVAL
    with (tmp_path / "text").open("w+b") as text, (web.root / "SIMULATED").open("rb") as ours:
        assert number_of(lambda: made.load(1, text.fileno(), None, b"")) == errno.ENOEXEC
        assert number_of(lambda: made.load(1, ours.fileno(), None, b"")) == errno.EINVAL
    assert status(web) == "ready"
    made.load(1, vmlinux, None, b"")
    assert number_of(lambda: made.load(1, vmlinux, None, b"")) == errno.EBUSY
    write_overlay(web, V1().remove("web"))
    assert status(web) == "loaded"
    made.boot(1)
    for call in (lambda: made.load(1, vmlinux, None, b""), lambda: made.boot(1), lambda: made.unload(1)):
        assert number_of(call) == errno.EBUSY
    write_overlay(web, V1().remove("web"))
    assert status(web) == "active"


def test_flags_of_another_kernel_are_refused(web: Host, vmlinux: int) -> None:
    port = SimulatedPort(web.root)
    load, reboot = calls(web).numbers.kexec_file_load, calls(web).numbers.reboot
    for flags in (0, 4, 1 << 5 | 4, 0x10 | 1 << 5 | 2, 0x10 | 1 << 5 | 1 << 16):
        assert number_of(lambda flags=flags: port.call(load, vmlinux, -1, 0, None, flags)) == errno.EINVAL  # type: ignore[misc]
    assert number_of(lambda: port.call(load, vmlinux, -1, 0, None, 0x14)) == errno.ENOENT  # id 0, the host
    for arguments in ((1, 0x28121969, 0x4D4B4C49), (0xFEE1DEAD, 1, 0x4D4B4C49), (0xFEE1DEAD, 0x28121969, 0)):
        assert number_of(lambda a=arguments: port.call(reboot, *a, b"\1\0\0\0")) == errno.EINVAL  # type: ignore[misc]
    assert number_of(lambda: port.call(1)) == errno.ENOSYS
    assert status(web) == "ready"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
NUMBERS = numbers_of(os.uname().machine)
requests = st.fixed_dictionaries(
    {
        "pid": st.just(os.getpid()) | anything,
        "number": st.sampled_from([NUMBERS.kexec_file_load, NUMBERS.reboot]) | anything,
        "arguments": st.lists(
            st.sampled_from([0x30, 0x31, 0x34, MAGIC1, MAGIC2, BOOT, HALT, "\1\0\0\0"]) | anything, max_size=6
        )
        | anything,
    }
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | (anything | requests).map(lambda value: json.dumps(value).encode()))
def test_no_message_breaks_the_simulation(message: bytes) -> None:
    # What is no call, or is for an instance that is not there, is answered with an error number.
    assert number_of(lambda: simulated(1, []).write(PurePosixPath("/", CONTROL), 1, 0, message))
