import { namePattern } from "../catalog/names.ts";

/*
 * JSON schemas of everything that goes over the API. The same ones check requests, write responses and make up
 * /openapi.json, so that the three can't drift apart. Unknown keys are refused.
 */

const bytes = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER, description: "bytes" } as const;
const text = { type: "string" } as const;
const nullableText = { type: ["string", "null"] } as const;
const count = { type: "integer", minimum: 0 } as const;

function object(
  id: string,
  description: string,
  properties: Record<string, object>,
  optional: readonly string[] = [],
): { $id: string; properties: Record<string, object> } & Record<string, unknown> {
  return {
    $id: id,
    type: "object",
    description,
    additionalProperties: false,
    required: Object.keys(properties).filter((key) => !optional.includes(key)),
    properties,
  };
}

export const ref = (id: string): object => ({ $ref: `${id}#` });
const list = (of: object): object => ({ type: "array", items: of });

const settings = {
  hydrate: { enum: ["auto", "off"], description: "auto: the image is fetched in the background; off: what is read" },
  sync: { enum: ["normal", "always"], description: "always: every write is durable before it is answered" },
  remoteAfterPowerLoss: {
    enum: ["refuse", "serve"],
    description: "whether writers from other machines are let in again after a power cut without `reopen`",
  },
  cache: {
    enum: ["shared", "none"],
    description: "none: what is read of the image is not kept on disk; stays as the volume was made",
  },
};

