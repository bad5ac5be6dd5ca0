/**
 * Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project, sections "Values" and "Request types").
 * Everything on the wire is big-endian.
 */

// "Newstyle negotiation"
export const GREETING_MAGIC_HIGH = 0x4e42444d; // NBDM
export const GREETING_MAGIC_LOW = 0x41474943; // AGIC
export const OPTION_MAGIC_HIGH = 0x49484156; // IHAV
export const OPTION_MAGIC_LOW = 0x454f5054; // EOPT
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
export const OPTION_HEADER_BYTES = 16;

/** "Handshake flags" and "Client flags": the same two bits. */
export const HandshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** "Transmission flags" */
export const TransmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  flush: 1 << 2,
  fua: 1 << 3,
  trim: 1 << 5,
  writeZeroes: 1 << 6,
  df: 1 << 7,
  multiConn: 1 << 8,
  cache: 1 << 10,
  fastZero: 1 << 11,
} as const;

/** "Option types" */
export const Option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

/** "Option reply types" */
export const OptionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: 0x80000001,
  policy: 0x80000002,
  invalid: 0x80000003,
  tlsRequired: 0x80000005,
  unknown: 0x80000006,
  shutdown: 0x80000007,
  tooBig: 0x80000009,
} as const;

/** Information types of NBD_OPT_INFO and NBD_OPT_GO; `lineage` (16 bytes) is ours and told only to who asks: docs/NBD.md */
export const Info = { export: 0, name: 1, description: 2, blockSize: 3, lineage: 0x554c } as const;

/** "Request message" */
export const REQUEST_MAGIC = 0x25609513;
export const REQUEST_BYTES = 28;

/** "Request types" */
export const Command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** "Command flags" */
export const CommandFlag = { fua: 1 << 0, noHole: 1 << 1, df: 1 << 2, reqOne: 1 << 3, fastZero: 1 << 4 } as const;

/** "Simple reply message" */
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const SIMPLE_REPLY_BYTES = 16;

/** "Structured reply chunk message" */
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const STRUCTURED_REPLY_BYTES = 20;
export const REPLY_FLAG_DONE = 1;
/** A structured reply header and the offset that a NBD_REPLY_TYPE_OFFSET_DATA chunk carries before its data. */
export const OFFSET_DATA_BYTES = STRUCTURED_REPLY_BYTES + 8;

/** "Structured reply types"; errors are those with the highest bit set. */
export const ReplyType = { none: 0, offsetData: 1, offsetHole: 2, blockStatus: 5, error: 0x8001 } as const;

/** The `base:allocation` metadata context's bits. */
export const AllocationFlag = { hole: 1, zero: 2 } as const;

/** "Error values" */
export const NbdError = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** What a client is told for an errno of ours ("Error values": EDQUOT and EFBIG are ENOSPC, the unexpected is EIO). */
export function nbdErrorOf(errno: string): number {
  switch (errno) {
    case "EPERM":
    case "EACCES":
    case "EROFS":
      return NbdError.EPERM;
    case "ENOMEM":
      return NbdError.ENOMEM;
    case "EINVAL":
      return NbdError.EINVAL;
    case "ENOSPC":
    case "EDQUOT":
    case "EFBIG":
      return NbdError.ENOSPC;
    case "EOVERFLOW":
      return NbdError.EOVERFLOW;
    case "ENOTSUP":
    case "EOPNOTSUPP":
      return NbdError.ENOTSUP;
    case "ESHUTDOWN":
      return NbdError.ESHUTDOWN;
    default:
      return NbdError.EIO;
  }
}
