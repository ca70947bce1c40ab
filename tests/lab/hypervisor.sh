#!/bin/sh
# hypervisor.sh FOLDER — the first process of namespaces of its own (mounts, processes): a hypervisor whose libvirt is
# nobody else's. What it mounts nobody outside sees, and all that runs in here ends with it.
set -eu
lab=$1
mount -t tmpfs tmpfs /sys/fs/cgroup # no control groups: libvirt does without
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/lock /run/libvirt
mount -t tmpfs -o mode=755 tmpfs /var/log # swtpm makes a folder of its own there
mkdir /var/log/libvirt
if [ -d /var/lib/swtpm-localca ]; then
  mount -t tmpfs -o mode=750,uid="$(id -u tss)" tmpfs /var/lib/swtpm-localca
fi
# A KVM that root may use and qemu's user may not makes libvirt ask qemu anew, for seconds, at each definition and start.
if [ -e /dev/kvm ]; then
  : >/run/no-kvm
  chmod 000 /run/no-kvm
  mount --bind /run/no-kvm /dev/kvm
fi
for place in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
  mount --bind "$lab/root/$place" "/$place"
done
for file in passwd shadow group; do mount --bind "$lab/root/etc/$file" "/etc/$file"; done
/usr/sbin/virtlogd -d -p /run/virtlogd.pid
/usr/sbin/libvirtd -d -p /run/libvirtd.pid
/usr/sbin/sshd -f "$lab/ssh/sshd_config" -E "$lab/ssh/sshd.log"
# Waiting also takes in the processes whose parents are gone: libvirt sees a killed qemu as alive until then.
while :; do sleep 3600; done
