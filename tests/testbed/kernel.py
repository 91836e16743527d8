# SPDX-License-Identifier: GPL-3.0-or-later
"""A small kernel with sched_ext, built from Debian's linux-source, for what Debian's own do not cover.

Debian's 6.12 has sched_ext switched off. This one has everything built in and nothing that a guest lacks the
hardware for, so it builds in minutes and boots without an initrd.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed.cache import Cache, recipe_hash, tree_hash
from testbed.errors import TestbedError
from testbed.tools import build, require, run, tail

# Raise when the way of building changes without any of the inputs below changing.
RECIPE = 1
# Series that can be built; the machine's apt must have linux-source-SERIES.
SERIES = ("6.12",)
FRAGMENT = Path(__file__).parent / "kernels/guest.config"
_TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "tar", "xz", "make", "gcc", "ld", "flex", "bison", "bc")
_TOOLS_LATE = ("pahole", "perl", "cpio")
_HEADERS = {"gelf.h": "libelf-dev", "openssl/opensslv.h": "libssl-dev"}


@dataclass(frozen=True)
class Recipe:
    """Everything that a kernel is built from."""

    series: str
    version: str
    fragment: str = field(default_factory=lambda: tree_hash(FRAGMENT))
    recipe: int = RECIPE

    @classmethod
    def for_machine(cls, series: str = SERIES[0]) -> Recipe:
        """Return the recipe with the source version that this machine's apt offers."""
        require("apt-cache")
        policy = run(["apt-cache", "policy", f"linux-source-{series}"], "look for the kernel source")
        match = re.search(r"^\s+Candidate: (\d\S+)", policy, re.MULTILINE)
        if match is None:
            raise TestbedError(
                f"This machine's apt has no linux-source-{series}",
                suggestion="Run apt-get update; it is in Debian 12's security archive and in Debian 13",
            )
        return cls(series, match[1])

    @property
    def key(self) -> str:
        return recipe_hash(asdict(self))


def ensure(recipe: Recipe | None = None, cache: Cache | None = None, *, rebuild: bool = False) -> Path:
    """Return the path of the bzImage, building it when the cache does not hold it."""
    recipe = recipe or Recipe.for_machine()
    cache = cache or Cache.default()
    if rebuild:
        cache.remove("kernel", recipe.key)
    if cache.get("kernel", recipe.key) is None:
        _require_build_tools()
    # The unpacked source is 1.6 GiB, the build with debugging information 2.5 GiB
    entry = cache.ensure("kernel", recipe.key, lambda directory: _build(recipe, directory), 5120)
    return entry / "bzImage"


def _require_build_tools() -> None:
    require(*_TOOLS, *_TOOLS_LATE)
    missing = [
        package
        for header, package in _HEADERS.items()
        if not any(
            (Path(include) / header).exists() for include in ("/usr/include", "/usr/include/x86_64-linux-gnu")
        )
    ]
    if missing:
        raise TestbedError(
            "Missing headers for building a kernel", suggestion=f"apt-get install {' '.join(missing)}"
        )


def _build(recipe: Recipe, directory: Path) -> None:
    started = time.monotonic()
    print(f"Building a small {recipe.series} kernel ({recipe.version}): several minutes", file=sys.stderr)
    source = _unpack(recipe, directory)
    log = directory / "build.log"
    make: list[str | Path] = ["make", "-C", source, "-s"]
    asked = f"KCONFIG_ALLCONFIG={FRAGMENT}"
    # olddefconfig after allnoconfig: what the build itself would settle, settled before the check.
    for target in ([asked, "allnoconfig"], ["olddefconfig"]):
        build([*make, *target], "configure the kernel", log, suggestion=f"The fragment is {FRAGMENT}")
    check_config(FRAGMENT.read_text(), (source / ".config").read_text())
    build(
        ["nice", "-n", "10", *make, f"-j{os.cpu_count() or 1}", "bzImage"],
        "build the kernel",
        log,
        env={"KBUILD_BUILD_USER": "zernel", "KBUILD_BUILD_HOST": "testbed"},
    )
    shutil.copy(source / "arch/x86/boot/bzImage", directory / "bzImage")
    shutil.copy(source / ".config", directory / "config")
    shutil.rmtree(source)
    facts = {"recipe": asdict(recipe), "seconds": round(time.monotonic() - started, 1)}
    (directory / "kernel.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"Kernel built in {facts['seconds']} s", file=sys.stderr)


def _unpack(recipe: Recipe, directory: Path) -> Path:
    """Fetch Debian's source package with apt and unpack the part that an x86 build needs."""
    name = f"linux-source-{recipe.series}"
    run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"{name}={recipe.version}"],
        "fetch the kernel source",
        cwd=directory,
        suggestion="Run apt-get update, and check that the machine's mirror is reachable",
    )
    package = next(directory.glob(f"{name}_*.deb"))
    run(["dpkg-deb", "-x", package, directory / "deb"], "unpack the kernel source")
    package.unlink()
    archive = directory / f"deb/usr/src/{name}.tar.xz"
    run(
        ["tar", "-C", directory, "--use-compress-program=xz -T0", "-xf", archive],
        "unpack the kernel source",
    )
    shutil.rmtree(directory / "deb")
    return directory / name


def check_config(fragment: str, config: str) -> None:
    """Refuse a configuration that lacks an option the fragment asks for: a dependency was not met."""
    got = dict(line.split("=", 1) for line in config.splitlines() if line.startswith("CONFIG_"))
    wanted = [line.split("=", 1) for line in fragment.splitlines() if line.startswith("CONFIG_")]
    wrong = [
        f"{name}={value}, got {got.get(name, 'n')}" for name, value in wanted if got.get(name, "n") != value
    ]
    if wrong:
        raise TestbedError(
            "The kernel configuration does not hold what was asked for",
            tail("\n".join(wrong), 20),
            suggestion=f"Add what these options depend on to {FRAGMENT}",
        )
