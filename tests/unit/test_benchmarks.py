# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of instances, small: what it drives is the product's own, and must still be driven so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import instances
from zernel.devicetree import render


@pytest.mark.parametrize("scale", [1, 8])
def test_the_full_host_is_valid(tmp_path: Path, scale: int) -> None:
    file = tmp_path / "host.dts"
    file.write_text(render.source(render.system_tree(instances.host(scale))))
    done = subprocess.run([instances.ZERNEL, "validate", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_transactions_and_eight_at_once_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "TRANSACTIONS", 4)
    monkeypatch.setattr(instances, "REPETITIONS", 1)
    with instances._simulation(tmp_path) as environment:
        figures = [*instances._transactions(environment), *instances._at_once(environment)]
    counted = {figure.name: figure.value for figure in figures if figure.limit is not None}
    assert counted == {
        "transactions lost": 0,
        "created at once: allocated twice": 0,
        "created at once: too few": 0,
    }


def test_the_planning_of_declared_instances_is_measured(tmp_path: Path) -> None:
    with instances._simulation(tmp_path) as environment:
        figures = list(instances._apply(tmp_path, environment, (4, 8)))
        shown = json.loads(instances._zernel(environment, "show", "--format=json"))["instances"]
    assert [figure.name for figure in figures] == [
        "apply --dry-run, 64 instances",
        "apply --dry-run: growth",
        "apply, 64 new instances",
    ]
    assert len(shown) == 64
