import { addAbortSignal, type Readable } from "node:stream";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { describeError, UllageError } from "../base/errors.ts";
import { orAborted } from "../base/or-aborted.ts";
import { contentFormats, type ContentFormat, type VolumeContent } from "../daemon/volumes/contents.ts";
import type { ImportContent } from "../daemon/volumes/volume-import.ts";
import { readSparse, sparseContentType, type Piece } from "../image/sparse-stream.ts";
import type { ApiContext } from "./route-module.ts";
import { namesTag, parseRange, type ByteRange } from "./byte-range.ts";
import { describeCaller } from "./caller.ts";
import { contentStream, sparseContentStream } from "./content-stream.ts";
import { idempotencyHeaders, requestKeyOf } from "./idempotency.ts";
import { problemResponse, problemResponses, ref } from "./schemas.ts";

const plainType = "application/octet-stream";
/** How long a client that was refused may go on sending, so that it can read why. */
const lingerMs = 5000;

const name = { type: "string", description: "the volume's name" } as const;
const ofVolume = { type: "object", properties: { name }, required: ["name"] } as const;
const ofSnapshot = {
  type: "object",
  properties: { name, snapshot: { type: "string", description: "the snapshot's name" } },
  required: ["name", "snapshot"],
} as const;
const anyBytes = { schema: { type: "string", format: "binary" } } as const;

const downloadQuery = {
  type: "object",
  additionalProperties: false,
  properties: {
    format: {
      enum: contentFormats,
      default: "raw",
      description: "raw: the disk's bytes; qcow2: an image of it without what was never written",
    },
  },
} as const;

const sparseDescription = `With \`Accept: ${sparseContentType}\` the zeros of the file are left out: a header of 24 bytes
("ULLSPRS1", size of the file or 2^64-1, about how many bytes are other than zeros or 0), then records of a 16-byte head (offset,
kind in 4 bytes, length in 4 bytes) and their bytes. Kinds: 0 data; 1 the end, at the file's size; 2 a failure, in JSON with
\`code\`, \`detail\` and \`hint\`; 3 the sender is alive. Numbers are big-endian, offsets ascend, and what no data is sent for reads as zeros.`;

const downloadDescription = `Of one moment, however the disk is written to meanwhile. Bytes that are not here yet are fetched.
When they can't be read, the answer ends before its \`Content-Length\`, and the log says why.

${sparseDescription}`;

type OfContent = { Params: { name: string; snapshot?: string }; Querystring: { format: ContentFormat } };

