import { describeError } from "../../base/errors.ts";
import { TraceRecorder } from "../../blob/boot-trace.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import type { Volume } from "../../volume/volume.ts";
import type { BootTraces } from "../cache/boot-traces.ts";
import type { SharedBlob } from "../sources/volume-sources.ts";

/** Of a recording that nobody asked for: fewer reads than these tell nothing. */
const leastReads = 16;
/** How long a new volume's reads are noted, when its image has no trace yet. */
const automaticMs = 120_000;

/** What a volume reads of its image from now on, for so long or until it is closed; then it is the image's trace. */
export class TraceRecording {
  readonly #env: VolumeEnvironment;
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;
  /** RFC 3339 */
  readonly until: string;

  private constructor(
    env: VolumeEnvironment,
    traces: BootTraces,
    device: Volume,
    blob: SharedBlob,
    options: { ms: number; least: number },
  ) {
    this.#env = env;
    this.until = new Date(Date.parse(env.clock.wallTime()) + options.ms).toISOString();
    this.#ended = this.#run(traces, device, blob, options).catch((error: unknown) => {
      env.log("warn", `what volume ${device.id} read first was not kept: ${describeError(error)}`);
    });
  }

  static start(
    env: VolumeEnvironment,
    traces: BootTraces,
    device: Volume,
    blob: SharedBlob,
    ms: number,
  ): TraceRecording {
    return new TraceRecording(env, traces, device, blob, { ms, least: 1 });
  }

  /** For a volume that was just made: only when nothing is known of its image. */
  static async startAutomatic(
    env: VolumeEnvironment,
    traces: BootTraces,
    device: Volume,
    blob: SharedBlob,
  ): Promise<TraceRecording | undefined> {
    if ((await traces.of(blob.meta)) !== undefined) return undefined;
    return new TraceRecording(env, traces, device, blob, { ms: automaticMs, least: leastReads });
  }

  async #run(
    traces: BootTraces,
    device: Volume,
    { meta, size }: SharedBlob,
    { ms, least }: { ms: number; least: number },
  ): Promise<void> {
    const { clock } = this.#env;
    const recorder = new TraceRecorder(size, () => clock.now());
    device.record(recorder);
    await clock.sleep(ms, this.#stop.signal).catch(() => undefined); // ended early: what there is counts
    device.record(undefined);
    if (recorder.count < least) return;
    await traces.save(meta, recorder.trace(clock.wallTime()));
    this.#env.log("info", `${recorder.count} reads are noted as what disks made from ${meta.url} read first`);
  }

  /** Ends it; the trace is kept. */
  async end(): Promise<void> {
    this.#stop.abort(new Error("ended"));
    await this.#ended;
  }
}
