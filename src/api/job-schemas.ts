import { ref } from "./schemas.ts";

const text = { type: "string" } as const;
const count = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;
const time = { type: "string", format: "date-time" } as const;
const orNull = (schema: object): object => ({ anyOf: [schema, { type: "null" }] });

/** Objects of /v1/jobs; see schemas.ts. */
export const jobSchemas = [
  {
    $id: "JobProgress",
    type: "object",
    description: "how far a job has come",
    additionalProperties: false,
    required: ["done", "total", "unit"],
    properties: {
      done: count,
      total: { ...count, type: ["integer", "null"], description: "null: nobody knows" },
      unit: { enum: ["bytes", "layers"] },
    },
  },
  {
    $id: "Job",
    type: "object",
    description: "work that goes on by itself",
    additionalProperties: false,
    required: ["id", "kind", "target", "state", "progress", "result", "error", "createdAt", "endedAt"],
    properties: {
      id: text,
      kind: { enum: ["volume-create", "reclaim", "image-pull"], description: "what it does" },
      target: {
        ...orNull(text),
        description: "name of the volume, or the source, that it is about; null: the whole data directory",
      },
      state: {
        enum: ["running", "done", "failed", "cancelled"],
        description: "of one that failed or was cancelled nothing is left; what reclaim has freed by then stays free",
      },
      progress: ref("JobProgress"),
      result: {
        anyOf: [ref("Volume"), ref("Reclaimed"), ref("Image"), { type: "null" }],
        description: "what it made, once it is done",
      },
      error: { ...orNull(ref("Problem")), description: "why it failed" },
      createdAt: time,
      endedAt: orNull(time),
    },
  },
  {
    $id: "Reclaimed",
    type: "object",
    description: "what reclaim did",
    additionalProperties: false,
    required: ["reclaimedBytes", "layers", "leftAlone", "reasons"],
    properties: {
      reclaimedBytes: { ...count, description: "freed on disk" },
      layers: { ...count, description: "layers of which it is known now what they need" },
      leftAlone: { ...count, description: "layers that were left alone" },
      reasons: { type: "array", items: text, description: "why, the first ten" },
    },
  },
  {
    $id: "JobList",
    type: "object",
    description: "jobs, in the order of their beginning",
    additionalProperties: false,
    required: ["jobs", "next"],
    properties: { jobs: { type: "array", items: ref("Job") }, next: { type: ["string", "null"] } },
  },
];
