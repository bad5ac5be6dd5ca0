import assert from "node:assert/strict";
import { test } from "node:test";
import { didYouMean, similarWords } from "../../src/base/similar.ts";

void test("what is a slip of the finger away is suggested, nearest first", () => {
  const known = ["web1", "web2", "database", "Mail", "x"];
  assert.deepEqual(similarWords("wbe1", known), ["web1"], "swapped");
  assert.deepEqual(similarWords("web", known), ["web1", "web2"], "missing");
  assert.deepEqual(similarWords("web11", known), ["web1"], "one too many");
  assert.deepEqual(similarWords("databaze", known), ["database"], "replaced");
  assert.deepEqual(similarWords("mail", known), ["Mail"], "upper case");
  assert.deepEqual(similarWords("data", known), ["database"], "the beginning");
});

void test("what is another word is not suggested, nor more than three", () => {
  assert.deepEqual(similarWords("printer", ["web1", "database"]), []);
  assert.deepEqual(similarWords("y", ["x"]), []);
  assert.deepEqual(similarWords("", ["x"]), []);
  assert.equal(similarWords("disk", ["disk1", "disk2", "disk3", "disk4"]).length, 3);
});

void test("suggestions are a question", () => {
  assert.equal(didYouMean("web", ["web1"]), "did you mean 'web1'?");
  assert.equal(didYouMean("web", ["web2", "web1", "web3"]), "did you mean 'web1', 'web2' or 'web3'?");
  assert.equal(didYouMean("web", []), undefined);
});
