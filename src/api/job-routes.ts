import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import { jobObject } from "./job-object.ts";
import { jobSchemas } from "./job-schemas.ts";
import { problemResponses, ref } from "./schemas.ts";

const byId = {
  type: "object",
  properties: { id: { type: "string", description: "the job's id" } },
  required: ["id"],
} as const;

type Identified = { Params: { id: string } };

/** /v1/jobs: work that is answered with 202 and goes on by itself */
export function addJobRoutes(app: FastifyInstance, ullage: Ullage): void {
  const { jobs } = ullage;
  for (const schema of jobSchemas) app.addSchema(schema);

  app.route({
    method: "GET",
    url: "/v1/jobs",
    schema: {
      operationId: "listJobs",
      summary: "Jobs, in the order of their beginning; ended ones are remembered for a day, the last 100 at most",
      response: { 200: ref("JobList"), ...problemResponses },
    },
    handler: () => ({ jobs: jobs.list().map(jobObject), next: null }),
  });

  app.route({
    method: "POST",
    url: "/v1/reclaim",
    schema: {
      operationId: "reclaim",
      summary: "Free the blocks of snapshots, clones and volumes that are gone; one run at a time",
      response: {
        202: { ...ref("Job"), description: "it is under way, this one or one that somebody began before" },
        ...problemResponses,
      },
    },
    handler: (_request, reply) => {
      const job = ullage.startReclaim();
      return reply.code(202).header("location", `/v1/jobs/${job.id}`).send(jobObject(job));
    },
  });

  app.route<Identified>({
    method: "GET",
    url: "/v1/jobs/:id",
    schema: {
      operationId: "getJob",
      summary: "One job",
      params: byId,
      response: { 200: ref("Job"), ...problemResponses },
    },
    handler: (request) => jobObject(jobs.get(request.params.id)),
  });

  app.route<Identified>({
    method: "DELETE",
    url: "/v1/jobs/:id",
    schema: {
      operationId: "cancelJob",
      summary: "Cancel a job; what it made is gone when the answer comes. One that has ended stays as it is",
      params: byId,
      response: {
        200: { ...ref("Job"), description: "as it ended: `cancelled`, or `done` when it was quicker" },
        ...problemResponses,
      },
    },
    handler: async (request) => jobObject(await jobs.cancel(request.params.id)),
  });
}
