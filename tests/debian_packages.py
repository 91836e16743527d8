# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks a package of Debian, non-free ones too, from the mirror that this machine is set up with.

The machine's own sources and package lists stay as they are: apt gets directories of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

CACHE = Path.home() / ".cache" / "zernel" / "packages"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked(package: str) -> Path:
    """Return a directory with the package's files, downloaded at the first call and kept in the cache."""
    directory = CACHE / package
    done = directory / ".complete"
    if done.exists():
        return directory / "files"
    state = CACHE / "apt"
    for part in ("lists/partial", "archives/partial", "sources"):
        (state / part).mkdir(parents=True, exist_ok=True)
    uri, suite = _mirror()
    (state / "sources/nonfree.sources").write_text(
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main contrib non-free\n"
        f"Signed-By: {_KEYRING}\n"
    )
    directory.mkdir(parents=True, exist_ok=True)
    _apt(state, directory, "update")
    _apt(state, directory, "download", package)
    (archive,) = directory.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", archive, directory / "files"], check=True)
    archive.unlink()
    done.touch()
    return directory / "files"


def _mirror() -> tuple[str, str]:
    """Return address and code name of the Debian release that this machine installs from."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI) $(CODENAME)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for line in targets:
        fields = line.split()
        # The code name of updates and backports has a suffix.
        if fields[:3] == ["Debian", "Debian", "main"] and "-" not in fields[4]:
            return fields[3], fields[4]
    raise AssertionError("this machine's apt has no Debian release: 'apt-get update' first")


def _apt(state: Path, directory: Path, *arguments: str) -> None:
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": state / "sources",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state,
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
