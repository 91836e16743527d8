# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from cuda_stub import build_library


@pytest.fixture(scope="session")
def thunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub with NVIDIA's thunks."""
    return build_library(tmp_path_factory.mktemp("thunked"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub with ordinary functions."""
    return build_library(tmp_path_factory.mktemp("plain"), plain=True)
