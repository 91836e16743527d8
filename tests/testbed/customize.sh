#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Turn the directory that mmdebstrap filled into a guest. Run by mmdebstrap with the directory as its first
# argument and /proc, /sys and /dev mounted below it. From the environment:
#   TESTBED_FILES     directory tree to lay over the root file system
#   TESTBED_KEY       file with the public key that may log in as root
#   TESTBED_APT_CONF  file with apt settings carried over from the building machine
#   TESTBED_RELEASE   kernel, as uname -r says
#   TESTBED_DOWNLOAD  packages to keep ready as .deb files, not installed
set -eu
root=$1

cp -r "$TESTBED_FILES/." "$root/"
install -D -m 0644 "$TESTBED_APT_CONF" "$root/etc/apt/apt.conf.d/90testbed"
install -D -m 0600 "$TESTBED_KEY" "$root/root/.ssh/authorized_keys"
chmod 0700 "$root/root/.ssh"

echo zernel-guest >"$root/etc/hostname"

chroot "$root" systemctl --quiet enable testbed-network.service
# Timers that would wake up in the middle of a measurement, and units that have nothing to do in a guest
# without firmware variables, screen or TPM: each costs an emulated boot a quarter of a second.
chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service getty@tty1.service modprobe@drm.service modprobe@efi_pstore.service \
    systemd-pstore.service sshd-keygen.service systemd-network-generator.service \
    systemd-networkd-persistent-storage.service systemd-udev-load-credentials.service

# Generators that look for hardware a guest has not: TPM, vsock, GPT partitions, a hibernated system.
mkdir -p "$root/etc/systemd/system-generators"
for generator in tpm2 ssh gpt-auto hibernate-resume; do
    ln -s /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done

# The unsigned binary package brings no maintainer scripts: what those would do.
cp "$root/usr/lib/modules/$TESTBED_RELEASE/vmlinuz.unsigned" "$root/boot/vmlinuz-$TESTBED_RELEASE"
if [ -f "$root/usr/lib/modules/$TESTBED_RELEASE/config" ]; then
    cp "$root/usr/lib/modules/$TESTBED_RELEASE/config" "$root/boot/config-$TESTBED_RELEASE"
fi
chroot "$root" depmod "$TESTBED_RELEASE"
chroot "$root" update-initramfs -c -k "$TESTBED_RELEASE"

chroot "$root" apt-get clean
if [ -n "$TESTBED_DOWNLOAD" ]; then
    # shellcheck disable=SC2086 # a list of words
    chroot "$root" apt-get --quiet --yes --no-install-recommends --download-only install $TESTBED_DOWNLOAD
fi
# Last, for apt-get above needs the building machine's resolver: QEMU's own resolver.
rm -f "$root/etc/resolv.conf"
echo "nameserver 10.0.2.3" >"$root/etc/resolv.conf"
