import type { JobObject } from "../api/job-object.ts";
import { systemClock } from "../base/clock.ts";
import { UllageError } from "../base/errors.ts";
import type { ApiClient, Call } from "./api-client.ts";
import { ProgressLine, ProgressMeter } from "./progress.ts";
import { stopSignal } from "./signals.ts";

const pollMs = 500;

/**
 * Asks for something that may be answered with a job, and shows that until it has ended. Ctrl-C cancels it, and is only
 * obeyed when it has ended.
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
  if (job.state === "cancelled") {
    const stays = job.target === null || job.kind === "image-pull";
    const left = stays ? "what was done stays done" : `nothing is left of '${job.target}'`;
    throw new UllageError("cancelled", `cancelled: ${left}`);
  }
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
      if (!quiet) line.show(describe(job, meter));
      await pause(stop);
      job = await daemon.call<JobObject>(path, { method: stop.aborted ? "DELETE" : "GET" });
    }
  } finally {
    line.end();
  }
  return job;
}

/** `[#####     ] 42%  420M of 1G  50M/s  12s left` */
function describe({ progress: { done, total, unit } }: JobObject, meter: ProgressMeter): string {
  if (unit === "layers") return total === null ? "looking" : `${done} of ${total} layers`;
  return meter.text(done, total);
}

/** A while, or until it is to stop. */
function pause(stop: AbortSignal): Promise<void> {
  return systemClock.sleep(pollMs, stop).catch(() => undefined);
}
