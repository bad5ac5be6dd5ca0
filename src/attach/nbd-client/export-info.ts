import { UllageError } from "../../base/errors.ts";
import { Info, TransmissionFlag } from "../../export/nbd/protocol.ts";

/** An export as the reply to GO describes it. */
export interface ExportInfo {
  /** bytes */
  size: number;
  readOnly: boolean;
  /** 32 hex digits; changes when acknowledged writes may have been lost */
  lineage: string;
}

/** @param infos payloads of NBD_REP_INFO @throws UllageError `nbd-handshake` */
export function parseExportInfo(infos: readonly Buffer[]): ExportInfo {
  let size: number | undefined;
  let readOnly = false;
  let lineage: string | undefined;
  for (const info of infos) {
    const type = info.length >= 2 ? info.readUInt16BE(0) : -1;
    if (type === Info.export && info.length === 12) {
      size = Number(info.readBigUInt64BE(2));
      readOnly = (info.readUInt16BE(10) & TransmissionFlag.readOnly) !== 0;
    } else if (type === Info.lineage && info.length === 18) {
      lineage = info.toString("hex", 2);
    }
  }
  if (size === undefined || !Number.isSafeInteger(size)) {
    throw new UllageError("nbd-handshake", "the NBD server does not tell the export's size");
  }
  if (lineage === undefined) {
    throw new UllageError("nbd-handshake", "the NBD server tells no lineage: it is no Ullage, or an older one", {
      hint: "attach needs a daemon of the same release",
    });
  }
  return { size, readOnly, lineage };
}
