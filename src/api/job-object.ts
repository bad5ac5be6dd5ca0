import type { JobView } from "../daemon/jobs.ts";
import { problemOf, type Problem } from "./problems.ts";

/** A job as the API tells it: its failure is a problem document. */
export type JobObject = Omit<JobView, "error"> & { error: Problem | null };

export function jobObject(job: JobView): JobObject {
  return { ...job, error: job.error === null ? null : problemOf(job.error) };
}
