# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for the whole tree: licences, versions, layout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

import zernel

REPO = Path(__file__).resolve().parents[2]
# Formats that have no comments, or whose every line has a meaning.
WITHOUT_COMMENT = {"LICENSES", "agent/debian/changelog", "agent/debian/control", "agent/debian/copyright"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True, text=True)
    return [Path(name) for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


def test_every_file_says_its_licence() -> None:
    missing = []
    for path in tracked():
        text = (REPO / path).read_text(errors="replace")
        excused = path.parts[0] in WITHOUT_COMMENT or str(path) in WITHOUT_COMMENT
        if excused or path.suffix == ".json" or str(path).startswith("agent/debian/") or len(text) <= 1:
            continue
        # What is loaded into the kernel has the kernel's licence.
        kernel = path.parts[0] == "bpf" or path.name.endswith(".bpf.c")
        wanted = "GPL-2.0-only" if kernel else "GPL-3.0-or-later"
        if f"SPDX-License-Identifier: {wanted}" not in text:
            missing.append(str(path))
    assert missing == []


def test_one_version_everywhere() -> None:
    galaxy = yaml.safe_load((REPO / "galaxy.yml").read_text())["version"]
    debian = re.match(r"zernel-agent \((.*?)\)", (REPO / "agent/debian/changelog").read_text())
    assert debian
    assert {galaxy, debian[1], zernel.__version__} == {zernel.__version__}
    for page in (REPO / "agent/man").iterdir():
        assert f"Zernel {zernel.__version__}" in page.read_text()
    assert f"## {zernel.__version__}" in (REPO / "CHANGELOG.md").read_text()


def test_imports_go_one_way() -> None:
    """What ARCHITECTURE.md promises: nothing imports cli; the lower packages import no higher one."""
    higher = {"cli", "multikernel", "scheduler", "observe", "host"}
    source = REPO / "agent/src/zernel"
    wrong = []
    for path in source.rglob("*.py"):
        package = path.relative_to(source).parts[0]
        for found in re.findall(r"^\s*(?:from|import) zernel\.(\w+)", path.read_text(), re.M):
            if (found == "cli" and package not in ("cli", "__main__.py")) or (
                package in ("devicetree", "bpf", "gpu") and found in higher
            ):
                wrong.append(f"{path.relative_to(source)} imports {found}")
    assert wrong == []


def test_starting_the_command_imports_no_third_party_package() -> None:
    code = "import sys; from zernel.cli import main, init, create; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert loaded.isdisjoint({"yaml", "jinja2", "psutil", "prometheus_client", "libfdt", "cryptography"})


def test_no_file_is_longer_than_one_sitting() -> None:
    long = [
        f"{path}: {lines}"
        for path in tracked()
        if path.suffix in {".py", ".c", ".h", ".sh", ".yml"}
        and (lines := len((REPO / path).read_text().splitlines())) > 500
    ]
    assert long == []