/** What is downloaded, and uploaded: /v1/volumes/{name}/content, and the same below snapshots. */
export async function addContentRoutes(app: FastifyInstance, { ullage, log, transfers }: ApiContext): Promise<void> {
  const downloads = [
    {
      url: "/v1/volumes/:name/content",
      params: ofVolume,
      operationId: "downloadVolume",
      summary: "A volume's bytes, as it is now",
      answers: {},
    },
    {
      url: "/v1/volumes/:name/snapshots/:snapshot/content",
      params: ofSnapshot,
      operationId: "downloadSnapshot",
      summary: "A snapshot's bytes, or a part of them: it takes `Range`, `If-Range` and `If-None-Match`",
      answers: {
        206: { description: "the part that was asked for", content: { [plainType]: anyBytes } },
        304: { type: "null", description: "it is the one that you have" },
        416: { ...problemResponse, description: "it has no such part" },
      },
    },
  ];
  for (const { url, params, answers, ...about } of downloads) {
    app.route<OfContent>({
      method: "GET",
      url,
      exposeHeadRoute: false,
      config: { scope: "read", audited: true },
      schema: {
        ...about,
        description: downloadDescription,
        params,
        querystring: downloadQuery,
        response: {
          200: { description: "all of it", content: { [plainType]: anyBytes, [sparseContentType]: anyBytes } },
          ...answers,
          ...problemResponses,
        },
      },
      handler: (request, reply) => download(request, reply),
    });
    app.route<OfContent>({
      method: "HEAD",
      url,
      schema: { hide: true, params, querystring: downloadQuery },
      handler: (request, reply) => describe(request, reply),
    });
  }

  async function download(request: FastifyRequest<OfContent>, reply: FastifyReply): Promise<FastifyReply> {
    const { name: volume, snapshot } = request.params;
    const content = await ullage.openContent(volume, snapshot, request.query.format, whereIs(request));
    if (reply.sent) {
      await content.close(); // the client's token expired meanwhile
      return reply;
    }
    const what = snapshot === undefined ? volume : `${volume}@${snapshot}`;
    const options = {
      stallMs: transfers.answerStallMs,
      revoked: request.revoked,
      onFailure: (error: unknown): void => {
        log("warn", `the download of '${what}' ended early: ${describeError(error)} (request ${request.id})`, {
          requestId: request.id,
        });
      },
    };
    announce(reply, content, what);
    if (wantsSparse(request)) return reply.type(sparseContentType).send(sparseContentStream(content, options));
    let range: ByteRange | undefined;
    try {
      range = choose(request, reply, content);
    } catch (error) {
      await content.close();
      throw error;
    }
    if (range === undefined) {
      await content.close();
      return reply.send();
    }
    reply.type(plainType).header("content-length", range.end - range.start);
    return reply.send(contentStream(content, range, options));
  }

  /** What GET would say, as far as that is known without freezing a volume or looking through its map. */
  function describe(request: FastifyRequest<OfContent>, reply: FastifyReply): FastifyReply {
    const { name: volume, snapshot } = request.params;
    const { format } = request.query;
    const size = ullage.sizeOf(volume, snapshot);
    if (snapshot === undefined) {
      reply.header("accept-ranges", "none");
    } else {
      const { id } = ullage.showSnapshot(volume, snapshot);
      reply.header("accept-ranges", "bytes").header("etag", tagOf(format === "raw" ? id : `${id}-${format}`));
    }
    if (wantsSparse(request)) return reply.type(sparseContentType).send();
    if (format === "raw") reply.header("content-length", size);
    return reply.type(plainType).send();
  }

  // Only here bodies are streams, of any length.
  await app.register(async (uploads) => {
    const asStream = (_request: FastifyRequest, body: Readable, done: (error: null, body: Readable) => void): void =>
      done(null, body);
    uploads.removeAllContentTypeParsers();
    for (const type of [plainType, sparseContentType]) uploads.addContentTypeParser(type, asStream);

    uploads.route<{ Params: { name: string }; Querystring: { format: string }; Body: Readable }>({
      method: "PUT",
      url: "/v1/volumes/:name/content",
      bodyLimit: Number.MAX_SAFE_INTEGER,
      config: { streams: true },
      schema: {
        operationId: "importVolume",
        summary: "Make a volume from the bytes of a disk; it is there, durably, when the answer comes",
        description: `Its size is that of the bytes, rounded up to 512; zeros take no space. A client that goes away in the
middle leaves nothing. Names that are taken are refused before the body is asked for (\`Expect: 100-continue\`).

${sparseDescription.replace("With `Accept:", "With `Content-Type:").replace("are left out", "may be left out")}`,
        params: ofVolume,
        querystring: {
          type: "object",
          additionalProperties: false,
          properties: {
            format: {
              enum: ["auto", "raw"],
              default: "auto",
              description:
                "auto: what is recognised as an image of another format is refused; raw: any bytes are a disk",
            },
          },
        },
        headers: idempotencyHeaders("volume"),
        body: { content: { [plainType]: { schema: {} }, [sparseContentType]: { schema: {} } } },
        response: { 201: { ...ref("Volume"), description: "it can be used" }, ...problemResponses },
      },
      handler: async (request, reply) => {
        const { params, query } = request;
        const key = requestKeyOf(request, [params.name, query.format]);
        const volume = await ullage.importVolume(params.name, uploadOf(request, reply), key);
        return reply.code(201).header("location", `/v1/volumes/${volume.name}`).send(volume);
      },
      onSend: async ({ raw }, _reply, payload) => {
        if (raw.complete) return payload;
        raw.resume(); // so that the client, which sends on, comes to read the answer
        const timer = setTimeout(() => raw.socket.destroy(), lingerMs);
        raw.once("close", () => clearTimeout(timer));
        return payload;
      },
    });
  });

  function uploadOf(request: FastifyRequest<{ Querystring: { format: string } }>, reply: FastifyReply): ImportContent {
    const { raw, headers } = request;
    const sparse = headers["content-type"]?.split(";")[0].trim() === sparseContentType;
    const length = headers["content-length"];
    async function* pieces(signal: AbortSignal): AsyncGenerator<Piece> {
      if (headers.expect !== undefined) reply.raw.writeContinue();
      addAbortSignal(signal, raw);
      const chunks = watched(raw, transfers.answerStallMs, request.revoked);
      try {
        if (sparse) {
          yield* (await readSparse(chunks)).pieces;
          return;
        }
        let offset = 0;
        for await (const bytes of chunks) {
          yield { offset, bytes };
          offset += bytes.length;
        }
      } finally {
        await chunks.return(undefined); // an answer can be sent: the body is not destroyed
      }
    }
    return {
      size: sparse || length === undefined ? undefined : Number(length),
      format: request.query.format,
      pieces,
    };
  }
}

