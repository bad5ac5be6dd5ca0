import assert from "node:assert/strict";
import { test } from "node:test";
import { CorruptionError, describeError, errnoOf, IoError, SourceError } from "../../src/base/errors.ts";

void test("a failed call keeps its errno, and its code is stable", () => {
  const error = new IoError("ENOSPC", "write of /data/x failed", new Error("underneath"));
  assert.equal(error.code, "io-enospc");
  assert.equal(error.name, "IoError");
  assert.equal(errnoOf(error), "ENOSPC");
  assert.equal(describeError(error), "write of /data/x failed: underneath");
});

void test("whatever is no system call's failure answers EIO", () => {
  assert.equal(errnoOf(new SourceError("source-status", "503", { transient: true })), "EIO");
  assert.equal(errnoOf(new CorruptionError("damaged")), "EIO");
  assert.equal(errnoOf("thrown"), "EIO");
  assert.equal(describeError("thrown"), "thrown");
});

void test("damage says what to do next", () => {
  assert.equal(new CorruptionError("damaged").code, "corrupt");
  assert.match(new CorruptionError("damaged").hint!, /ullage check/);
});
