# Runs in a guest, from the program disk: `ullage attach` through the kernel's NBD client, and without it.
set -eEuo pipefail
export HOME=/root ULLAGE_API=unix:/srv/ullage/api.sock
ullage=/opt/bin/ullage
data=/srv/ullage
mnt=/mnt/v
mkdir -p $data $mnt

say() { echo "[$SECONDS s] $*"; }
fail() {
  trap - ERR
  say "FAILED: $*"
  tail -n 20 /run/serve.log /run/ullage-attach/*/log
  echo o >/proc/sysrq-trigger # what is attached would keep the shutdown waiting
  sleep infinity
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
fails() { if "$@"; then fail "$* did not fail"; fi; }

serve() {
  rm -f /run/serve.out
  $ullage serve --data $data --api $ULLAGE_API --nbd unix:$data/nbd.sock --json >/run/serve.out 2>/run/serve.log &
  daemon=$!
  until grep -q '^}' /run/serve.out 2>/dev/null; do kill -0 $daemon; sleep 0.2; done
}

restart() { # signal
  kill -s "$1" $daemon
  wait $daemon || true
  serve
  say "restarted after SIG$1"
}

serve
say "serving"
$ullage volume create v --size 40M
attached=$($ullage attach v --mkfs ext4 --mount $mnt)
say "$attached"
[[ $attached = "v is attached: /dev/nbd0, mounted at $mnt"* ]]
[[ $(findmnt -n -o SOURCE $mnt) = /dev/nbd0 ]]
echo "KERNEL-ATTACHED"

# Pauses and no error while the daemon goes and comes back.
fio --name=v --directory=$mnt --size=8M --bs=4k --rw=randwrite --ioengine=libaio --iodepth=8 --direct=1 --fsync=50 \
  --rate_iops=100 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --eta=never --output=/run/fio.out &
fio=$!
sleep 1
restart TERM
restart KILL
kill -0 $fio
wait $fio || { cat /run/fio.out; fail "fio"; }
if dmesg | grep -iE 'I/O error|nbd0: .*(fail|error)'; then fail "the kernel saw errors"; fi
say "fio has verified"
echo "SURVIVED"

# It grows while it is mounted.
sha256sum $mnt/v.0.0 >/run/sum
$ullage volume resize v 80M
[[ $(blockdev --getsize64 /dev/nbd0) = $((40 << 20)) ]]
listed=$($ullage attach)
say "$listed"
[[ $listed = *"v has grown to 80M: run \`ullage attach v --grow\`"* ]]
say "$($ullage attach v --grow)"
[[ $(blockdev --getsize64 /dev/nbd0) = $((80 << 20)) ]]
resize2fs /dev/nbd0
dd if=/dev/urandom of=$mnt/beyond bs=1M count=40 conv=fsync status=none
sha256sum $mnt/beyond >>/run/sum
echo "GROWN"

# Away and back, read-only.
$ullage detach v
[[ ! -e /sys/block/nbd0/backend ]]
say "detached"
$ullage attach v --read-only
e2fsck -fn /dev/nbd0
fails dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 conv=fsync status=none
mount -o ro /dev/nbd0 $mnt
sha256sum -c /run/sum
$ullage detach v
echo "CLEAN"

# Acknowledged writes that are lost are told.
$ullage snapshot create v@one
$ullage attach v
dd if=/dev/urandom of=/dev/nbd0 bs=64k count=1 oflag=direct status=none
$ullage volume revert v@one --force
fails dd if=/dev/nbd0 of=/dev/null bs=64k count=1 iflag=direct status=none
fails $ullage detach v
echo "LOSS-TOLD"

# A killed helper makes what hangs fail, with nobody's help.
helper=$($ullage attach v --json | sed -n 's/.*"helperPid": \([0-9]*\).*/\1/p')
dd if=/dev/nbd0 of=/run/begin bs=64k count=1 status=none
kill -s STOP $daemon
dd if=/run/begin of=/dev/nbd0 bs=64k oflag=direct status=none & # it may still come through in the end
writer=$!
sleep 1
kill -s KILL "$helper"
for ((i = 0; i < 120; i++)); do kill -0 $writer 2>/dev/null || break; sleep 1; done
((i < 120)) || fail "what the killed helper had not answered hangs"
fails wait $writer
kill -s CONT $daemon
say "the writer was told"
$ullage detach v
[[ ! -e /sys/block/nbd0/backend ]]
echo "HELPER-KILLED"

# Without the module it is nbdfuse.
modprobe -r nbd
mount --bind /dev/null "/lib/modules/$(uname -r)/kernel/drivers/block/nbd.ko"
say "$($ullage attach v --mount $mnt)"
[[ $(findmnt -n -o SOURCE $mnt) = /dev/loop0 ]]
sha256sum -c /run/sum
$ullage detach v
echo "WITHOUT-KERNEL"
kill $daemon
wait $daemon
say "done"
