#!/bin/sh
# Runs once in the guest, at the end of the boot, then powers it off. What it prints is the guest's console.
# With ullage.volume=HOST:PORT:NAME on the kernel's command line it also puts the kernel's own NBD client to work.
# With ullage.script=NAME it does nothing but run that script of the second disk.
# With ullage.mark=TEXT it is the kernel's init: nothing else runs, and all it does is to leave that text in /root/mark.
exec >/dev/ttyS0 2>&1
echo "BOOT-OK uptime=$(cut -d' ' -f1 /proc/uptime) kernel=$(uname -r)"
script=$(sed -n 's/.*ullage.script=\([^ ]*\).*/\1/p' /proc/cmdline)
mark=$(sed -n 's/.*ullage.mark=\([^ ]*\).*/\1/p' /proc/cmdline)
volume=$(sed -n 's/.*ullage.volume=\([^ ]*\).*/\1/p' /proc/cmdline)

use_volume() {
  set -ex
  host=${1%%:*} port=${1#*:} name=${1##*:}
  port=${port%:*}
  ip link set eth0 up
  ip address add 10.0.2.15/24 dev eth0
  ip route add default via 10.0.2.2
  modprobe nbd max_part=0
  # One connection: with two, requests on the second got lost in most boots here, whatever the server (QEMU user networking).
  nbd-client -C 1 -b 4096 -name "$name" "$host" "$port" /dev/nbd0
  mkfs.ext4 -q -F /dev/nbd0
  mount /dev/nbd0 /mnt
  dd if=/dev/urandom of=/mnt/kept bs=1M count=8 conv=fsync status=none
  dd if=/dev/zero of=/mnt/trimmed bs=1M count=16 conv=fsync status=none
  before=$(sha256sum < /mnt/kept)
  rm /mnt/trimmed
  fstrim -v /mnt
  umount /mnt
  e2fsck -fn /dev/nbd0
  mount -o ro /dev/nbd0 /mnt
  [ "$(sha256sum < /mnt/kept)" = "$before" ]
  echo "KEPT-SHA256 $before"
  umount /mnt
  nbd-client -d /dev/nbd0
}

if [ -n "$mark" ]; then
  echo "$mark" >/root/mark && sync && mount -o remount,ro / && echo MARK-WRITTEN
  systemctl poweroff --force --force # without a manager to ask
fi
if [ -n "$script" ]; then
  mount -o ro /dev/vdb /opt && cd /opt && bash "./$script" && echo SCRIPT-OK || echo SCRIPT-FAILED
  systemctl poweroff --force
  exit
fi
if [ -n "$volume" ]; then
  (use_volume "$volume") && echo VOLUME-OK || echo VOLUME-FAILED
fi
# The root disk is written to as well, so that its file system is worth a check afterwards.
dd if=/dev/zero of=/root/written bs=1M count=16 conv=fsync status=none && sync && echo ROOT-WRITTEN
systemctl poweroff --force
