import type { Jobs, JobView } from "../jobs.ts";
import type { CreateVolumeRequest, VolumeView } from "../views.ts";
import type { RequestKey } from "../request-key.ts";
import type { CreateOptions } from "./volumes.ts";

/** A volume that can be used, or the job that is still fetching its image. */
export type MadeVolume = { kind: "volume"; volume: VolumeView } | { kind: "job"; job: JobView };

type Create = (
  request: CreateVolumeRequest,
  requestKey: RequestKey | undefined,
  options: CreateOptions,
) => Promise<VolumeView>;

/**
 * Makes volumes, and lets a download go on as a job: what is wrong with the request is known before it begins, and
 * refused at once. A request that is repeated with its key while it runs gets the same job.
 */
export class VolumeJobs {
  readonly #jobs: Jobs;
  readonly #create: Create;
  readonly #underWay = new Map<string, { digest: string; made: Promise<MadeVolume> }>();

  constructor(jobs: Jobs, create: Create) {
    this.#jobs = jobs;
    this.#create = create;
  }

  /** Resolves when the volume can be used, or when its image begins to be downloaded. */
  async create(
    request: CreateVolumeRequest,
    requestKey: RequestKey | undefined,
    options: CreateOptions,
  ): Promise<MadeVolume> {
    const key = requestKey?.key;
    const before = key === undefined ? undefined : this.#underWay.get(key);
    if (before !== undefined && before.digest === requestKey?.digest) {
      const made = await before.made;
      return made.kind === "job" ? { kind: "job", job: this.#jobs.get(made.job.id) } : made;
    }
    const { made, ended } = this.#begin(request, requestKey, options);
    if (key === undefined || before !== undefined) return made;
    this.#underWay.set(key, { digest: requestKey!.digest, made });
    void ended.then(() => this.#underWay.delete(key));
    return made;
  }

  #begin(
    request: CreateVolumeRequest,
    requestKey: RequestKey | undefined,
    options: CreateOptions,
  ): { made: Promise<MadeVolume>; ended: Promise<void> } {
    const controller = new AbortController();
    const begun = Promise.withResolvers<JobView>();
    let note: ((done: number) => void) | undefined;
    const onDownload = (done: number, total: number): void => {
      if (note !== undefined) {
        note(done);
        return;
      }
      const about = { kind: "volume-create", target: request.name, progress: { done, total, unit: "bytes" } } as const;
      const { view, progress } = this.#jobs.start(about, controller, making);
      note = progress;
      begun.resolve(view);
    };
    const making = this.#create(request, requestKey, { ...options, signal: controller.signal, onDownload });
    const made = Promise.race<MadeVolume>([
      making.then((volume) => ({ kind: "volume", volume })),
      begun.promise.then((job) => ({ kind: "job", job })),
    ]);
    const ended = making.then(
      () => undefined,
      () => undefined, // whoever waits for it, or looks at the job, meets the failure
    );
    return { made, ended };
  }
}
