# SPDX-License-Identifier: GPL-3.0-or-later
"""The two system calls: how they are encoded, and that nothing but a multikernel kernel ever gets one.

No test here makes either call: what would make it is replaced by a list that records.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.errors import ZernelError
from zernel.multikernel import kexec
from zernel.multikernel.fs import MAGIC, MultikernelFs
from zernel.multikernel.kexec import Argument, Identity, KernelCalls, SystemPort

from .conftest import Host

Made = list[tuple[int, tuple[Argument, ...]]]
REAL = Identity("multikernel", MAGIC)


class Recorder:
    """A port that keeps what it gets."""

    def __init__(self) -> None:
        self.made: Made = []

    def call(self, number: int, *arguments: Argument) -> None:
        self.made.append((number, arguments))


def system_port(root: Path, made: Made, **changes: Callable[[int], Identity]) -> SystemPort:
    return SystemPort(root, system_call=lambda number, arguments: made.append((number, arguments)), **changes)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("machine", "load", "reboot"), [("x86_64", 320, 169), ("aarch64", 294, 142)])
def test_each_call_in_the_kernels_own_numbers(machine: str, load: int, reboot: int) -> None:
    port = Recorder()
    calls = KernelCalls(port, machine)
    calls.load(5, 10, 11, b"console=ttyS0 ro")
    calls.load(1, 10, None, b"")
    calls.unload(2047)
    calls.boot(5)
    calls.halt(5, force=False)
    calls.halt(511, force=True)
    assert port.made == [
        # Flag 0x10, the id from bit 5 on; the length counts the NUL.
        (load, (10, 11, 17, b"console=ttyS0 ro\0", 0x10 | 5 << 5)),
        (load, (10, -1, 0, None, 0x10 | 1 << 5 | 0x4)),
        (load, (-1, -1, 0, None, 0x10 | 0xFFE0 | 0x1)),
        (reboot, (0xFEE1DEAD, 0x28121969, 0x4D4B4C49, struct.pack("i", 5))),
        (reboot, (0xFEE1DEAD, 0x28121969, 0x4D4B4C48, struct.pack("i", 5))),
        (reboot, (0xFEE1DEAD, 0x28121969, 0x4D4B4C46, struct.pack("i", 511))),
    ]


@given(st.integers(1, 2047), st.booleans())
def test_the_id_comes_out_of_the_flags_as_it_went_in(number: int, initrd: bool) -> None:
    port = Recorder()
    calls = KernelCalls(port, "x86_64")
    calls.load(number, 3, 4 if initrd else None, b"x")
    calls.unload(number)
    for (_, arguments), others in zip(port.made, (0x10 | (0 if initrd else 4), 0x11), strict=True):
        flags = arguments[4]
        assert isinstance(flags, int)
        assert (flags & 0xFFE0) >> 5 == number
        assert flags & ~0xFFE0 == others


@pytest.mark.parametrize("number", [0, -1, 2048, 1 << 16, 1 << 31])
def test_the_host_and_what_has_no_room_in_the_flags_are_no_instances(number: int) -> None:
    port = Recorder()
    calls = KernelCalls(port, "x86_64")
    for call in (
        lambda: calls.load(number, 3, None, b""),
        lambda: calls.unload(number),
        lambda: calls.boot(number),
        lambda: calls.halt(number, force=True),
    ):
        with pytest.raises(ZernelError, match="no instance's id"):
            call()
    assert port.made == []


def test_an_architecture_whose_numbers_are_not_known_gets_no_call() -> None:
    with pytest.raises(ZernelError, match="'riscv64' are not known"):
        KernelCalls(Recorder(), "riscv64")


def test_a_multikernel_file_system_gets_the_call(tmp_path: Path) -> None:
    made: Made = []
    seen: list[Path] = []

    def identify(descriptor: int) -> Identity:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        return REAL

    before = open_descriptors()
    KernelCalls(system_port(tmp_path, made, identify=identify), "x86_64").boot(1)
    assert seen == [tmp_path]  # it looked at the root, once for the one call
    assert [number for number, _ in made] == [169]
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "found",
    [
        Identity("multikernel", 0x01021994),
        Identity("multikernel", 0),
        Identity("tmpfs", MAGIC),
        Identity("fuse.zernel-simulated", MAGIC),
        Identity("fuse.multikernel", MAGIC),
        Identity("", MAGIC),  # unmounted meanwhile
    ],
)
def test_a_wrong_type_or_magic_never_reaches_the_call(tmp_path: Path, found: Identity) -> None:
    made: Made = []
    calls = KernelCalls(system_port(tmp_path, made, identify=lambda _: found), "x86_64")
    for call in (
        lambda: calls.load(1, 3, None, b""),
        lambda: calls.unload(1),
        lambda: calls.boot(1),
        lambda: calls.halt(1, force=False),
    ):
        with pytest.raises(ZernelError) as caught:
            call()
        (problem,) = caught.value.problems
        assert problem.code == "not-multikernel"
        assert f"type '{found.fstype}'" in problem.render()
    assert made == []


def test_it_looks_again_before_each_call(tmp_path: Path) -> None:
    made: Made = []
    answers = iter([REAL, Identity("tmpfs", 0x01021994)])
    calls = KernelCalls(system_port(tmp_path, made, identify=lambda _: next(answers)), "x86_64")
    calls.boot(1)
    with pytest.raises(ZernelError, match="was not made"):
        calls.halt(1, force=False)
    assert len(made) == 1


@pytest.mark.parametrize("place", ["/", "/sys", "/proc", "/dev/null", "/nowhere"])
def test_no_other_file_system_gets_a_call(place: str) -> None:
    made: Made = []
    with pytest.raises(ZernelError, match="was not made"):
        KernelCalls(system_port(Path(place), made)).boot(1)
    assert made == []


def test_the_simulation_never_gets_a_system_call(empty: Host) -> None:
    made: Made = []
    with pytest.raises(ZernelError) as caught:
        KernelCalls(system_port(empty.root, made)).boot(1)
    assert "type 'fuse.zernel-simulated'" in caught.value.problems[0].render()
    assert made == []


def test_the_port_is_chosen_by_what_was_recognised(tmp_path: Path) -> None:
    assert isinstance(kexec.calls_of(MultikernelFs(tmp_path, simulated=False)).port, SystemPort)
    assert isinstance(kexec.calls_of(MultikernelFs(tmp_path, simulated=True)).port, kexec.SimulatedPort)


def test_numbers_bytes_and_null_reach_a_system_call() -> None:
    # write(2), which does no harm, in place of the calls that would.
    write = {"x86_64": 1, "aarch64": 64}[os.uname().machine]
    reader, writer = os.pipe()
    try:
        kexec.system_call(write, (writer, b"whole\0text", 10))
        assert os.read(reader, 100) == b"whole\0text"
        for arguments, number in (((-1, b"x", 1), errno.EBADF), ((writer, None, 1), errno.EFAULT)):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is looked at
                kexec.system_call(write, arguments)
            assert caught.value.errno == number
    finally:
        os.close(reader)
        os.close(writer)