export const schemas = [
  object("Settings", "what can be set on a volume", settings),
  object("SettingsChange", "settings; what is left out stays", settings, Object.keys(settings)),

  object("DamagedRange", "bytes of an image that can't be had though its source answers", {
    offset: { ...bytes, description: "of the disk that the image holds" },
    length: bytes,
    reason: text,
  }),
  object("Hydration", "filling the local cache from the source in the background", {
    state: { enum: ["none", "running", "paused", "waiting", "detached"] },
    reason: { ...nullableText, description: "why it waits or pauses by itself" },
    readyBytes: bytes,
    totalBytes: bytes,
    damagedBytes: {
      ...bytes,
      description:
        "of these, what can't be had though the source answers, as far as it was asked for since the volume was opened",
    },
    damaged: { ...list(ref("DamagedRange")), description: "where that is, the first places" },
    rateBytesPerSecond: { type: "number", minimum: 0 },
    etaSeconds: { type: ["number", "null"] },
    limitBytesPerSecond: { type: ["number", "null"], description: "null: as fast as it goes" },
    priority: { type: "integer", description: "more is sooner" },
  }),
  object(
    "HydrationChange",
    "how hydration is to go on; what is left out stays",
    {
      state: { enum: ["running", "paused"] },
      limitBytesPerSecond: { type: ["integer", "null"], minimum: 1, maximum: Number.MAX_SAFE_INTEGER },
      priority: { type: "integer", minimum: -100, maximum: 100 },
    },
    ["state", "limitBytesPerSecond", "priority"],
  ),

  object("Origin", "what a clone began as; a volume that is there no more has the name that it had then", {
    volume: text,
    snapshot: { ...nullableText, description: "null: the volume as it was at that moment" },
    removed: { type: "boolean", description: "the snapshot, or the volume, is there no more" },
  }),
  object("Volume", "a writable disk", {
    id: text,
    name: text,
    size: bytes,
    state: { enum: ["creating", "ok", "degraded", "poisoned", "lostUnflushed", "failed"] },
    reason: { ...nullableText, description: "why the state is not ok" },
    source: { ...nullableText, description: "without the query of an address, which may be secret; null: made empty" },
    pinned: {
      type: ["boolean", "null"],
      description: "a change of the source can't go unnoticed; null: made empty",
    },
    blob: {
      ...nullableText,
      description:
        "id of the blob that it was made from, which tells what is here of it, and if that was verified; null: made empty, or not known yet",
    },
    format: nullableText,
    origin: {
      oneOf: [ref("Origin"), { type: "null" }],
      description: "what a clone began as; null: it is none, or was made by a version that did not note it",
    },
    fetchedBytes: { ...bytes, description: "bytes of the source in the local cache" },
    writtenBytes: {
      ...bytes,
      description:
        "bytes in blocks of 4096 that were written here, or in what it was cloned from, and not trimmed since; 0 while it is not open",
    },
    hydration: ref("Hydration"),
    settings: ref("Settings"),
    connections: count,
    createdAt: { ...text, format: "date-time" },
  }),
  object("VolumeList", "a page of volumes, ordered by name", { volumes: list(ref("Volume")), next: nullableText }),
  object(
    "VolumeSource",
    "the image to start from",
    {
      source: {
        type: "string",
        pattern: "^(/|[A-Za-z][A-Za-z0-9+.-]*://)",
        maxLength: 4096,
        description: "URL or absolute path",
      },
      format: { type: "string", description: "auto (the default): by its first bytes" },
      download: {
        type: "boolean",
        description: "fetch all of it first, unless it is here already: the answer is a job then",
      },
      unpinned: { type: "boolean", description: "accept a source whose changes can't be noticed" },
      allowBacking: {
        type: "boolean",
        description: "read the backing files that the image names as well; without it such an image is refused",
      },
    },
    ["format", "download", "unpinned", "allowBacking"],
  ),
  object("VolumeFromSnapshot", "the snapshot to start from", {
    snapshot: { type: "string", maxLength: 257, description: "VOLUME@SNAPSHOT" },
  }),
  object("VolumeFromVolume", "the volume to start from, as it is now", { volume: text }),
  object(
    "VolumeCreate",
    "a volume to make: from a source, or empty with a size",
    {
      name: { type: "string", pattern: namePattern },
      size: bytes,
      from: {
        oneOf: [ref("VolumeSource"), ref("VolumeFromSnapshot"), ref("VolumeFromVolume")],
        description: "an image, a snapshot, or another volume as it is now",
      },
      settings: ref("SettingsChange"),
    },
    ["size", "from", "settings"],
  ),
  object(
    "VolumeChange",
    "what to change on a volume; what is left out stays",
    {
      name: { type: "string", pattern: namePattern },
      size: { ...bytes, description: "bytes; new connections see it. Less than now needs `force`" },
      force: { type: "boolean", description: "close read-write connections when shrinking needs it" },
      settings: ref("SettingsChange"),
    },
    ["name", "size", "force", "settings"],
  ),
  object(
    "Reopen",
    "let writers in again after a failed sync or a power cut",
    { acceptLoss: { type: "boolean", description: "go on from the last flush" } },
    ["acceptLoss"],
  ),

  object("MapRun", "a run of bytes with the same owner", {
    offset: bytes,
    length: bytes,
    kind: { enum: ["local", "remote", "written", "zero"] },
    owner: { ...nullableText, description: "id of the layer or blob; null for zeros" },
  }),
  object("VolumeMap", "a page of a volume's map; `next` is the offset to go on from", {
    runs: list(ref("MapRun")),
    next: { type: ["integer", "null"] },
  }),
  object("Connection", "a client of a volume", {
    protocol: text,
    address: text,
    remote: { type: "boolean" },
    writable: { type: "boolean" },
  }),
  object("ConnectionList", "the clients of a volume", { connections: list(ref("Connection")), next: nullableText }),

  object("Warning", "something that an operator should know", { code: text, message: text }),
  object("Listener", "an address that is listened on", {
    protocol: { enum: ["api", "nbd", "blobs"] },
    address: text,
    uri: { ...nullableText, description: "NBD: of the default export" },
  }),
  object("EventLoopDelay", "how late timers ran since the start of the process", {
    p50Ms: { type: "number" },
    p99Ms: { type: "number" },
    maxMs: { type: "number" },
  }),
  object("VolumeCounts", "how many volumes there are", { known: count, open: count }),
  object("Stats", "figures of the process", {
    uptimeSeconds: { type: "number" },
    cpuSeconds: { type: "number" },
    residentBytes: bytes,
    heapUsedBytes: bytes,
    eventLoopDelay: ref("EventLoopDelay"),
    volumes: ref("VolumeCounts"),
    connections: count,
  }),

  object(
    "Problem",
    "what went wrong (RFC 9457)",
    { type: text, title: text, status: count, detail: text, code: text, hint: text },
    ["hint"],
  ),
];

export const problemResponse = {
  description: "an error",
  content: { "application/problem+json": { schema: ref("Problem") } },
};

/** For every route: what errors look like. Not `default`, which code generators take for something that may succeed. */
export const problemResponses = { "4XX": problemResponse, "5XX": problemResponse };
