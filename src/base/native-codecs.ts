import koffi from "koffi";
import { addressOf } from "./posix.ts";

/*
 * The zlib and Zstandard that are part of Node, called from memory to memory. `node:zlib` makes a handle, a buffer and a
 * copy for each call, and the collector has to run for them: for a cluster of 64 KiB that costs up to ten times what
 * unpacking costs. Beside posix.ts the only file with foreign calls. What is passed to them lies within `memory`, which is checked
 * here; the libraries keep to the bounds that they are told, whatever the packed bytes are. Layouts: LP64.
 */

export type Codec = "deflate" | "zlib" | "zstd";

/** A piece of memory that holds packed bytes, and where what they come to goes: at most `room` bytes. */
export interface PieceInMemory {
  from: number;
  length: number;
  to: number;
  room: number;
}

/** struct z_stream */
const STREAM_BYTES = 112;
const NEXT_IN = 0;
const AVAIL_IN = 8;
const NEXT_OUT = 24;
const AVAIL_OUT = 32;
const Z_FINISH = 4;
const Z_STREAM_END = 1;
const Z_BUF_ERROR = -5;
const WINDOW_BITS = { deflate: -15, zlib: 15 };

type Call = (...values: (number | string)[]) => number;
/** size_t: what is beyond safe integers comes, and is taken, as a BigInt. */
type Size = number | bigint;

interface Calls {
  zlibVersion: () => string;
  inflateInit: Call;
  inflate: Call;
  inflateReset: Call;
  inflateEnd: Call;
  createContext: Call;
  freeContext: Call;
  decompress: (...values: number[]) => Size;
  isError: (result: Size) => number;
  errorName: (result: Size) => string;
}

function load(): Calls | undefined {
  try {
    const node = koffi.load(null);
    return {
      zlibVersion: node.func("const char *zlibVersion()") as Calls["zlibVersion"],
      inflateInit: node.func("int inflateInit2_(uintptr_t, int, const char *, int)") as Call,
      inflate: node.func("int inflate(uintptr_t, int)") as Call,
      inflateReset: node.func("int inflateReset(uintptr_t)") as Call,
      inflateEnd: node.func("int inflateEnd(uintptr_t)") as Call,
      createContext: node.func("uintptr_t ZSTD_createDCtx()") as Call,
      freeContext: node.func("size_t ZSTD_freeDCtx(uintptr_t)") as Call,
      decompress: node.func(
        "size_t ZSTD_decompressDCtx(uintptr_t, uintptr_t, size_t, uintptr_t, size_t)",
      ) as Calls["decompress"],
      isError: node.func("unsigned int ZSTD_isError(size_t)") as Calls["isError"],
      errorName: node.func("const char *ZSTD_getErrorName(size_t)") as Calls["errorName"],
    };
  } catch {
    return undefined; // a Node that was built without them, or that keeps them to itself
  }
}

const calls = load();

/** Whether this Node lets its libraries be called. */
export const hasNativeCodecs = calls !== undefined;

/** Unpacks pieces of one memory; to be disposed of, since its libraries' memory is not the collector's. */
export class NativeUnpacker {
  readonly #calls: Calls;
  readonly #bytes: number;
  readonly #address: number;
  readonly #streams = new Map<keyof typeof WINDOW_BITS, { fields: DataView; address: number }>();
  #context = 0;

  /** @param memory does not move while this exists: `Buffer.allocUnsafeSlow`, or shared memory */
  constructor(memory: Buffer) {
    if (calls === undefined) throw new Error("this Node has no native codecs");
    this.#calls = calls;
    this.#bytes = memory.length;
    this.#address = addressOf(memory);
  }

  /** @returns bytes that the piece came to @throws Error when it is damaged, cut off, or comes to more than there is room for */
  unpack(codec: Codec, piece: PieceInMemory): number {
    const { from, length, to, room } = piece;
    const inside = (at: number, bytes: number): boolean => at >= 0 && bytes >= 0 && at + bytes <= this.#bytes;
    if (!inside(from, length) || !inside(to, room)) {
      throw new RangeError(`${from}+${length} or ${to}+${room} is outside ${this.#bytes} bytes`);
    }
    return codec === "zstd" ? this.#zstd(piece) : this.#inflate(codec, piece);
  }

  #zstd({ from, length, to, room }: PieceInMemory): number {
    if (this.#context === 0) this.#context = this.#calls.createContext();
    if (this.#context === 0) throw new Error("there is no memory for zstd");
    const address = this.#address;
    const result = this.#calls.decompress(this.#context, address + to, room, address + from, length);
    if (this.#calls.isError(result) === 0) return Number(result);
    throw new Error(this.#calls.errorName(result));
  }

  #inflate(codec: "deflate" | "zlib", { from, length, to, room }: PieceInMemory): number {
    const { fields, address } = this.#stream(codec);
    fields.setBigUint64(NEXT_IN, BigInt(this.#address + from), true);
    fields.setUint32(AVAIL_IN, length, true);
    fields.setBigUint64(NEXT_OUT, BigInt(this.#address + to), true);
    fields.setUint32(AVAIL_OUT, room, true);
    const code = this.#calls.inflate(address, Z_FINISH);
    const left = fields.getUint32(AVAIL_OUT, true);
    if (code === Z_STREAM_END) return room - left;
    if (code === Z_BUF_ERROR && left > 0) throw new Error("unexpected end of the packed bytes");
    if (code === Z_BUF_ERROR) throw new Error(`it unpacks to more than ${room}`);
    throw new Error(`invalid packed bytes (${code})`);
  }

  #stream(codec: "deflate" | "zlib"): { fields: DataView; address: number } {
    const known = this.#streams.get(codec);
    if (known !== undefined) {
      this.#calls.inflateReset(known.address);
      return known;
    }
    const bytes = Buffer.allocUnsafeSlow(STREAM_BYTES).fill(0);
    const stream = { fields: new DataView(bytes.buffer), address: addressOf(bytes) };
    const code = this.#calls.inflateInit(stream.address, WINDOW_BITS[codec], this.#calls.zlibVersion(), STREAM_BYTES);
    if (code !== 0) throw new Error(`zlib can't begin (${code})`);
    this.#streams.set(codec, stream);
    return stream;
  }

  [Symbol.dispose](): void {
    for (const { address } of this.#streams.values()) this.#calls.inflateEnd(address);
    this.#streams.clear();
    if (this.#context !== 0) this.#calls.freeContext(this.#context);
    this.#context = 0;
  }
}
