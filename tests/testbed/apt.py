# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's own apt configuration: which mirror it uses, and what that mirror offers for another release.

No host name of an archive stands anywhere in this tree.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError
from testbed.tools import run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Settings of the machine's apt without which its mirror might not be reachable or not be accepted
_CARRIED = ("Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until")
_UPDATE_FIRST = "Run apt-get update, and check /etc/apt/sources.list.d for Debian's main archive"


@dataclass(frozen=True)
class Mirrors:
    """Addresses of the archive, and of its security archive when the machine has one."""

    main: str
    security: str | None

    def sources(self, suite: str) -> tuple[str, ...]:
        """Return the one-line sources of a release: itself, updates, backports, security."""
        suites = [(self.main, suite), (self.main, f"{suite}-updates"), (self.main, f"{suite}-backports")]
        if self.security:
            suites.append((self.security, f"{suite}-security"))
        return tuple(f"deb {uri} {name} main" for uri, name in suites)


def machine_mirrors() -> Mirrors:
    """Read the mirrors from what apt has configured and fetched on this machine."""
    fields = "$(REPO_URI)|$(LABEL)|$(CODENAME)|$(COMPONENT)"
    listing = run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        "read the machine's apt sources",
        suggestion=_UPDATE_FIRST,
    )
    return parse_mirrors(listing)


def parse_mirrors(listing: str) -> Mirrors:
    """Choose among lines ``URI|LABEL|CODENAME|COMPONENT``: the first main archive, the first security one."""
    main, security = None, None
    for line in listing.splitlines():
        uri, label, codename, component = [*line.split("|"), "", "", ""][:4]
        if component != "main" or label not in ("Debian", "Debian-Security"):
            continue
        if label == "Debian-Security" or codename.endswith("-security"):
            security = security or uri.rstrip("/")
        else:
            main = main or uri.rstrip("/")
    if main is None:
        raise TestbedError(
            "This machine's apt knows no Debian main archive",
            "The guest is built from the mirror that this machine itself uses.",
            suggestion=_UPDATE_FIRST,
        )
    return Mirrors(main, security)


def carried_options() -> tuple[str, ...]:
    """Return the machine's proxy and validity settings as lines of apt.conf."""
    dump = run(["apt-config", "dump"], "read the machine's apt configuration")
    pattern = re.compile(rf'^({"|".join(_CARRIED)}) "(.+)";$', re.MULTILINE | re.IGNORECASE)
    return tuple(f'{key} "{value}";' for key, value in pattern.findall(dump))


@dataclass(frozen=True)
class Kernel:
    """A Debian kernel: ``release`` as uname -r says, and the packages that hold it."""

    release: str
    version: str
    packages: tuple[str, ...]


def choose_kernel(index: str, series: str, flavour: str) -> Kernel:
    """Return the newest kernel of a series whose binary, modules and base packages are all in the index.

    Old point releases stay in the index as binaries without their modules, and a new one may be there
    unsigned only: the unsigned binary is taken, for direct kernel boot checks no signature.
    """
    versions: dict[str, str] = {}
    for package in paragraphs(index):
        versions[package.get("Package", "")] = package.get("Version", "")
    releases = []
    pattern = re.compile(rf"linux-binary-unsigned-((\d+(?:\.\d+)+)\S*-{re.escape(flavour)})")
    for name in versions:
        match = pattern.fullmatch(name)
        if match and f"{match[2]}.".startswith(f"{series}."):
            releases.append((tuple(int(part) for part in match[2].split(".")), match[1]))
    for _, release in sorted(releases, reverse=True):
        names = tuple(f"linux-{part}-{release}" for part in ("binary-unsigned", "modules", "base"))
        if len({versions.get(name) for name in names}) == 1:
            return Kernel(release, versions[names[0]], names)
    found = sorted({match[2] for match in map(pattern.fullmatch, versions) if match})
    raise TestbedError(
        f"The mirror has no complete {series} {flavour} kernel",
        f"Series with a binary package: {', '.join(found) or 'none'}",
        suggestion="Choose another series with --kernel, or give the path of a bzImage",
    )


def paragraphs(index: str) -> Iterator[dict[str, str]]:
    """Yield the single-line fields of each paragraph of a Packages file."""
    for block in index.split("\n\n"):
        fields = (line.partition(": ") for line in block.splitlines() if line[:1] not in (" ", "\t"))
        yield {key: value for key, _, value in fields}


def fetch_index(source: str) -> str:
    """Fetch, with apt and its signature check, the package index of one ``deb`` line; return its text."""
    if not KEYRING.exists():
        raise TestbedError(
            "Missing the archive's keys", f"{KEYRING}", suggestion="apt-get install debian-archive-keyring"
        )
    with tempfile.TemporaryDirectory(prefix="zernel-apt-") as name:
        state = Path(name)
        (state / "lists/partial").mkdir(parents=True)
        (state / "status").touch()
        (state / "sources.list").write_text(source.replace("deb ", f"deb [signed-by={KEYRING}] ", 1) + "\n")
        private = {
            "Dir::State": state,
            "Dir::State::Lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
            "Dir::Etc::SourceList": state / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        options = [word for key, value in private.items() for word in ("-o", f"{key}={value}")]
        doing = "read the package index of the guest's release"
        run(
            ["apt-get", *options, "-qq", "update"],
            doing,
            suggestion="Check that the mirror in this machine's apt sources is reachable",
        )
        return run(["apt-cache", *options, "dumpavail"], doing)
