import { UllageError } from "../base/errors.ts";

/** A name of a volume: also an NBD export name and a part of URLs, hence the narrow alphabet. */
export const namePattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$";
/** What that means, for people. */
export const nameRule = "names begin with a letter or digit and have at most 128 of: letters, digits, '.', '_', '-'";
const nameExpression = new RegExp(namePattern);

/** @throws UllageError `bad-name` */
export function checkName(name: string): void {
  if (nameExpression.test(name)) return;
  throw new UllageError("bad-name", `'${name}' is not a name`, {
    hint: nameRule,
  });
}
