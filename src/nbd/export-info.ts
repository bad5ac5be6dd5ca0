import { UllageError } from "../base/errors.ts";
import { Info, TransmissionFlag } from "./protocol.ts";

/** An export as the reply to GO describes it. */
export interface ExportInfo {
  /** bytes */
  size: number;
  readOnly: boolean;
  /** Several connections see one state: CAN_MULTI_CONN, or nobody can write through any of them. */
  multiConn: boolean;
  /** "Block size constraints" in bytes; what holds when the server says nothing. */
  blocks: BlockSizes;
  /** 32 hex digits, told by Ullage to who asks; changes when acknowledged writes may have been lost. */
  lineage: string | undefined;
}

export interface BlockSizes {
  /** Offsets and lengths are multiples of it, but for the end of the export. */
  min: number;
  preferred: number;
  /** A request moves at most so many bytes. */
  max: number;
}

const defaultBlocks: BlockSizes = { min: 512, preferred: 4096, max: 32 * 1024 * 1024 };

/** @param infos payloads of NBD_REP_INFO @throws UllageError `nbd-handshake` */
export function parseExportInfo(infos: readonly Buffer[]): ExportInfo {
  let size: number | undefined;
  let flags = 0;
  let blocks = defaultBlocks;
  let lineage: string | undefined;
  for (const info of infos) {
    const type = info.length >= 2 ? info.readUInt16BE(0) : -1;
    if (type === Info.export && info.length === 12) {
      size = Number(info.readBigUInt64BE(2));
      flags = info.readUInt16BE(10);
    } else if (type === Info.blockSize && info.length === 14) {
      blocks = parseBlocks(info);
    } else if (type === Info.lineage && info.length === 18) {
      lineage = info.toString("hex", 2);
    }
  }
  if (size === undefined || !Number.isSafeInteger(size)) {
    throw new UllageError("nbd-handshake", "the NBD server does not tell the export's size");
  }
  const readOnly = (flags & TransmissionFlag.readOnly) !== 0;
  return { size, readOnly, multiConn: readOnly || (flags & TransmissionFlag.multiConn) !== 0, blocks, lineage };
}

function parseBlocks(info: Buffer): BlockSizes {
  const [min, preferred, max] = [2, 6, 10].map((at) => info.readUInt32BE(at));
  const isPower = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));
  if (!isPower(min) || min > 65536 || !isPower(preferred) || preferred < min || max < min) {
    const told = `${min}, ${preferred} and ${max}`;
    throw new UllageError("nbd-handshake", `the NBD server tells block sizes that can't be: ${told}`);
  }
  return { min, preferred, max: max - (max % min) };
}
