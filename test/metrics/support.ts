import { request } from "node:http";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { ApiListener } from "../../src/api/api-listener.ts";
import { buildApi } from "../../src/api/app.ts";
import type { Ullage, UllageOptions } from "../../src/daemon/ullage.ts";
import { atEnd, openUllage, temporaryDirectory } from "../daemon/support.ts";

/** Metrics as Prometheus would keep them: `name{label="value",…}` with the labels in order -> value. */
export class Scrape {
  readonly text: string;
  readonly values = new Map<string, number>();
  /** As `# TYPE` says. */
  readonly types = new Map<string, string>();
  readonly helps = new Map<string, string>();

  constructor(text: string) {
    this.text = text;
    for (const line of text.split("\n")) {
      const [, kind, name, rest] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
      if (kind === "TYPE") this.types.set(name, rest);
      if (kind === "HELP") this.helps.set(name, rest);
      if (line === "" || line.startsWith("#")) continue;
      const sample = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (sample === null) throw new Error(`not a sample: ${line}`);
      this.values.set(key(sample[1], sample[2] ?? ""), Number(sample[3]));
    }
  }

  /** @returns the value of one series; 0 when it is not there, as a counter that was never touched */
  value(name: string, labels: Record<string, string> = {}): number {
    const text = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
    return this.values.get(key(name, text.join(","))) ?? 0;
  }

  /** The sum over all series of a name that have these labels. */
  sum(name: string, labels: Record<string, string> = {}): number {
    const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
    let sum = 0;
    for (const [series, value] of this.values) {
      const [seriesName, seriesLabels] = series.split("{");
      if (seriesName === name && wanted.every((label) => seriesLabels.includes(label))) sum += value;
    }
    return sum;
  }

  /** Names of the label of every sample of a family, `le` of histograms left out. */
  labelsOf(family: string): Set<string> {
    const labels = new Set<string>();
    for (const series of this.values.keys()) {
      const [name, rest] = series.split("{");
      if (name.replace(/_(bucket|sum|count)$/, "") !== family && name !== family) continue;
      for (const [, label] of rest.matchAll(/(\w+)="/g)) if (label !== "le") labels.add(label);
    }
    return labels;
  }
}

function key(name: string, labels: string): string {
  const each = [...labels.matchAll(/\w+="(?:[^"\\]|\\.)*"/g)].map(([label]) => label);
  return `${name}{${each.sort().join(",")}}`;
}

export interface Served {
  ullage: Ullage;
  directory: string;
  /** NBD URI of a volume, on a unix socket. */
  uri(name: string): string;
  scrape(): Promise<Scrape>;
  get(path: string): Promise<{ status: number; type: string; body: string }>;
}

/** A data directory served over NBD and HTTP, on unix sockets. */
export async function serveMeasured(t: TestContext, options: Partial<UllageOptions> = {}): Promise<Served> {
  const directory = await temporaryDirectory(t);
  const ullage = await openUllage(t, options);
  const app = await buildApi(ullage, options.log ?? (() => undefined));
  const socketPath = join(directory, "api.sock");
  const listener = await ApiListener.listen({ kind: "unix", path: socketPath }, (incoming, outgoing) =>
    app.routing(incoming, outgoing),
  );
  atEnd(t, () => listener.close());
  const nbd = join(directory, "nbd.sock");
  await ullage.serveNbd([{ kind: "unix", path: nbd }]);
  const get: Served["get"] = (path) =>
    new Promise((resolve, reject) => {
      const outgoing = request({ socketPath, path, agent: false }, (answer) => {
        let body = "";
        answer.setEncoding("utf8");
        answer.on("data", (chunk: string) => (body += chunk));
        answer.on("error", reject);
        answer.on("end", () =>
          resolve({ status: answer.statusCode ?? 0, type: answer.headers["content-type"] ?? "", body }),
        );
      });
      outgoing.on("error", reject);
      outgoing.end();
    });
  return {
    ullage,
    directory,
    get,
    uri: (name) => `nbd+unix:///${name}?socket=${nbd}`,
    scrape: async () => new Scrape((await get("/metrics")).body),
  };
}
