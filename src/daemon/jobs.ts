import { randomBytes } from "node:crypto";
import type { Clock } from "../base/clock.ts";
import { UllageError, describeError } from "../base/errors.ts";
import type { ImageView, ReclaimView, VolumeView } from "./views.ts";

/** Work that takes longer than a request should: it goes on by itself, can be looked at and cancelled. */
export interface JobView {
  /** 32 hex digits */
  id: string;
  /** what it does; `result` is what that kind makes */
  kind: "volume-create" | "reclaim" | "image-pull";
  /** what it is about: the name of the volume, or a source; null: the whole data directory */
  target: string | null;
  state: JobState;
  progress: JobProgress;
  /** once it is done */
  result: VolumeView | ReclaimView | ImageView | null;
  /** once it has failed */
  error: Error | null;
  /** RFC 3339 */
  createdAt: string;
  endedAt: string | null;
}

/**
 *     running -> done        `result` is there
 *             -> failed      `error` says why; nothing is left of it (what reclaim has freed stays free)
 *             -> cancelled   somebody asked for it; likewise
 */
export type JobState = "running" | "done" | "failed" | "cancelled";

/** How far a job is. */
export interface JobProgress {
  done: number;
  /** null: nobody knows */
  total: number | null;
  unit: "bytes" | "layers";
}

/** Jobs at a time; the next one is refused. */
const maxRunning = 16;
/** Ended jobs that are remembered, and for how long. */
const keptJobs = 100;
const keptMs = 24 * 3600_000;
/** Between two times that `onChange` hears of one job's progress. */
const progressIntervalMs = 500;

interface Job {
  view: JobView;
  cancelled: boolean;
  controller: AbortController;
  ended: Promise<void>;
  endedAtMs: number;
  toldAtMs: number;
}

/** The jobs of a process. They end with it: what a killed one leaves behind is cleared away like any other remains. */
export class Jobs {
  readonly #clock: Clock;
  readonly #onChange: (job: JobView) => void;
  /** In the order of their beginning. */
  readonly #jobs = new Map<string, Job>();

  /** @param onChange hears of every change of state, and of progress now and then */
  constructor(clock: Clock, onChange: (job: JobView) => void) {
    this.#clock = clock;
    this.#onChange = onChange;
  }

  /** In the order of their beginning. */
  list(): JobView[] {
    this.#forgetOld();
    return [...this.#jobs.values()].map(({ view }) => view);
  }

  /** @throws UllageError `not-found` */
  get(id: string): JobView {
    return this.#find(id).view;
  }

  /**
   * Takes work that has begun, and says how it goes on.
   * @param controller makes the work end; it must then undo what it did, and reject
   * @throws UllageError `too-many-jobs`
   */
  start(
    about: Pick<JobView, "kind" | "target" | "progress">,
    controller: AbortController,
    work: Promise<NonNullable<JobView["result"]>>,
  ): { view: JobView; progress: (done: number, total?: number) => void } {
    const running = this.list().filter(({ state }) => state === "running").length;
    if (running >= maxRunning) {
      throw new UllageError("too-many-jobs", `${running} jobs are running, which is the most there may be`, {
        hint: "wait for one to end, or cancel one: GET /v1/jobs lists them",
      });
    }
    const view: JobView = {
      id: randomBytes(16).toString("hex"),
      kind: about.kind,
      target: about.target,
      state: "running",
      progress: about.progress,
      result: null,
      error: null,
      createdAt: this.#clock.wallTime(),
      endedAt: null,
    };
    const job: Job = { view, cancelled: false, controller, ended: Promise.resolve(), endedAtMs: 0, toldAtMs: 0 };
    job.ended = work.then(
      (result) => {
        const { progress } = job.view; // what somebody else fetched at the same time was not counted
        this.#end(job, { state: "done", result, progress: { ...progress, done: progress.total ?? progress.done } });
      },
      (error: unknown) =>
        this.#end(
          job,
          job.cancelled
            ? { state: "cancelled" }
            : { state: "failed", error: error instanceof Error ? error : new Error(describeError(error)) },
        ),
    );
    this.#jobs.set(view.id, job);
    this.#tell(job);
    return {
      view,
      progress: (done, total) => this.#progress(job, done, total),
    };
  }

  #progress(job: Job, done: number, total = job.view.progress.total): void {
    job.view = { ...job.view, progress: { ...job.view.progress, done, total } };
    if (this.#clock.now() - job.toldAtMs >= progressIntervalMs) this.#tell(job);
  }

  #end(job: Job, outcome: Partial<JobView>): void {
    job.view = { ...job.view, ...outcome, endedAt: this.#clock.wallTime() };
    job.endedAtMs = this.#clock.now();
    this.#tell(job);
    this.#forgetOld();
  }

  #tell(job: Job): void {
    job.toldAtMs = this.#clock.now();
    this.#onChange(job.view);
  }

  /**
   * Ends a job and waits until everything that it made is gone; one that has ended stays as it is.
   * @returns the job as it ended, which may be `done` when it was quicker
   * @throws UllageError `not-found`
   */
  async cancel(id: string): Promise<JobView> {
    const job = this.#find(id);
    if (job.view.state === "running" && !job.cancelled) {
      job.cancelled = true;
      const { kind, target } = job.view;
      const what = target === null ? kind : `the ${kind} of '${target}'`;
      job.controller.abort(new UllageError("cancelled", `${what} was cancelled`));
    }
    await job.ended;
    return job.view;
  }

  #find(id: string): Job {
    this.#forgetOld();
    const job = this.#jobs.get(id);
    if (job !== undefined) return job;
    throw new UllageError("not-found", `there is no job ${id}`, {
      hint: "jobs are forgotten a day after their end, and when Ullage stops; GET /v1/jobs lists them",
    });
  }

  #forgetOld(): void {
    const ended = [...this.#jobs.values()].filter(({ view }) => view.state !== "running");
    const tooMany = ended.length - keptJobs;
    const tooOld = this.#clock.now() - keptMs;
    ended.sort((a, b) => a.endedAtMs - b.endedAtMs);
    ended.forEach(({ view, endedAtMs }, index) => {
      if (index < tooMany || endedAtMs < tooOld) this.#jobs.delete(view.id);
    });
  }
}
