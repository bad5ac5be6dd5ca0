import type { File, FileSystem } from "../../src/base/file-system.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";

/** Called instead of an operation of a file, or of `open`; `proceed` does it. */
export type Interposer = (what: string, path: string, proceed: () => Promise<unknown>) => Promise<unknown>;

/** The real file system, with something in between; what is answered at once (`tryRead`, …) goes by. */
export function interposedFileSystem(interpose: Interposer, options: { coldReads?: boolean } = {}): FileSystem {
  const wrap = (file: File): File =>
    new Proxy(file, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== "function") return value;
        const method = value.bind(target) as (...args: unknown[]) => unknown;
        if (key === "tryRead" && options.coldReads === true) return () => 0;
        if (!["read", "write", "datasync", "punch", "close"].includes(String(key))) return method;
        return (...args: unknown[]) => interpose(String(key), target.path, () => method(...args) as Promise<unknown>);
      },
    });
  return {
    ...realFileSystem,
    open: (path, mode) =>
      interpose(`open ${mode}`, path, async () => wrap(await realFileSystem.open(path, mode))) as Promise<File>,
    openNow: (path) => wrap(realFileSystem.openNow(path)),
  };
}

/** A door that whoever comes waits at until it is opened. */
export class Gate {
  closed = false;
  /** Those that have come to the closed door. */
  waiting = 0;
  #opened = Promise.withResolvers<void>();

  close(): void {
    this.closed = true;
    this.#opened = Promise.withResolvers();
  }

  open(): void {
    this.closed = false;
    this.#opened.resolve();
  }

  async pass(): Promise<void> {
    if (!this.closed) return;
    this.waiting++;
    await this.#opened.promise;
    this.waiting--;
  }
}
