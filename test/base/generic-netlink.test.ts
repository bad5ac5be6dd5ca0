import assert from "node:assert/strict";
import test from "node:test";
import { findFamily, netlinkRequest, numberAttribute, textAttribute } from "../../src/base/generic-netlink.ts";

const controller = 16;
const getFamily = 3;
const familyName = 2;

void test("the kernel is asked for families by name, and its refusals are errors with its errno", async () => {
  assert.equal(await findFamily("nlctrl"), controller);
  assert.equal(await findFamily("no such family"), undefined);
  const reply = await netlinkRequest(controller, getFamily, [textAttribute(familyName, "nlctrl")]);
  assert.equal(reply.get(familyName)!.toString(), "nlctrl\0");
  await assert.rejects(netlinkRequest(controller, getFamily, [textAttribute(familyName, "no such family")]), {
    code: "io-enoent",
  });
  await assert.rejects(netlinkRequest(controller, 99, [numberAttribute(1, 1)]), { code: "io-eopnotsupp" });
});
