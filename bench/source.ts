/** An HTTP image source in a process of its own, so that it does not take its time from the measuring one. */
import { fork } from "node:child_process";
import { once } from "node:events";

export interface SourceOptions {
  file: string;
  latencyMs: number;
  /** absent: unlimited */
  bytesPerSecond?: number;
}

export interface Source {
  url: string;
  stop(): Promise<void>;
}

export async function startSource(options: SourceOptions): Promise<Source> {
  const child = fork(new URL("source-process.ts", import.meta.url), [JSON.stringify(options)]);
  const ended = once(child, "close");
  const [url] = (await Promise.race([
    once(child, "message"),
    ended.then(() => {
      throw new Error("the HTTP source ended before it listened");
    }),
  ])) as [string];
  return {
    url,
    stop: async () => {
      child.kill();
      await ended;
    },
  };
}
