# Runs in a guest whose third disk comes from a daemon that is restarted meanwhile. Says when it begins to write.
set -eEuo pipefail
trap 'echo "FAILED: line $LINENO: $BASH_COMMAND"; dmesg | tail -n 20' ERR
disk=/dev/vdc
mkfs.ext4 -q $disk
mount $disk /mnt
echo "WRITING"
fio --name=verified --directory=/mnt --size=24M --bs=4k --rw=randwrite --ioengine=libaio --iodepth=8 --direct=1 --fsync=32 \
  --rate_iops=250 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --eta=never --output=/run/fio.out ||
  { cat /run/fio.out; false; }
echo "VERIFIED"
dd if=/dev/urandom of=/mnt/kept bs=1M count=8 conv=fsync status=none
echo "KEPT-SHA256 $(sha256sum </mnt/kept | cut -d' ' -f1)"
umount /mnt
e2fsck -fn $disk
if dmesg | grep -iE 'I/O error|vdc.*(fail|abort)'; then false; fi