/** A body whose sender may not be silent for too long. What is left of it stays readable when nobody wants it any more. */
async function* watched(
  body: Readable,
  stallMs: number,
  revoked: AbortSignal | undefined,
): AsyncGenerator<Buffer, void, undefined> {
  const chunks = body.iterator({ destroyOnReturn: false });
  try {
    for (;;) {
      const timer = setTimeout(() => {
        body.destroy(new UllageError("client-stalled", `the client sent nothing for ${stallMs / 1000} seconds`));
      }, stallMs);
      const next = await orAborted(chunks.next(), revoked).finally(() => clearTimeout(timer));
      if (next.done === true) return;
      yield next.value as Buffer;
    }
  } catch (error) {
    if (error instanceof UllageError) throw error;
    throw new UllageError("transfer-cut", "the client went away before all was there", { cause: error });
  } finally {
    const closed = chunks.return?.().catch(() => undefined); // waits for what has been asked of the client
    if (revoked?.aborted !== true) await closed;
  }
}

function announce(reply: FastifyReply, { name: tag, format }: VolumeContent, what: string): void {
  const file = `${what}.${format}`; // names have no characters that would need care
  reply.header("content-disposition", `attachment; filename="${file}"`);
  if (tag !== undefined) reply.header("etag", tagOf(tag));
  reply.header("accept-ranges", tag === undefined ? "none" : "bytes");
}

/** @returns undefined: an answer without a body; only a snapshot has parts that belong together */
function choose(
  { headers }: FastifyRequest,
  reply: FastifyReply,
  { name: tag, size }: VolumeContent,
): ByteRange | undefined {
  const all = { start: 0, end: size };
  if (tag === undefined) return all;
  if (namesTag(headers["if-none-match"], tagOf(tag))) {
    reply.code(304);
    return undefined;
  }
  const condition = headers["if-range"];
  if (condition !== undefined && condition !== tagOf(tag)) return all;
  const range = parseRange(headers.range, size);
  if (range === undefined) return all;
  if (range === "unsatisfiable") {
    reply.header("content-range", `bytes */${size}`);
    throw new UllageError("no-such-range", `it has ${size} bytes, and none of '${headers.range}'`);
  }
  reply.code(206).header("content-range", `bytes ${range.start}-${range.end - 1}/${size}`);
  return range;
}

function tagOf(tag: string): string {
  return `"${tag}"`;
}

function wantsSparse({ headers }: FastifyRequest): boolean {
  return headers.accept?.split(",").some((type) => type.split(";")[0].trim() === sparseContentType) === true;
}

function whereIs({ caller, ip, raw }: FastifyRequest): { address: string; remote: boolean } {
  if (caller.kind === "unix") return { address: "unix", remote: false };
  const remote = !/^(::ffff:)?127\.|^::1$/.test(ip);
  return { address: `${describeCaller(caller)} from ${ip}:${raw.socket.remotePort}`, remote };
}
