/** The process behind source.ts. Its argument is SourceOptions as JSON; it sends its URL to its parent, and ends with it. */
import { startHttpSource } from "../test/support/http-source.ts";
import type { SourceOptions } from "./source.ts";

const { file, latencyMs, bytesPerSecond } = JSON.parse(process.argv[2]) as SourceOptions;
const limit = bytesPerSecond === undefined ? {} : { bytesPerSecond };
const source = await startHttpSource({ content: file, latencyMs, ...limit });
process.on("disconnect", () => process.exit());
process.send!(source.url);
