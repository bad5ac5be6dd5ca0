import { configKeys } from "../config/schema.ts";

/** A page of `ullage help TOPIC`: what people ask for in the middle of their work. The documents in docs/ say more. */
export interface HelpTopic {
  name: string;
  summary: string;
  text(): string;
}

export const helpTopics: readonly HelpTopic[] = [
  {
    name: "sources",
    summary: "where images come from, and what happens to their bytes",
    text: () => `A source is what a volume is made from:

  ./debian.raw, file:///images/debian.raw       a file or block device of the host
  https://example.org/debian.raw                a web server
  s3://bucket/key, s3://bucket/key?versionId=V  S3, Ceph, MinIO, …
  oss://bucket/key                              Alibaba Cloud OSS
  oci://registry.example.org/team/disk:v1       an artifact in a registry; #TITLE behind it names one of several blobs
  nbd://host:port/export, nbds://…              an export of another NBD server; takes --unpinned
  nbd+unix:///export?socket=/run/nbd.sock       the same over a unix socket

  $ ullage volume create web1 --from https://example.org/debian.raw
  $ ullage volume create web2 --from ./debian.raw --size 40G

Its format is told by its first bytes: raw, qcow2, vmdk, vhd, vhdx, and any of them in a tar archive (tar+qcow2) or
packed with gzip, zstd or xz (xz+raw), which are fetched and unpacked before the volume is there. --format overrides that;
--format raw serves the bytes as they are. All about formats: docs/SOURCES.md.
A disk larger than its image reads as zeros behind it.

Bytes are fetched when they are first read, into a cache that all volumes of the same image share, and the rest in
the background: the volume is then 'detached', and the source may vanish. Until then it must stay as it is: a source that
changed is an error, bytes of two versions are never mixed. Steer the filling with volume hydrate, pause and resume;
--hydrate off fetches only what is read.

What is here of which image:  ullage image ls, ullage image show SOURCE, ullage cache ls

  --download   for servers that can't send parts of a file: fetches all of it before the volume is there
  --set cache=none   reads through: nothing of the image is kept on this disk (volume create); cache = "none" in
               [[sources.match]] makes that the default of its sources, --set cache=shared is the exception
  --allow-backing    an image that lies on others (qcow2's backing files): reads those, too; else it is refused
  --unpinned   for servers that send nothing to notice a change by (no strong ETag; NBD), if the source never changes

Credentials come from where the provider's own tools find them (AWS_…, ~/.aws, OSS_…, ~/.docker/config.json), or from what
[[sources.match]] in the configuration file refers to, together with endpoints, mirrors, proxies. They are read again when they
change. Those in an address (https://user:password@host/…) are kept in memory only: after a restart a volume needs configured
ones. ullage source limit RATE bounds what all sources together deliver.

Over the API's unix socket any source may be named; over TCP those that sources.allow lets in (ullage help config).

All of it, and the quirks of providers: docs/SOURCES.md.`,
  },
  {
    name: "durability",
    summary: "what survives a kill, a power cut, a failing disk",
    text: () => `flushed        a FLUSH, or a request with FUA, was answered after it
acknowledged   answered, not flushed since

  what happens               flushed   acknowledged
  kill -9, crash of Ullage   kept      kept
  clean stop                 kept      kept
  power cut, kernel crash    kept      each sector: the last flush, or what was written since
  the disk fails a sync      kept      unknown: the volume is 'poisoned' and takes no writes
  the disk is full           kept      kept; writes that need space get ENOSPC until there is some

  sync=always   makes every write durable before it is answered:  ullage volume set web1 sync=always

A volume that takes no writers says why in ullage volume show and in health; ullage volume reopen NAME --accept-loss lets
them in again, when its clients have been restarted. A copy of a data directory that is being served is worth nothing:
see ullage help operations.

All of it, with reasons: docs/DURABILITY.md.`,
  },
  {
    name: "snapshots",
    summary: "freeze, go back, copy: instantly, whatever the size",
    text: () => `  $ ullage snapshot create web1@before       a frozen state, also the read-only NBD export web1@before
  $ ullage volume revert web1@before         what was written since is gone
  $ ullage volume create test --snapshot web1@before
  $ ullage volume create test2 --clone web1  a volume that begins as another one is now
  $ ullage snapshot ls web1
  $ ullage snapshot rm web1@before

None of them copies data: volumes and snapshots share what is equal.
Snapshots go in any order; clones live on without the volume that they were made from. A volume with snapshots is removed
with them by ullage volume rm --snapshots. What only they needed is freed by itself, a moment later; what a volume has
overwritten since, when something is removed the next time, or now, by ullage reclaim.

A snapshot is the disk as after a power cut at that moment: a file system on it recovers by its journal. Freeze it first
(fsfreeze, or the guest agent) when that is not enough.`,
  },
  {
    name: "nbd",
    summary: "how clients reach a disk",
    text: () => `Every volume is an NBD export under its name. The empty name is the only volume when there is exactly one. Further names:

  $ ullage export add web1 --nbd boot --read-only

They follow a rename of the volume; its own name does not, so that a client that reconnects by itself needs one of them, or the
volume's id.

  nbd://127.0.0.1:10809/web1
  nbd+unix:///web1?socket=/var/lib/ullage/nbd.sock

  $ nbdinfo nbd://127.0.0.1/web1
  $ nbdcopy --flush image.raw nbd://127.0.0.1/web1      (a new volume: ullage volume import)
  $ qemu-system-x86_64 -drive file=nbd://127.0.0.1/web1,format=raw,if=virtio,discard=unmap
  $ ullage attach web1 --mount /mnt/web1

For a disk that outlives restarts of Ullage, QEMU needs reconnect-delay (seconds):

  -blockdev driver=nbd,node-name=web1,server.type=unix,server.path=/var/lib/ullage/nbd.sock,export=web1,reconnect-delay=60

Other machines: --nbd 0.0.0.0:10809 --tls require, with --tls-certs DIR or --tls-psk FILE.

Flags, limits, TLS, more clients: docs/NBD.md.`,
  },
  {
    name: "config",
    summary: "the keys of the configuration file",
    text: () => `ullage serve --config FILE reads TOML; flags override it. ullage run and ullage blobd take from the same file what concerns
sources, the cache and the log. ullage config check FILE says what is wrong with one.

${describeKeys()}

An example, and more on sockets and sources: docs/CONFIG.md.`,
  },
  {
    name: "operations",
    summary: "upgrade, backup, monitoring, repair",
    text: () => `restart     SIGTERM answers what has arrived, flushes and closes. Clients that reconnect (QEMU with reconnect-delay,
            nbd-client -persist, ullage attach) see a pause and no error.
upgrade     install the new version, restart. Older data is opened; newer data is refused, naming both versions.
backup      of one disk, in use or not, as it is now:  ullage volume export web1 web1.qcow2 --format qcow2
            back, as another one:  ullage volume create web2 --from web1.qcow2
            the same when the file is not on the daemon's machine:  ullage volume import web2 web1.raw    (raw only)
            of the data directory: stop Ullage and copy it (cp -a --sparse=always, rsync -aS), or take an atomic snapshot
            of its file system. A file-by-file copy while it is served is worth nothing.
monitoring  GET /v1/health: status and warnings; ullage volume ls: states
full disk   writes that need space get ENOSPC, everything else works; free some space, nothing else is to be done
            (remove volumes or snapshots; ullage reclaim frees blocks that nothing needs any more)
repair      ullage check DATA, with no daemon on it, verifies everything; ullage repair DATA says first what it would lose

Step by step: docs/OPERATIONS.md.`,
  },
  {
    name: "scripts",
    summary: "exit codes, --json, how a daemon is found",
    text: () => `exit 0   done
exit 1   failed: a message on stderr, and below it what to do next
exit 2   used wrongly: an unknown command, option or value

--json prints the object of the REST API on stdout; nothing else goes there. Sizes are bytes, times RFC 3339.

  $ ullage volume ls --json | jq -r '.volumes[] | select(.state != "ok") | .name'

The daemon is the one that --api names, else $ULLAGE_API, else ./ullage-data/api.sock, else /var/lib/ullage/api.sock. On TCP
it takes a token, from --token-file or $ULLAGE_TOKEN: ullage token create makes one.

Sizes are typed as 512, 64k, 10M, 1.5G, 2T (powers of 1024); names have letters, digits, '.', '_' and '-', 128 at most.`,
  },
];

function describeKeys(): string {
  return configKeys
    .map(({ key, kind, flag, fallback, meaning }) => {
      const overrides = flag === undefined ? "" : `, ${flag}`;
      return `  ${key}\n      ${meaning}\n      ${kind.name}${overrides}; default: ${fallback}`;
    })
    .join("\n");
}
