import type { Backend, Identity, Probe, ReadOptions, Sink, ZeroTaker } from "../backend.ts";

/** A backend in front of another one, to which everything goes that is not done here: what it may know or can do, too. */
export class WrappedBackend implements Backend {
  readonly url: string;
  /** Another one, if the object has been found there. */
  protected inner: Backend;

  constructor(inner: Backend) {
    this.url = inner.url;
    this.inner = inner;
  }

  probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    return this.inner.probe(headBytes, signal);
  }

  read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.inner.read(identity, offset, length, sink, options);
  }

  zeroRun(identity: Identity, offset: number, length: number, options?: ReadOptions): Promise<number> {
    return this.inner.zeroRun?.(identity, offset, length, options) ?? Promise.resolve(0);
  }

  async tellZeros(
    identity: Identity,
    offset: number,
    length: number,
    take: ZeroTaker,
    options?: ReadOptions,
  ): Promise<void> {
    if (this.inner.tellZeros === undefined) take(length, false);
    else await this.inner.tellZeros(identity, offset, length, take, options);
  }

  cloneTo(identity: Identity, path: string): Promise<boolean> {
    return this.inner.cloneTo?.(identity, path) ?? Promise.resolve(false);
  }

  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.inner.stream(identity, sink, options);
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}
