# SPDX-License-Identifier: GPL-3.0-or-later
"""The role zernel.fleet.kernel with a real package from Debian's archive, up to the reboot.

The testbed hands the guest its kernel: a reboot here would not go through a boot loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_package import install
from playbook import play
from testbed import Guest, GuestSpec
from testbed.image import Image
from testbed.inventory import write

METAPACKAGE = "linux-image-cloud-amd64"
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: zernel.fleet.kernel
    - ansible.builtin.debug:
        msg: "reboot required: {{ zernel_kernel_reboot_required | default('unknown') }}"
"""
# The initramfs is never booted here: under emulation, a complete one takes minutes for nothing.
SMALL_INITRAMFS = (
    "mkdir -p /etc/initramfs-tools/conf.d && "
    "printf 'MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n' > /etc/initramfs-tools/conf.d/zernel-test"
)
KERNELS = "dpkg-query --show --showformat '${db:Status-Abbrev}${Package}\\n' 'linux-*' | sort; ls /boot"


@pytest.fixture(scope="module")
def host(guest_image: Image) -> Iterator[Guest]:
    """A guest with the agent."""
    with Guest.boot(GuestSpec(name="zernel-kernel", memory_mib=2048), image=guest_image) as guest:
        install(guest)
        guest.run("apt-get -q update", timeout=300)
        guest.run(SMALL_INITRAMFS)
        yield guest


@pytest.fixture(scope="module")
def release(host: Guest) -> str:
    """The release that the metapackage of the guest's own suite brings."""
    image = host.run(f"apt-cache depends {METAPACKAGE}").stdout.split("Depends: linux-image-")[1]
    return image.split()[0]


def role(host: Guest, directory: Path, **settings: object) -> tuple[int, str]:
    """Run the role; returns the exit status and what was said, in one line."""
    playbook = directory / "kernel.yml"
    playbook.write_text(PLAYBOOK)
    return play(write(directory / "inventory.yml", [host]), playbook, settings)


def test_a_candidate_that_lacks_something_is_taken_away_again(
    host: Guest, release: str, tmp_path: Path
) -> None:
    before = host.run(KERNELS).stdout
    status, said = role(
        host,
        tmp_path,
        zernel_kernel_packages=[METAPACKAGE],
        zernel_kernel_release=release,
        zernel_kernel_require=["HZ_1000"],
        zernel_kernel_reboot_ok=True,
    )
    assert status == 2, said
    assert f"The kernel {release} is not used" in said
    assert "CONFIG_HZ_1000" in said
    assert host.run(KERNELS).stdout == before


def test_a_candidate_that_passes_stays_and_waits_for_the_reboot(
    host: Guest, release: str, tmp_path: Path
) -> None:
    running = host.run("uname -r").stdout.strip()
    settings = {
        "zernel_kernel_packages": [METAPACKAGE],
        "zernel_kernel_release": release,
        "zernel_kernel_require": ["btf"],
    }
    status, said = role(host, tmp_path, **settings)
    assert status == 0, said
    assert "reboot required: True" in said
    assert {f"vmlinuz-{release}", f"initrd.img-{release}"} <= set(host.run("ls /boot").stdout.split())
    assert host.run("uname -r").stdout.strip() == running
    status, said = role(host, tmp_path, **settings)
    assert status == 0, said
    assert "changed=0" in said
