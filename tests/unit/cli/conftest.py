# SPDX-License-Identifier: GPL-3.0-or-later
"""A host for tests of ``zernel scheduler``."""

from __future__ import annotations

from pathlib import Path

import pytest
from scheduler_cli import FakeHost


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path, monkeypatch)
