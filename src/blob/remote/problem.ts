import { describeError, IoError, SourceError, UllageError } from "../../base/errors.ts";

/*
 * Why a request failed, as it follows the fixed fields of a version-2 reply: JSON. What was a source's fault arrives as
 * one, so that the client does what it would do if it had read the source itself.
 */

/** Room that every reply has for it. */
const MAX_BYTES = 2048;

interface Problem {
  code: string;
  message: string;
  hint?: string | undefined;
  /** of a SourceError */
  transient?: boolean;
  /** of an IoError */
  errno?: string;
}

export function encodeProblem(error: unknown): Buffer {
  const problem: Problem = {
    code: error instanceof UllageError ? error.code : "internal",
    message: describeError(error).slice(0, 1000),
    hint: error instanceof UllageError ? error.hint?.slice(0, 200) : undefined,
    ...(error instanceof SourceError ? { transient: error.transient } : {}),
    ...(error instanceof IoError ? { errno: error.errno } : {}),
  };
  const bytes = Buffer.from(JSON.stringify(problem));
  return bytes.length <= MAX_BYTES ? bytes : Buffer.from(JSON.stringify({ code: problem.code, message: "…" }));
}

/** @param fallback the message when the manager says nothing that can be read */
export function decodeProblem(bytes: Buffer, fallback: string): UllageError {
  let problem: Partial<Problem> = {};
  try {
    problem = JSON.parse(bytes.toString("utf8")) as Partial<Problem>;
  } catch {
    // a version-1 reply says nothing
  }
  const { code = "blob-manager", message = fallback, hint, transient, errno } = problem;
  if (typeof transient === "boolean") {
    return new SourceError(code, message, { transient, ...(hint === undefined ? {} : { hint }) });
  }
  if (typeof errno === "string") return new IoError(errno, message);
  return new UllageError(code, message, hint === undefined ? {} : { hint });
}
