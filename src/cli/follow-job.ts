import { randomUUID } from "node:crypto";
import type { JobObject } from "../api/job-object.ts";
import { systemClock } from "../base/clock.ts";
import { UllageError } from "../base/errors.ts";
import { counted } from "../base/units.ts";
import type { ApiClient, Call } from "./api-client.ts";
import { ProgressLine, ProgressMeter } from "./progress.ts";
import { stopSignal } from "./signals.ts";

const pollMs = 500;

/** So many daemons may come and go while one thing is done. */
const maxLost = 5;

/**
 * Asks for something that may be answered with a job, and shows that until it has ended. Ctrl-C cancels it, and is only
 * obeyed when it has ended. A job ends with its daemon: the next one is asked for the same again, and what is here already is
 * not fetched twice.
 * @returns what was asked for, or the job's result
 * @throws UllageError with what the daemon answered or what the job failed with; `cancelled`, `job-lost`
 */
export async function callAndFollow<T extends object>(
  daemon: ApiClient,
  path: string,
  call: Call,
  quiet: boolean,
): Promise<T> {
  const stop = stopSignal();
  const key = randomUUID();
  for (let lost = 0; ; lost++) {
    const answer = await daemon.call<T | JobObject>(path, { ...call, once: key, follows: lost > 0 });
    if (!isJob(answer)) return answer;
    const job = await follow(daemon, answer, stop, quiet);
    if (job?.state === "done") return job.result as unknown as T;
    if (job?.state === "cancelled" || (job === undefined && stop.aborted)) {
      const stays = answer.target === null || answer.kind === "image-pull";
      const left = stays ? "what was done stays done" : `nothing is left of '${answer.target}'`;
      throw new UllageError("cancelled", `cancelled: ${left}`);
    }
    if (job !== undefined) {
      const { code, detail, hint } = job.error!;
      throw new UllageError(code, detail, hint === undefined ? {} : { hint });
    }
    if (lost === maxLost) {
      throw new UllageError("job-lost", `the daemon ended ${lost + 1} times while it did this`, {
        hint: "look at the daemon's log",
      });
    }
  }
}

function isJob(answer: object): answer is JobObject {
  return "kind" in answer && "progress" in answer;
}

/** @returns as it ended; undefined: it is gone, with the daemon that did it */
async function follow(
  daemon: ApiClient,
  begun: JobObject,
  stop: AbortSignal,
  quiet: boolean,
): Promise<JobObject | undefined> {
  const path = `/v1/jobs/${begun.id}`;
  const line = new ProgressLine();
  const meter = new ProgressMeter();
  let job = begun;
  try {
    while (job.state === "running") {
      if (!quiet) line.show(describe(job, meter));
      await pause(stop);
      job = await daemon.call<JobObject>(path, { method: stop.aborted ? "DELETE" : "GET", follows: true });
    }
  } catch (error) {
    if (error instanceof UllageError && error.code === "not-found") return undefined;
    throw error;
  } finally {
    line.end();
  }
  return job.error?.code === "stopping" ? undefined : job;
}

/** `[#####     ] 42%  420M of 1G  50M/s  12s left` */
function describe({ progress: { done, total, unit } }: JobObject, meter: ProgressMeter): string {
  if (unit === "layers") return total === null ? "looking" : `${done} of ${counted(total, "layer")}`;
  return meter.text(done, total);
}

/** A while, or until it is to stop. */
function pause(stop: AbortSignal): Promise<void> {
  return systemClock.sleep(pollMs, stop).catch(() => undefined);
}
