import { execFileSync } from "node:child_process";
import { UllageError } from "../base/errors.ts";

/** Numbers of users that are named or numbered. @throws UllageError `usage` for a user that does not exist */
export function parseUserIds(users: readonly string[]): number[] {
  return users.map((user) => {
    if (/^\d{1,10}$/.test(user)) return Number(user);
    try {
      return Number(execFileSync("getent", ["passwd", "--", user], { encoding: "utf8" }).split(":")[2]);
    } catch (cause) {
      throw new UllageError("usage", `there is no user '${user}'`, { hint: "give a user's name or number", cause });
    }
  });
}
