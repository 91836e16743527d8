# SPDX-License-Identifier: GPL-3.0-or-later
"""When the signals that zerneld gives the scheduler are there, and why they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zernel.gpu import activity


class Probes:
    """Stands for the pinned map gpu_probes."""

    def __init__(self) -> None:
        self.value = bytes(8)

    def lookup(self, key: bytes) -> bytes:
        assert key == bytes(4)
        return self.value

    def update(self, key: bytes, value: bytes) -> None:
        assert key == bytes(4)
        self.value = value


@pytest.mark.parametrize("libcuda", [0, 7, 8])
@pytest.mark.parametrize("libnccl", [0, 7, 8])
def test_a_signal_is_there_while_its_link_is(
    monkeypatch: pytest.MonkeyPatch, libcuda: int, libnccl: int
) -> None:
    monkeypatch.setattr(activity, "link_exists", lambda number: number == 7)
    probes: Any = Probes()
    activity.announce(probes, libcuda, libnccl)
    found = activity.missing(probes)
    for link, library, why in (
        (libcuda, "libcuda.so.1", found.libcuda),
        (libnccl, "libnccl.so.2", found.libnccl),
    ):
        if link == 7:
            assert why is None
        elif link == 8:
            assert f"probe on {library}" in (why or "")
            assert "has ended" in (why or "")
        else:
            assert f"no probe on a {library}" in (why or "")


def test_before_anybody_said_anything_no_signal_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "link_exists", lambda _: True)
    probes: Any = Probes()
    found = activity.missing(probes)
    assert "no probe" in (found.libcuda or "")
    assert "no probe" in (found.libnccl or "")


def test_what_is_no_bpf_file_system_is_told_and_left_alone(tmp_path: Path) -> None:
    obj: Any = None  # its maps are not looked at
    assert activity.share(obj, tmp_path / "zernel") == f"no BPF file system is mounted at {tmp_path}"
    assert not list(tmp_path.iterdir())
