# SPDX-License-Identifier: GPL-3.0-or-later
"""For all tests: the marker ``root`` on what mounts; and with ZERNEL_NO_SKIP=1, which `make test` sets, a
skipped test is a failed run.

How long one example of a property takes says something about the machine only: no test fails for it.
"""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("zernel", deadline=None)
hypothesis.settings.load_profile("zernel")

MOUNTS = {"bare", "full_disk"}
"""The fixtures below all that mount something, which takes root: the simulation, a disk."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MOUNTS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.root)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter else 0
    if skipped and os.environ.get("ZERNEL_NO_SKIP") == "1" and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{skipped} skipped: a failure here, for this machine can run them", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
