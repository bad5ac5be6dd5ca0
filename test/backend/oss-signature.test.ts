import assert from "node:assert/strict";
import { test } from "node:test";
import { isoDate, signV1, signV4 } from "../../src/backend/object-store/oss.ts";

void test("version 1 gives the signature of OSS's documentation", () => {
  const headers = {
    "content-md5": "ODBGOERFMDMzQTczRUY3NUE3NzA5QzdFNUYzMDQxNEM=",
    "content-type": "text/html",
    date: "Thu, 17 Nov 2005 18:49:58 GMT",
    "x-oss-meta-author": "foo@bar.com",
    "x-oss-magic": "abracadabra",
  };
  const keys = { accessKeyId: "44CF9590006BF252F707", secretAccessKey: "OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV" };
  const request = { method: "PUT", path: "/oss-example/nelson", query: {}, headers };
  assert.equal(signV1(request, keys), "OSS 44CF9590006BF252F707:26NBxoKdsyly4EDv6inkoDft/yA=");
});

void test("version 4 gives the signatures that Alibaba's own libraries are tested with", () => {
  const query = {
    param1: "value1",
    "+param1": "value3",
    "|param1": "value4",
    "+param2": "",
    "|param2": "",
    param2: "",
  };
  const sign = (seconds: number, token?: string): string => {
    const date = new Date(seconds * 1000);
    const headers = {
      "x-oss-head1": "value",
      abc: "value",
      zabc: "value",
      xyz: "value",
      "content-type": "text/plain",
      "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
      "x-oss-date": isoDate(date),
      ...(token === undefined ? {} : { "x-oss-security-token": token }),
    };
    const request = { method: "PUT", path: "/bucket/1234+-/123/1.txt", query, headers };
    return signV4(request, { accessKeyId: "ak", secretAccessKey: "sk" }, "cn-hangzhou", date);
  };
  assert.equal(
    sign(1702743657),
    "OSS4-HMAC-SHA256 Credential=ak/20231216/cn-hangzhou/oss/aliyun_v4_request,Signature=e21d18daa82167720f9b1047ae7e7f1ce7cb77a31e8203a7d5f4624fa0284afe",
  );
  assert.equal(
    sign(1702784856, "token"),
    "OSS4-HMAC-SHA256 Credential=ak/20231217/cn-hangzhou/oss/aliyun_v4_request,Signature=b94a3f999cf85bcdc00d332fbd3734ba03e48382c36fa4d5af5df817395bd9ea",
  );
});
