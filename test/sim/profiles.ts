import type { Profile } from "./crash-driver.ts";
import type { Random } from "./random.ts";

/** What the seeds of the crash model are about: seed n belongs to profile n modulo their number. */
export const profiles: readonly Profile[] = [
  { name: "kill -9 loses nothing that was answered", ends: ["kill", "container"], crashInOpen: 0.2 },
  {
    name: "after a power cut each sector is of the last flush or later",
    ends: ["power"],
    crashInOpen: 0.2,
    disk: (random) => (random.chance(0.1) ? { punches: false } : {}),
  },
  { name: "a page cache lost without a reboot is noticed", ends: ["remount"], crashInOpen: 0.2 },
  {
    name: "what trims and killed processes left in the head is never shown",
    ends: ["kill", "remount", "remount"],
    crashInOpen: 0,
    stories: true,
  },
  {
    name: "crashes of every kind follow each other, within recovery too",
    ends: ["kill", "container", "power", "remount", "close"],
    crashInOpen: 0.6,
  },
  {
    name: "a failed sync never becomes a success",
    ends: ["kill", "container", "power", "remount", "close"],
    crashInOpen: 0.3,
    faults: (random) => ({ syncErrors: random.pick([0.02, 0.1, 0.3]) }),
  },
  {
    name: "a log that failed its first sync, and could not be removed either, is never built on",
    ends: ["kill", "container", "power", "power", "remount", "close"],
    crashInOpen: 0.6,
    // of logs and their directory alone: where no mark of a failed sync can be written either, nobody can know of it
    faults: (random) => ({
      syncErrors: random.pick([0.1, 0.4]),
      metadataErrors: random.pick([0.1, 0.4]),
      faulty: (path) => /\/intent\.\d+$|\/volumes\/[0-9a-f]{32}$/.test(path),
    }),
  },
  {
    name: "failed writes and a full disk cost no answered write",
    ends: ["kill", "power", "close"],
    crashInOpen: 0.2,
    faults: (random: Random) => ({
      writeErrors: random.pick([0, 0.05]),
      metadataErrors: random.pick([0, 0.05]),
      capacityPages: random.pick([1 << 29, 40, 100]),
    }),
  },
  {
    name: "a full disk still takes trims and flushes",
    ends: ["kill", "power", "close"],
    crashInOpen: 0.1,
    faults: (random) => ({ capacityPages: random.pick([0, 30, 60]) }),
    alwaysTakes: ["trim", "flush"],
  },
  {
    name: "where nothing proves that the page cache survived, the last flush counts",
    ends: ["kill", "power"],
    crashInOpen: 0.2,
    disk: (random) => random.pick([{ bootIdHidden: true }, { fileSystem: "zfs" }, { mountIdHidden: true }]),
  },
  {
    name: "remote writers who lived through a power cut are told",
    ends: ["power", "close"],
    crashInOpen: 0.2,
    remote: true,
  },
  { name: "kill -9 costs no snapshot", ends: ["kill", "container"], crashInOpen: 0.3, structure: true },
  {
    name: "a snapshot that was answered is there after a power cut, as it was",
    ends: ["power"],
    crashInOpen: 0.3,
    structure: true,
  },
  {
    name: "snapshots, clones and growing under crashes of every kind",
    ends: ["kill", "kill", "container", "power", "power", "remount", "close"],
    crashInOpen: 0.5,
    structure: true,
  },
  {
    name: "a start that dies leaves a snapshot whole or not there",
    ends: ["kill", "power"],
    crashInOpen: 0.9,
    structure: true,
  },
  {
    name: "a failed sync costs no snapshot",
    ends: ["kill", "container", "power", "remount", "close"],
    crashInOpen: 0.3,
    structure: true,
    faults: (random) => ({ syncErrors: random.pick([0.02, 0.1]) }),
  },
  {
    name: "failed writes and a full disk cost no snapshot",
    ends: ["kill", "power", "close"],
    crashInOpen: 0.2,
    structure: true,
    faults: (random: Random) => ({
      writeErrors: random.pick([0, 0.03]),
      metadataErrors: random.pick([0, 0.03]),
      capacityPages: random.pick([1 << 29, 100, 200]),
    }),
  },
  {
    name: "reclaim frees nothing that anybody can come to see",
    ends: ["kill", "container", "power", "power", "power", "remount", "close"],
    crashInOpen: 0.3,
    structure: true,
    reclaim: true,
  },
  {
    name: "reclaim beside failing syncs and writes frees nothing that anybody can come to see",
    ends: ["kill", "power", "power", "remount", "close"],
    crashInOpen: 0.2,
    structure: true,
    reclaim: true,
    faults: (random: Random) =>
      random.chance(0.5)
        ? { syncErrors: random.pick([0.05, 0.2]) }
        : { writeErrors: random.pick([0, 0.03]), metadataErrors: random.pick([0.02, 0.05]) },
  },
];
