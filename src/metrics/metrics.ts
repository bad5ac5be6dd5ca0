import { Counter, type Gauge, Histogram, Registry } from "prom-client";
import { latencyBounds } from "../base/latency-histogram.ts";
import type { Measured } from "../daemon/health/measured.ts";
import type { Family, Sample } from "./family.ts";
import { processFamilies } from "./process-families.ts";
import { sourceFamilies } from "./source-families.ts";
import { volumeFamilies } from "./volume-families.ts";

/** Written in one turn of the event loop: less than a millisecond. A thousand busy volumes have some fifty thousand. */
const samplesPerTurn = 400;

/** Everything that is measured below the API. */
export const families: readonly Family[] = [...processFamilies, ...volumeFamilies, ...sourceFamilies];

/**
 * Metrics in Prometheus' text format. What the data path counts is kept by the data path, in numbers of its own, and
 * only looked at here; requests to the API are counted here.
 */
export class Metrics {
  readonly #registry = new Registry();
  readonly #apiRequests = new Counter({
    name: "ullage_api_requests_total",
    help: "Requests to the API, by route and HTTP status",
    labelNames: ["method", "route", "status"],
    registers: [this.#registry],
  });
  readonly #apiDuration = new Histogram({
    name: "ullage_api_request_duration_seconds",
    help: "How long requests to the API took",
    labelNames: ["method", "route"],
    buckets: [...latencyBounds],
    registers: [this.#registry],
  });

  /** @param route as it was registered, never as it was asked for: `/v1/volumes/:name` */
  apiRequestEnded(method: string, route: string, status: number, ms: number): void {
    this.#apiRequests.inc({ method, route, status });
    this.#apiDuration.observe({ method, route }, ms / 1000);
  }

  /** The `Content-Type` of the text. */
  get contentType(): string {
    return this.#registry.contentType;
  }

  /** The text, piece by piece; a turn of the event loop may pass between any two. */
  async *text(measured: Measured): AsyncGenerator<string> {
    for (const family of families) yield* familyText(family, family.samples(measured));
    yield await this.#registry.metrics();
  }
}

async function* familyText(family: Family, samples: Iterable<Sample>): AsyncGenerator<string> {
  const left = samples[Symbol.iterator]();
  for (let page = 0; ; page++) {
    const values = nextOf(left, samplesPerTurn);
    if (page > 0 && values.length === 0) return;
    const text = await format(family, values);
    yield page === 0 ? text : withoutHeader(text);
    if (values.length < samplesPerTurn) return;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function nextOf(left: Iterator<Sample>, most: number): Sample[] {
  const values: Sample[] = [];
  for (let next = left.next(); next.done !== true; next = left.next()) {
    values.push(next.value);
    if (values.length === most) break;
  }
  return values;
}

/** prom-client asks what is registered for its values: here, for those of this page. */
async function format({ name, type, help }: Family, values: readonly Sample[]): Promise<string> {
  const registry = new Registry();
  const page = { name, type, help, values, get: () => Promise.resolve(page) };
  registry.registerMetric(page as unknown as Gauge);
  return `${await registry.getSingleMetricAsString(name)}\n`;
}

/** Without the lines `# HELP` and `# TYPE`, which stand before the first page. */
function withoutHeader(text: string): string {
  return text.split("\n").slice(2).join("\n");
}
