/** The connection as the handshake sees it: a stream of bytes in order. Every method rejects once it is gone. */
export interface HandshakeChannel {
  readonly secure: boolean;
  /** The next bytes, `length` of them, at most 64 KiB. Bounded by the handshake's time limit. */
  read(length: number): Promise<Buffer>;
  /** Resolves at once unless the client does not take what was written before. */
  write(bytes: Buffer): Promise<void>;
  /** Bytes have arrived that were not read yet. */
  readonly hasUnread: boolean;
  /** Continues under TLS. Nothing may be unread. */
  startTls(): Promise<void>;
}
