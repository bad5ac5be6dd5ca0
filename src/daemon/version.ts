import { readFileSync } from "node:fs";

/** Of this package; `src/daemon` and `dist/daemon` lie equally deep below package.json. */
export const packageVersion = (
  JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string }
).version;
