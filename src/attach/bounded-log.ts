/** Logs lie in memory (/run): errors that repeat for days must not fill it. */
const MAX_LOG_BYTES = 1024 * 1024;

/** Writes lines with the time of day, up to a limit. */
export class BoundedLog {
  readonly #write: (line: string) => void;
  #left = MAX_LOG_BYTES;

  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  line(message: string): void {
    if (this.#left <= 0) return;
    const line = `${new Date().toISOString()} ${message}\n`;
    this.#left -= line.length;
    this.#write(line);
    if (this.#left <= 0) this.#write("the log is full: nothing more is written to it\n");
  }
}
