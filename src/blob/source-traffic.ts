import { LatencyHistogram } from "../base/latency-histogram.ts";
import type { SourceError } from "../base/errors.ts";

/** Hosts that are counted apart; what more there are is counted together. */
const MAX_HOSTS = 256;
const OTHER_HOSTS = "other";

export class LaneTraffic {
  /** Requests started; those of one range that were tried again count once. */
  requests = 0;
  /** Received, be it for nothing. */
  bytes = 0;
  /** Of requests that succeeded: from the first attempt to the last byte in the cache file. */
  readonly latency = new LatencyHistogram();
}

/** What was asked of one host, by all blobs, since the process started. Only counters. */
export class SourceTraffic {
  /** `example.org`, `example.org:8443`; `local` for files of this machine */
  readonly host: string;
  /** Somebody waited for it. */
  readonly foreground = new LaneTraffic();
  /** Hydration and readahead. */
  readonly background = new LaneTraffic();
  /** Attempts that failed and were made again. */
  retries = 0;
  /** Code of the error -> requests that failed for good. */
  readonly errors = new Map<string, number>();

  constructor(host: string) {
    this.host = host;
  }

  lane(background: boolean): LaneTraffic {
    return background ? this.background : this.foreground;
  }

  failed(error: SourceError): void {
    this.errors.set(error.code, (this.errors.get(error.code) ?? 0) + 1);
  }
}

/** By host; the number of hosts is bounded. */
export class SourceTraffics {
  readonly #byHost = new Map<string, SourceTraffic>();

  /** @param url of a blob: an absolute path, or an address without credentials */
  of(url: string): SourceTraffic {
    const wanted = url.startsWith("/") ? "local" : (URL.parse(url)?.host ?? OTHER_HOSTS);
    const host = this.#byHost.has(wanted) || this.#byHost.size < MAX_HOSTS ? wanted : OTHER_HOSTS;
    let traffic = this.#byHost.get(host);
    if (traffic === undefined) this.#byHost.set(host, (traffic = new SourceTraffic(host)));
    return traffic;
  }

  all(): SourceTraffic[] {
    return [...this.#byHost.values()];
  }
}
