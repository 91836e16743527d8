# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/instances.md shows is so."""

from __future__ import annotations

import re
from pathlib import Path

from zernel.multikernel.simulate import FAULTS

from .conftest import REPOSITORY, Host

PAGE = (REPOSITORY / "docs/instances.md").read_text()


def test_the_declaration_shown_fits_the_baseline_that_is_named(host: Host, tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "web-server.yaml").write_text(shown)
    done = host.json("apply", f"--directory={tmp_path}")
    # The machine of the baseline is not the one that runs this test.
    assert {one["code"] for one in done["warnings"]} <= {"topology-unknown"}
    assert host.instances()["web-server"]["cpus"] == [4, 5, 6, 7]


def test_every_fault_is_explained() -> None:
    for fault, what in FAULTS.items():
        assert f"| `{fault}` | {what} |" in PAGE
