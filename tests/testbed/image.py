# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's disk: a plain Debian 13 with a sched_ext kernel, built with mmdebstrap, kept in the cache.

The image is read only for ever after: every boot writes to a throwaway layer above it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed import apt
from testbed.cache import Cache, recipe_hash, tree_hash
from testbed.errors import TestbedError
from testbed.tools import build, require, run

# Raise when the way the image is built changes without any of the inputs below changing.
RECIPE = 1
HERE = Path(__file__).parent
SUITE = "trixie"
# The series of the Debian kernel that boots by default: the newest that runs a BPF scheduler.
KERNEL_SERIES = "7.3"
KERNEL_FLAVOUR = "cloud-amd64"
# Beside mmdebstrap's minbase (essential packages and apt)
PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "systemd-sysv",
    "udev",
    "zstd",
)
# Kept ready in /var/cache/apt/archives: what provisioning installs, so that an emulated guest does not wait
# for the network. apt in the guest still resolves, verifies and installs them itself.
DOWNLOADS = (
    "libbpf1",
    "python3-cryptography",
    "python3-jinja2",
    "python3-libfdt",
    "python3-prometheus-client",
    "python3-psutil",
    "python3-systemd",
    "python3-websockets",
    "python3-yaml",
)
# The name under which the guests' host key is known, whatever port they are reached at.
HOST_KEY_ALIAS = "zernel-guest"


@dataclass(frozen=True)
class Recipe:
    """Everything that the image is built from. Its hash is the image's place in the cache."""

    sources: tuple[str, ...]
    apt_conf: tuple[str, ...] = ()
    suite: str = SUITE
    kernel_series: str = KERNEL_SERIES
    kernel_flavour: str = KERNEL_FLAVOUR
    packages: tuple[str, ...] = PACKAGES
    downloads: tuple[str, ...] = DOWNLOADS
    size_gib: int = 10
    files: str = field(default_factory=lambda: tree_hash(HERE / "rootfs"))
    script: str = field(default_factory=lambda: tree_hash(HERE / "customize.sh"))
    recipe: int = RECIPE

    @classmethod
    def for_machine(cls, kernel_series: str = KERNEL_SERIES) -> Recipe:
        """Return the recipe with this machine's mirrors."""
        mirrors = apt.machine_mirrors()
        return cls(
            sources=mirrors.sources(SUITE), apt_conf=apt.carried_options(), kernel_series=kernel_series
        )

    @property
    def key(self) -> str:
        return recipe_hash(asdict(self))


@dataclass(frozen=True)
class Image:
    """A finished image: the files of its directory."""

    path: Path

    @property
    def disk(self) -> Path:
        """The root file system, ext4, sparse, without a partition table."""
        return self.path / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd.img"

    @property
    def private_key(self) -> Path:
        """The SSH key that logs in as root."""
        return self.path / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The guests' host key, under ``HOST_KEY_ALIAS``."""
        return self.path / "known_hosts"

    def facts(self) -> dict[str, object]:
        """Return what the build recorded: kernel release and version, seconds it took, recipe."""
        facts: dict[str, object] = json.loads((self.path / "image.json").read_text())
        return facts


def ensure(recipe: Recipe | None = None, cache: Cache | None = None, *, rebuild: bool = False) -> Image:
    """Return the image, building it when the cache does not hold it."""
    recipe = recipe or Recipe.for_machine()
    cache = cache or Cache.default()
    if rebuild:
        cache.remove("image", recipe.key)
    if cache.get("image", recipe.key) is None:
        if os.geteuid() != 0:
            raise TestbedError(
                "Building the guest image needs root",
                "mmdebstrap makes files of several owners and mounts /proc for the packages' scripts.",
                suggestion="Run it as root once; guests boot from the finished image without root",
            )
        require("mmdebstrap", "mke2fs", "ssh-keygen")
    # 1 GiB of tree and 1 GiB of image, with room to spare
    return Image(cache.ensure("image", recipe.key, lambda directory: _build(recipe, directory), 2560))


def _build(recipe: Recipe, directory: Path) -> None:
    started = time.monotonic()
    backports = next(s for s in recipe.sources if f"{recipe.suite}-backports" in s)
    kernel = apt.choose_kernel(apt.fetch_index(backports), recipe.kernel_series, recipe.kernel_flavour)
    _say(f"Building the Debian {recipe.suite} guest image with kernel {kernel.release} (about a minute)")
    key = directory / "id_ed25519"
    run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "zernel-testbed", "-f", key],
        "make the guests' SSH key",
    )
    apt_conf = directory / "apt.conf"
    apt_conf.write_text("".join(f"{line}\n" for line in recipe.apt_conf))
    root = directory / "root"
    _bootstrap(recipe, kernel, root, directory)
    _finish(root)
    shutil.copy(root / f"boot/vmlinuz-{kernel.release}", directory / "vmlinuz")
    shutil.copy(root / f"boot/initrd.img-{kernel.release}", directory / "initrd.img")
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (directory / "known_hosts").write_text(f"{HOST_KEY_ALIAS} {host_key}")
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, directory / "disk.img", f"{recipe.size_gib}G"],
        "write the guest image",
    )
    shutil.rmtree(root)
    facts = {"kernel": asdict(kernel), "seconds": round(time.monotonic() - started, 1)}
    (directory / "image.json").write_text(json.dumps({**facts, "recipe": asdict(recipe)}, indent=2) + "\n")
    _say(f"Guest image built in {facts['seconds']} s")


def _bootstrap(recipe: Recipe, kernel: apt.Kernel, root: Path, directory: Path) -> None:
    """Fill ``root`` with Debian. mmdebstrap does its mounts in a name space of its own: none can be left."""
    build(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--architectures=amd64",
            f"--include={','.join((*recipe.packages, *kernel.packages))}",
            '--aptopt=Apt::Install-Recommends "false"',
            *(f"--aptopt={line}" for line in recipe.apt_conf),
            "--skip=cleanup/apt/lists,cleanup/apt/cache",
            f'--customize-hook="{HERE / "customize.sh"}" "$1"',
            # The options above, which mmdebstrap writes for the guest too; customize.sh writes its own.
            '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
            recipe.suite,
            root,
            *recipe.sources,
        ],
        "build the guest image",
        directory / "build.log",
        suggestion="Check that the mirror in this machine's apt sources is reachable and carries the release",
        env={
            "TESTBED_FILES": str(HERE / "rootfs"),
            "TESTBED_KEY": str(directory / "id_ed25519.pub"),
            "TESTBED_APT_CONF": str(directory / "apt.conf"),
            "TESTBED_RELEASE": kernel.release,
            "TESTBED_DOWNLOAD": " ".join(recipe.downloads),
            # Scratch files of mmdebstrap belong to the build that is removed as a whole.
            "TMPDIR": str(directory),
        },
    )


def _finish(root: Path) -> None:
    """Write what mmdebstrap would have removed at its end, so that no boot is taken for a first one."""
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    # systemd rebuilds caches (ldconfig, hwdb, journal catalog) when /usr is newer than these.
    stamp = (root / "usr").stat()
    for path in (root / "etc/.updated", root / "var/.updated"):
        path.touch()
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
