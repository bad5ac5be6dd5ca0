import type { JobObject } from "../api/job-object.ts";
import { systemClock } from "../base/clock.ts";
import { UllageError } from "../base/errors.ts";
import type { ApiClient, Call } from "./api-client.ts";
import { ProgressLine, ProgressMeter } from "./progress.ts";
import { stopSignal } from "./signals.ts";

const pollMs = 500;

/**
 * Asks for something that may be answered with a job, and shows that until it has ended. Ctrl-C cancels it, and is only
 * obeyed when nothing of it is left.
 * @returns what was asked for, or the job's result
 * @throws UllageError with what the daemon answered or what the job failed with; `cancelled`
 */
export async function callAndFollow<T extends object>(
  daemon: ApiClient,
  path: string,
  call: Call,
  quiet: boolean,
): Promise<T> {
  const stop = stopSignal();
  const answer = await daemon.call<T | JobObject>(path, call);
  if (!isJob(answer)) return answer;
  const job = await follow(daemon, answer, stop, quiet);
  if (job.state === "done") return job.result as unknown as T;
  if (job.state === "cancelled") throw new UllageError("cancelled", `cancelled: nothing is left of '${job.target}'`);
  const { code, detail, hint } = job.error!;
  throw new UllageError(code, detail, hint === undefined ? {} : { hint });
}

function isJob(answer: object): answer is JobObject {
  return "kind" in answer && "progress" in answer;
}

async function follow(daemon: ApiClient, begun: JobObject, stop: AbortSignal, quiet: boolean): Promise<JobObject> {
  const path = `/v1/jobs/${begun.id}`;
  const line = new ProgressLine();
  const meter = new ProgressMeter();
  let job = begun;
  try {
    while (job.state === "running") {
      if (!quiet) line.show(meter.text(job.progress.done, job.progress.total));
      await pause(stop);
      job = await daemon.call<JobObject>(path, { method: stop.aborted ? "DELETE" : "GET" });
    }
  } finally {
    line.end();
  }
  return job;
}

/** A while, or until it is to stop. */
function pause(stop: AbortSignal): Promise<void> {
  return systemClock.sleep(pollMs, stop).catch(() => undefined);
}
