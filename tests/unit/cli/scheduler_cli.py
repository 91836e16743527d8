# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of plain files with a systemctl of its own, for tests of ``zernel scheduler``."""

from __future__ import annotations

from pathlib import Path

import pytest

from zernel.cli import main as program
from zernel.errors import Problem
from zernel.scheduler import control

SYSTEMCTL = """#!/bin/sh
# A service manager of one service, which turns the kernel's file like the real one.
state={state}
echo "$*" >> $state/calls
[ ! -e $state/broken ] || {{ echo "Job failed. See the journal." >&2; exit 1; }}
on() {{
  echo active > $state/active
  [ ! -e $state/stuck ] || return 0
  echo enabled > $state/kernel; echo zernel > $state/ops; echo $(($(cat $state/enables) + 1)) > $state/enables
}}
off() {{ echo inactive > $state/active; echo disabled > $state/kernel; rm -f $state/ops; }}
case "$1" in
  show) echo ActiveState=$(cat $state/active); echo UnitFileState=$(cat $state/boot); echo StatusText=;;
  start | restart) on;;
  stop) off;;
  enable) echo enabled > $state/boot; [ $(cat $state/active) = active ] || on;;
  disable) echo disabled > $state/boot; off;;
esac
"""


class FakeHost:
    """A directory that stands for the host."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = root / "state"
        self.state.mkdir()
        sysfs = root / "sys/kernel/sched_ext"
        (sysfs / "root").mkdir(parents=True)
        (sysfs / "state").symlink_to(self.state / "kernel")
        (sysfs / "root/ops").symlink_to(self.state / "ops")
        (sysfs / "enable_seq").symlink_to(self.state / "enables")
        for name, text in (
            ("active", "inactive"),
            ("boot", "disabled"),
            ("kernel", "disabled"),
            ("enables", "0"),
            ("calls", ""),
        ):
            self.set(name, text)
        systemctl = root / "systemctl"
        systemctl.write_text(SYSTEMCTL.format(state=self.state))
        systemctl.chmod(0o755)
        self.settings = root / "scheduler.toml"
        self.problems: list[Problem] = []
        made = control.Host(root, str(systemctl), self.settings, lambda root: list(self.problems))
        monkeypatch.setattr(control, "Host", lambda: made)
        monkeypatch.setattr(control, "_SETTLE_S", 0.2)

    def set(self, name: str, text: str = "") -> None:
        (self.state / name).write_text(f"{text}\n" if text else "")

    def get(self, name: str) -> str:
        return (self.state / name).read_text().strip()

    def changes(self) -> list[str]:
        return [line for line in self.get("calls").splitlines() if not line.startswith("show")]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = program.main(["scheduler", *words])
    said = capsys.readouterr()
    return status, said.out, said.err
