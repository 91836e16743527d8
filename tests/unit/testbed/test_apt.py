# SPDX-License-Identifier: GPL-3.0-or-later
"""Which mirror and which kernel are chosen."""

from __future__ import annotations

import pytest

from testbed.apt import Mirrors, choose_kernel, fetch_index, machine_mirrors, parse_mirrors
from testbed.errors import TestbedError


def _index(*names: str, version: str = "1") -> str:
    return (
        "\n\n".join(f"Package: {name}\nVersion: {version}\nDescription: x\n more" for name in names) + "\n\n"
    )


def _whole(release: str, version: str = "1") -> str:
    names = (f"linux-{part}-{release}" for part in ("binary-unsigned", "modules", "base"))
    return _index(*names, version=version)


def test_the_newest_complete_kernel_of_the_series_is_chosen() -> None:
    index = "".join(
        [
            _whole("7.3.4+deb13-cloud-amd64"),
            _whole("7.3.10+deb13-cloud-amd64"),
            # Newer, but another series, another flavour, without modules, and with modules of another build
            _whole("7.30.1+deb13-cloud-amd64"),
            _whole("7.3.12+deb13-amd64"),
            _index("linux-binary-unsigned-7.3.11+deb13-cloud-amd64", "linux-base-7.3.11+deb13-cloud-amd64"),
            _index("linux-binary-unsigned-7.3.13+deb13-cloud-amd64", "linux-base-7.3.13+deb13-cloud-amd64"),
            _index("linux-modules-7.3.13+deb13-cloud-amd64", version="2"),
        ]
    )
    kernel = choose_kernel(index, "7.3", "cloud-amd64")
    assert kernel.release == "7.3.10+deb13-cloud-amd64"
    assert kernel.packages == (
        "linux-binary-unsigned-7.3.10+deb13-cloud-amd64",
        "linux-modules-7.3.10+deb13-cloud-amd64",
        "linux-base-7.3.10+deb13-cloud-amd64",
    )


def test_a_series_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(TestbedError, match=r"(?s)no complete 8\.0.*7\.3\.4.*Suggestion"):
        choose_kernel(_whole("7.3.4+deb13-cloud-amd64"), "8.0", "cloud-amd64")


def test_main_and_security_mirrors_are_told_apart() -> None:
    listing = "\n".join(
        [
            "https://packages.invalid/apt/|Vendor|stable|main",
            "http://mirror.invalid/security/|Debian-Security|bookworm-security|main",
            "http://mirror.invalid/debian/|Debian|bookworm|non-free-firmware",
            "http://mirror.invalid/debian/|Debian|bookworm|main",
            "http://other.invalid/debian/|Debian|bookworm-updates|main",
        ]
    )
    mirrors = parse_mirrors(listing)
    assert mirrors == Mirrors("http://mirror.invalid/debian", "http://mirror.invalid/security")
    assert mirrors.sources("trixie") == (
        "deb http://mirror.invalid/debian trixie main",
        "deb http://mirror.invalid/debian trixie-updates main",
        "deb http://mirror.invalid/debian trixie-backports main",
        "deb http://mirror.invalid/security trixie-security main",
    )


def test_a_machine_without_security_archive_gets_no_security_source() -> None:
    sources = parse_mirrors("http://mirror.invalid/debian|Debian|trixie|main").sources("trixie")
    assert len(sources) == 3
    assert not any("security" in source for source in sources)


def test_a_machine_without_debian_archive_is_refused() -> None:
    with pytest.raises(TestbedError, match=r"(?s)no Debian main archive.*Suggestion: Run apt-get update"):
        parse_mirrors("https://packages.invalid/apt/|Vendor|stable|main")


def test_this_machine_has_a_mirror() -> None:
    assert machine_mirrors().main.startswith(("http", "file:", "mirror"))


def test_an_unreachable_mirror_is_named(tmp_path: object) -> None:
    with pytest.raises(
        TestbedError, match=r"(?s)Cannot read the package index.*Suggestion: Check that the mirror"
    ):
        fetch_index(f"deb file:{tmp_path}/nowhere trixie-backports main")
